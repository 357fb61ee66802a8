"""Runs a plan's very argv: live output, a log, a manifest, and a clean end however it ends."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from launch.base_model import prepare, remove_prepared, write_json
from launch.config import Frozen
from launch.finish import LoadFailed, finish, load_test, losses
from launch.plan import LaunchPlan

PACKAGES = ("FlagEmbedding", "transformers", "torch", "accelerate", "datasets", "deepspeed", "tokenizers")
TAIL = 30  # log lines in the error of a failed run
PATIENCE = 20.0  # seconds from SIGTERM to SIGKILL; torchrun needs some to stop its workers


class TrainingFailed(RuntimeError):
    """The training process ended with an error, or its model does not load; exit code 1."""


class Interrupted(RuntimeError):
    """Ctrl-C or SIGTERM; `code` is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int):
        self.code = 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class Result(Frozen):
    """A finished run. `seconds` are wall-clock, the load test included."""

    output: Path
    seconds: float
    loss: dict[str, float | None]


def run(plan: LaunchPlan) -> Result:
    """Trains. The plan must have passed `preflight.check`; a full output folder is moved aside first.

    Raises:
        TrainingFailed: names the log and shows its last lines.
        Interrupted: after every process of the run is gone.
    """
    start = time.monotonic()
    moved = move_aside(plan.output)
    if moved:
        print(f"the old {plan.output} is now {moved}", flush=True)
    plan.output.mkdir(parents=True, exist_ok=True)
    log = plan.output / "launch.log"
    code: int | None = None
    failure: str | None = None
    try:
        if plan.prepared:
            prepare(plan.model, plan.prepared, plan.overrides)
        code = _execute(plan, log)
        if code:
            failure = f"training failed with exit code {code}"
            raise TrainingFailed(f"{failure}; the whole log: {log}\n{tail(log)}")
        finish(plan)
        load_test(plan.output, plan.recipe)
    except LoadFailed as e:
        failure = str(e)
        raise TrainingFailed(f"{e}; the whole log: {log}") from e
    except Interrupted as e:
        failure, code = str(e), e.code
        raise
    finally:
        if plan.prepared:
            remove_prepared(plan.prepared)
        seconds = time.monotonic() - start
        loss = losses(plan.output, log.read_text("utf-8", "replace") if log.exists() else "")
        write_json(plan.output / "launch.json", _manifest(plan, code, failure, seconds, loss))
    return Result(output=plan.output, seconds=seconds, loss=loss)


def move_aside(output: Path) -> Path | None:
    """Renames a full folder to the first free `<name>.old-N`; None if there was nothing to move."""
    if not output.is_dir() or not any(output.iterdir()):
        return None
    number = 1
    while (aside := output.with_name(f"{output.name}.old-{number}")).exists():
        number += 1
    return output.rename(aside)


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines before torchrun's own report, progress bars as they last looked.

    torchrun's report is longer than `lines` and never holds the worker's traceback, because
    FlagEmbedding's entry point has no @record (FlagEmbedding#1438).
    """
    text = log.read_bytes().decode("utf-8", "replace")  # read_text would make line ends of a bar's carriage returns
    texts = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    report = next((i for i, t in enumerate(texts) if "failed (exitcode:" in t or "Sending process " in t), len(texts))
    return "\n".join([t for t in texts[:report] if t.strip()][-lines:])


def _execute(plan: LaunchPlan, log: Path) -> int:
    """Runs argv in a session of its own, so that a signal reaches it only through us."""
    previous = {s: signal.signal(s, _interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            plan.argv,
            cwd=plan.workdir,
            env=os.environ | plan.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        with open(log, "wb", buffering=0) as file:
            # Whatever has come, at once: waiting for line ends would hold back a progress bar's carriage returns.
            while chunk := os.read(process.stdout.fileno(), 65536):
                file.write(chunk)
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
        return process.wait()
    finally:
        for number in previous:  # a second Ctrl-C must not leave processes behind
            signal.signal(number, signal.SIG_IGN)
        if process and process.poll() is None:
            _end(process)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stops torchrun and its workers, which it puts into sessions of their own."""
    import psutil  # type: ignore[import-untyped]

    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=1)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=5)
    process.wait()


def _manifest(
    plan: LaunchPlan, code: int | None, failure: str | None, seconds: float, loss: dict[str, float | None]
) -> dict[str, Any]:
    return {
        "argv": list(plan.argv),
        "env": plan.env,
        "workdir": str(plan.workdir),
        "model": str(plan.model),
        "model_overrides": plan.overrides,
        "versions": {name: _version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "data": [{"path": str(f.path), "sha256": f.sha256, "rows": f.rows} for f in plan.data.files],
        "batch": plan.batch.model_dump(),
        "seconds": round(seconds, 1),
        "exit_code": code,
        "error": failure,
        "loss": loss,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
