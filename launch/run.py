"""A training from start to finish: the old output aside, argv, the model's files, its test, a manifest of it all."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from factory.errors import InputError
from launch import manifest
from launch.base_model import prepare, read_json, remove_prepared
from launch.checkpoints import newest, zero_stage
from launch.config import Frozen
from launch.execute import Interrupted, execute, locked
from launch.finish import LoadFailed, finish, losses, prove, score
from launch.plan import LaunchPlan
from launch.runlog import cause
from launch.worker import RECORD

LOG = "launch.log"


class TrainingFailed(RuntimeError):
    """The training process ended with an error, or its model does not load; exit code 1."""


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
        InputError: another run is training into the folder.
    """
    if not resume and (moved := move_aside(plan.output)):
        print(f"the old {plan.output} is now {moved}", flush=True)
    plan.output.mkdir(parents=True, exist_ok=True)
    with locked(plan.output / LOG) as log:
        return _alone(plan, log, config, resume)


def _alone(plan: LaunchPlan, file: BinaryIO, config: Path | None, resume: bool) -> Result:
    """`run`, with the output folder to itself. `file` is the log."""
    began = time.monotonic()
    before = manifest.stopped(plan) if resume else {}
    log = plan.output / LOG
    start = log.stat().st_size
    outcome: dict[str, Any] = {"exit_code": None, "error": None}
    manifest.write(plan, **outcome, seconds=before.get("seconds", 0))
    try:
        if plan.prepared:
            prepare(plan.model, plan.prepared, plan.overrides)
        if not (resume and read_json(plan.output / RECORD).get("trained")):
            code = execute(plan, file, resume)
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
        seconds = before.get("seconds", 0) + time.monotonic() - began
        try:
            if plan.prepared:
                remove_prepared(plan.prepared)
            loss = losses(plan.output, log.read_text("utf-8", "replace"))
            manifest.write(plan, **outcome, seconds=round(seconds, 1), loss=loss)
        except (OSError, InputError) as e:
            if outcome["exit_code"] == 0:
                raise
            print(f"warning: {plan.output / manifest.NAME} is as old as the start: {e} [run.manifest]", file=sys.stderr)
    return Result(output=plan.output, seconds=seconds, loss=loss, changed=outcome["changed"], dev=outcome["dev"])


def move_aside(output: Path) -> Path | None:
    """Renames a full folder to the first free `<name>.old-N`; None if there was nothing to move.

    Raises:
        InputError: a run is training into it, or its own folder cannot be written.
    """
    if not output.is_dir() or not any(output.iterdir()):
        return None
    if (output / LOG).exists():
        with locked(output / LOG):  # no training is moved away under itself
            pass
    number = 1
    while (aside := output.with_name(f"{output.name}.old-{number}")).exists():
        number += 1
    try:
        return output.rename(aside)
    except OSError as e:
        fix = "choose another `output:`, or move it by hand"
        raise InputError(f"cannot be moved aside: {e.strerror}", where=output, fix=fix) from e


def _kept(plan: LaunchPlan, config: Path | None) -> str:
    """What is left of a run that ended early, and how to go on."""
    found, torn = newest(plan.output, plan.world_size, zero_stage(plan.deepspeed))
    command = f"bge-launch resume {config or 'CONFIG'}"
    if read_json(plan.output / RECORD).get("trained"):
        return f"the training itself is done, its end is not: {command}"
    kept = f"{found.name} is complete: {command}" if found else "no checkpoint is kept"
    return "\n".join([kept, *torn])
