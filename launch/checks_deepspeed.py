"""The DeepSpeed file against the installed DeepSpeed, and against the plan: each check yields Problems."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from launch.deepspeed_schema import Schema, schema
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning

BUILD = 30  # minutes; no build of one of its parts takes as long


def deepspeed(plan: LaunchPlan) -> Iterator[Problem]:
    """The file that `deepspeed:` names, if it names one."""
    path = plan.deepspeed
    if path is None:
        return
    if importlib.util.find_spec("deepspeed") is None:
        fix = "pip install deepspeed, or leave `deepspeed:` out"
        yield error("deepspeed.missing", "deepspeed is not installed", fix)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        names = ", ".join(sorted(f.stem for f in path.parent.glob("*.json"))) or "none there"
        yield error("deepspeed.file", f"{path}: no such file", f"names in that folder: {names}")
        return
    except ValueError as e:
        yield error("deepspeed.json", f"{path}: not valid JSON: {e}")
        return
    if not isinstance(settings, dict):
        yield error("deepspeed.json", f"{path}: expected a JSON object")
        return
    if not plan.machine.elsewhere:
        yield from _locks()
    yield from _stage(plan, path, settings)
    yield from _values(plan, path, settings)
    if found := schema():
        yield from _keys(path, settings, found)


def _locks() -> Iterator[Problem]:
    """Lock files of DeepSpeed's compiler. A build that was killed leaves its own, and the next waits for it for ever."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or f"{cache}/torch_extensions").expanduser()
    found = [*root.glob("*/lock"), *root.glob("*/*/lock")]
    for lock in sorted(f for f in found if f.parent.name != "deepspeed_shm_comm"):  # launch.worker leaves that one out
        minutes = (time.time() - lock.stat().st_mtime) / 60
        reason = f"{lock}: DeepSpeed waits until this file is gone; it is {minutes:.0f} minutes old"
        say = error if minutes > BUILD else warning
        yield say("deepspeed.lock", reason, f"unless another run is compiling now, a killed one left it: rm {lock}")


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def _stage(plan: LaunchPlan, path: Path, settings: dict[str, Any]) -> Iterator[Problem]:
    stage = _section(settings, "zero_optimization").get("stage", 0)
    if stage not in (0, 1, 2, 3):
        yield error("deepspeed.stage", f"{path}: zero_optimization.stage is {stage!r}; expected 0, 1, 2 or 3")
    if stage == 3 and plan.recipe == "m3-unified":
        reason = (
            f"{path}: ZeRO-3: the trainer of m3-unified saves the model's own tensors, which ZeRO-3 has emptied, "
            "not the gathered weights; the training runs to its end and the saved model does not load"
        )
        yield error("deepspeed.zero3", reason, "use stage2, or stage2-offload if memory is short")


def _values(plan: LaunchPlan, path: Path, settings: dict[str, Any]) -> Iterator[Problem]:
    """Values that DeepSpeed or transformers would stop at."""
    scaling = sorted(set(_section(settings, "bf16")) & {"loss_scale", "initial_scale_power", "loss_scale_window"})
    if scaling:
        reason = f"{path}: {', '.join(scaling)} inside bf16; DeepSpeed 0.17 and later refuses that (FlagEmbedding#1487)"
        yield error("deepspeed.bf16", reason, "bf16 needs no loss scaling: remove the keys")
    for key, (name, ours) in _compared(plan).items():
        given = _at(settings, key)
        if given not in (None, "auto", ours):
            reason = f"{path}: {key} is {given}, but the trainer gets {name} {ours}; transformers stops at that"
            yield error("deepspeed.mismatch", reason, f'write "{key.rpartition(".")[2]}": "auto"')
    for key in ("fp16", "bf16"):
        enabled = _section(settings, key).get("enabled", "auto")
        if isinstance(enabled, bool) and enabled != plan.on(key):
            reason = f"{path}: {key}.enabled is {str(enabled).lower()}, but the plan is {plan.precision}"
            yield error("deepspeed.mismatch", reason, f'write "enabled": "auto" in {key}')


def _compared(plan: LaunchPlan) -> dict[str, tuple[str, Any]]:
    """Keys that transformers compares with the trainer's arguments (HfTrainerDeepSpeedConfig): what it compares with."""
    batch, accumulation = (
        int(plan.number(name, unset))
        for name, unset in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1))
    )
    rate = "learning_rate", plan.number("learning_rate", 5e-5)
    betas = [plan.number("adam_beta1", 0.9), plan.number("adam_beta2", 0.999)]
    compared: dict[str, tuple[str, Any]] = {
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", batch),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulation),
        "train_batch_size": ("batch size × processes × accumulation", batch * plan.world_size * accumulation),
        "gradient_clipping": ("max_grad_norm", plan.number("max_grad_norm", 1)),
        "optimizer.params.lr": rate,
        "optimizer.params.betas": ("adam_beta1 and adam_beta2", betas),
        "optimizer.params.eps": ("adam_epsilon", plan.number("adam_epsilon", 1e-8)),
        "optimizer.params.weight_decay": ("weight_decay", plan.number("weight_decay", 0)),
        "scheduler.params.warmup_max_lr": rate,
    }
    if updates := plan.batch.updates:
        warmup = plan.number("warmup_steps", 0) or plan.number("warmup_ratio", 0)
        steps = max(int(warmup) if warmup >= 1 else math.ceil(updates * warmup), 1)
        compared["scheduler.params.total_num_steps"] = "the run's updates", updates
        compared["scheduler.params.warmup_num_steps"] = "warmup_steps", steps
    return compared


def _at(settings: dict[str, Any], dotted: str) -> Any:
    """The value of `section.key`; None where there is none."""
    inside: Any = settings
    for part in dotted.split("."):
        inside = inside.get(part) if isinstance(inside, dict) else None
    return inside


def _keys(path: Path, settings: dict[str, Any], known: Schema) -> Iterator[Problem]:
    """Keys that the installed DeepSpeed has removed, refuses, or never looks at."""
    for name, keys in known.sections.items():
        inside = _at(settings, name)
        for key in sorted(set(inside or ()) - keys) if isinstance(inside, dict) else ():
            if f"{name}.{key}" in known.removed or (name == "bf16" and "scale" in key):
                continue
            reason = f"{path}: {name} has no key {key!r} in the installed DeepSpeed, which stops at it"
            yield error("deepspeed.key", reason, _nearest(key, keys))
    for dotted, said in known.removed.items():
        section, _, key = dotted.rpartition(".")
        if key in (_section(settings, section) if section else settings):
            yield error("deepspeed.key", f"{path}: {dotted} is gone from the installed DeepSpeed: {said}", "remove it")
    gone = {name for name in known.removed if "." not in name}
    for key in sorted(set(settings) - known.top - gone):
        reason = f"{path}: the installed DeepSpeed never looks at {key!r}; it has no effect"
        yield warning("deepspeed.ignored", reason, _nearest(key, known.top))


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else "remove it"
