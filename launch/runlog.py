"""Reading a run's own logs: launch.log (the console, rank 0) and logs/rank-N.log (the other ranks)."""

from __future__ import annotations

import re
import signal
from pathlib import Path

TAIL = 30  # log lines in the error of a failed run
TRACE = 100  # as many where a traceback is longer
_FAILED = re.compile(r"\brank\s*:\s*(\d+) \(local_rank.*?\bexitcode\s*:\s*(-?\d+) \(pid", re.DOTALL)


def tail(log: Path, lines: int = TAIL, start: int = 0) -> str:
    """The last lines before torchrun's own report, a traceback among them whole, progress bars as they last looked.

    The report comes after the ranks' own words and repeats the traceback. `start`: the byte to begin at.
    """
    text = _text(log, start)
    texts = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    report = next((i for i, t in enumerate(texts) if "failed (exitcode:" in t or "Sending process " in t), len(texts))
    said = [t for t in texts[:report] if t.strip()]
    trace = max((i for i, t in enumerate(said) if "Traceback (most recent call last)" in t), default=len(said))
    return "\n".join(said[max(min(trace, len(said) - lines), len(said) - TRACE, 0) :])


def cause(output: Path, start: int = 0) -> str:
    """Why a training ended: the last lines of the rank that torchrun says failed first.

    Args:
        output: the run's folder.
        start: where in launch.log the run began; before it is what a resumed run had said.
    """
    log = output / "launch.log"
    report = _text(log, start).partition("Root Cause")  # torchrun's: the other failures, then the first
    ranks = [(int(rank), int(code)) for part in (report[2], report[0]) for rank, code in _FAILED.findall(part)]
    # A rank without a traceback of its own is noticed after those whose peer it was. SIGTERM is torchrun's.
    killed = [r for r in ranks if r[1] < 0 and r[1] != -signal.SIGTERM]
    rank, code = [*killed, *ranks, (0, 0)][0]
    own = output / "logs" / f"rank-{rank}.log"
    said = tail(own) if rank and own.exists() else tail(log, start=start)
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        hint = " (the kernel does that when memory runs out)" if name == "SIGKILL" else ""
        return f"{said}\nrank {rank} was ended by {name}{hint}"
    return f"rank {rank}, {own}:\n{said}" if rank and own.exists() else said


def _text(log: Path, start: int) -> str:
    try:
        return log.read_bytes()[start:].decode("utf-8", "replace")  # read_text would turn a bar's \r into line ends
    except FileNotFoundError:
        return ""
