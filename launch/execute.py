"""Runs a plan's argv: what it says goes into the log and is shown from there; it ends in order, however we end.

The log itself is the processes' standard output, and locked: a `bge-launch` that is killed takes neither their output
away nor the lock, which lasts as long as one of them lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import factory.supervise
from factory.errors import InputError
from launch.plan import SAVING, LaunchPlan
from launch.worker import RESUME

PATIENCE = 20.0  # seconds beyond SAVING, which torchrun needs to end itself
LOOK = 0.1  # seconds between two looks into the log


class Interrupted(RuntimeError):
    """Ctrl-C, SIGTERM or a terminal that is gone; `code` is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int, kept: str = ""):
        self.number, self.code = number, 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f"; {kept}" if kept else ""))


@contextlib.contextmanager
def locked(log: Path) -> Iterator[BinaryIO]:
    """The log, to append to, for us alone.

    Raises:
        InputError: another run has it.
    """
    with open(log, "ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            fix = "wait for its end; after `kill -9` of a bge-launch its training still saves a checkpoint"
            raise InputError("another run is training into this folder", where=log.parent, fix=fix) from e
        except OSError:  # a file system without locks
            pass
        yield file


def execute(plan: LaunchPlan, log: BinaryIO, resume: bool) -> int:
    """The exit code of argv, which runs in a session of its own, so that a signal reaches it only through us.

    The first signal goes on to torchrun, which hands it to the ranks: they finish their step, save
    and end, while what they say is still shown. A second one, or none of that in time, ends them all.
    When this process is killed, they are told to stop, too.
    """
    process: subprocess.Popen[bytes] | None = None
    family: list[Any] = []
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if process is None:
            raise Interrupted(number)
        if len(asked) > 1:
            _kill(process, family)
            return
        with contextlib.suppress(OSError):  # of a terminal that is gone
            os.write(2, b"\nstopping: the step is finished and a checkpoint saved; once more ends at once\n")
        family.extend(_family(process))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        timer = threading.Timer(SAVING + PATIENCE, _kill, (process, family))
        timer.daemon = True
        timer.start()

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it, and goes on without a terminal
        signals.append(signal.SIGHUP)
    previous = {s: signal.signal(s, stop) for s in signals}
    supervise = [sys.executable, "-IS", factory.supervise.__file__, "--patience", str(SAVING + PATIENCE)]
    start = log.seek(0, os.SEEK_END)
    try:
        process = subprocess.Popen(
            [*supervise, *plan.argv],
            cwd=plan.workdir,
            env=os.environ | plan.env | ({RESUME: "1"} if resume else {}),
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _follow(Path(log.name), start, process)
        code = process.wait()
        if asked:
            raise Interrupted(asked[0])
        return code
    finally:
        for number in previous:  # another Ctrl-C must not leave processes behind
            signal.signal(number, signal.SIG_IGN)
        if process:
            _kill(process, family or _family(process))
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(log: Path, start: int, process: subprocess.Popen[bytes]) -> None:
    """Shows what comes into the log until the process has ended; where nobody looks any more, only waits."""
    with open(log, "rb", buffering=0) as file:
        file.seek(start)
        while True:
            ended = process.poll() is not None
            while chunk := file.read(65536):  # carriage returns of a progress bar as well
                try:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
                except OSError:
                    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for whatever is said later
            if ended:
                return
            time.sleep(LOOK)


def _family(process: subprocess.Popen[bytes]) -> list[Any]:
    """torchrun, its ranks and their children, which are in sessions of their own."""
    import psutil  # type: ignore[import-untyped]

    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill(process: subprocess.Popen[bytes], family: list[Any]) -> None:
    """Ends what is left of a run, at once."""
    import psutil

    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=5)
    process.wait()
