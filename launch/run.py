"""Runs a plan's very argv: live output, a log, a manifest, and a clean end however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from launch import manifest
from launch.base_model import prepare, read_json, remove_prepared
from launch.checkpoints import newest, zero_stage
from launch.config import Frozen
from launch.finish import LoadFailed, finish, losses, prove, score
from launch.plan import SAVING, LaunchPlan
from launch.runlog import cause
from launch.worker import RECORD, RESUME

PATIENCE = 20.0  # seconds beyond SAVING, which torchrun needs to end itself


class TrainingFailed(RuntimeError):
    """The training process ended with an error, or its model does not load; exit code 1."""


class Interrupted(RuntimeError):
    """Ctrl-C or SIGTERM; `code` is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int, kept: str = ""):
        self.number, self.code = number, 128 + number
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f"; {kept}" if kept else ""))


class Result(Frozen):
    """A finished run. `seconds` are wall-clock, all attempts and the load test included."""

    output: Path
    seconds: float
    loss: dict[str, float | None]
    changed: dict[str, float | None]
    dev: dict[str, Any] | None


def run(plan: LaunchPlan, *, config: Path | None = None, resume: bool = False) -> Result:
    """Trains. The plan must have passed `preflight.check`.

    Args:
        plan: what is run.
        config: its launch.yaml, named in messages.
        resume: go on in a folder that holds a stopped run; else a full folder is moved aside first.

    Raises:
        TrainingFailed: names the log and shows why.
        Interrupted: after every process of the run is gone; says which checkpoint is there.
    """
    began = time.monotonic()
    before = manifest.stopped(plan) if resume else {}
    moved = None if resume else move_aside(plan.output)
    if moved:
        print(f"the old {plan.output} is now {moved}", flush=True)
    plan.output.mkdir(parents=True, exist_ok=True)
    log = plan.output / "launch.log"
    start = log.stat().st_size if log.exists() else 0
    outcome: dict[str, Any] = {"exit_code": None, "error": None}
    manifest.write(plan, **outcome, seconds=before.get("seconds", 0))
    try:
        if plan.prepared:
            prepare(plan.model, plan.prepared, plan.overrides)
        if not (resume and read_json(plan.output / RECORD).get("trained")):
            code = _execute(plan, log, resume)
            if code:
                outcome |= {"exit_code": code, "error": f"training failed with exit code {code}"}
                text = f"{outcome['error']}; the whole log: {log}\n{cause(plan.output, start)}\n{_kept(plan, config)}"
                raise TrainingFailed(text)
        finish(plan)
        outcome["changed"] = prove(plan)
        outcome["dev"] = score(plan)
        outcome["exit_code"] = 0
    except LoadFailed as e:
        outcome |= {"exit_code": 1, "error": str(e)}
        raise TrainingFailed(f"{e}; the whole log: {log}") from e
    except Interrupted as e:
        outcome |= {"error": str(e), "exit_code": e.code}
        raise Interrupted(e.number, _kept(plan, config)) from e
    finally:
        if plan.prepared:
            remove_prepared(plan.prepared)
        seconds = before.get("seconds", 0) + time.monotonic() - began
        loss = losses(plan.output, log.read_text("utf-8", "replace") if log.exists() else "")
        manifest.write(plan, **outcome, seconds=round(seconds, 1), loss=loss)
    return Result(output=plan.output, seconds=seconds, loss=loss, changed=outcome["changed"], dev=outcome["dev"])


def move_aside(output: Path) -> Path | None:
    """Renames a full folder to the first free `<name>.old-N`; None if there was nothing to move."""
    if not output.is_dir() or not any(output.iterdir()):
        return None
    number = 1
    while (aside := output.with_name(f"{output.name}.old-{number}")).exists():
        number += 1
    return output.rename(aside)


def _kept(plan: LaunchPlan, config: Path | None) -> str:
    """What is left of a run that ended early, and how to go on."""
    found, torn = newest(plan.output, plan.world_size, zero_stage(plan.deepspeed))
    command = f"bge-launch resume {config or 'CONFIG'}"
    if read_json(plan.output / RECORD).get("trained"):
        return f"the training itself is done, its end is not: {command}"
    kept = f"{found.name} is complete: {command}" if found else "no checkpoint is kept"
    return "\n".join([kept, *torn])


def _execute(plan: LaunchPlan, log: Path, resume: bool) -> int:
    """Runs argv in a session of its own, so that a signal reaches it only through us.

    The first signal goes on to torchrun, which hands it to the ranks: they finish their step, save
    and end, while what they say is still shown. A second one, or none of that in time, ends them all.
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
        os.write(2, b"\nstopping: the step is finished and a checkpoint saved; once more ends at once\n")
        family.extend(_family(process))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        timer = threading.Timer(SAVING + PATIENCE, _kill, (process, family))
        timer.daemon = True
        timer.start()

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    env = os.environ | plan.env | ({RESUME: "1"} if resume else {})
    try:
        process = subprocess.Popen(
            plan.argv,
            cwd=plan.workdir,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        with open(log, "ab", buffering=0) as file:
            # Whatever has come, at once: waiting for line ends would hold back a progress bar's carriage returns.
            while chunk := os.read(process.stdout.fileno(), 65536):
                file.write(chunk)
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
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


def _family(process: subprocess.Popen[bytes]) -> list[Any]:
    """torchrun's ranks and their children, which are in sessions of their own."""
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
