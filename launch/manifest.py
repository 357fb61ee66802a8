"""launch.json: what a run was made from and what came of it, and whether a plan still is that run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

from factory.errors import InputError
from factory.modelfiles import model_fingerprint
from factory.workspace import write_json
from launch.base_model import read_json
from launch.plan import LaunchPlan
from launch.worker import RECORD

NAME = "launch.json"
PACKAGES = (
    "FlagEmbedding",
    "transformers",
    "torch",
    "accelerate",
    "datasets",
    "deepspeed",
    "sentence-transformers",
    "tokenizers",
)
# What a resumed run may have otherwise. Files are compared by content; the rest does not touch the training.
_FREE = {"model_name_or_path", "train_data", "cache_path", "output_dir", "deepspeed", "report_to"}
_FREE |= {"logging_steps", "save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers"}


def write(plan: LaunchPlan, **outcome: Any) -> None:
    """Writes launch.json: the plan's facts, then worker.json's, then `outcome`."""
    facts = {
        "recipe": plan.recipe,
        "argv": list(plan.argv),
        "env": plan.env,
        "workdir": str(plan.workdir),
        "git": git(plan.workdir),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "world_size": plan.world_size,
        "updates": 0,
        "trained": False,
    }
    write_json(plan.output / NAME, facts | inputs(plan) | read_json(plan.output / RECORD) | outcome)


def inputs(plan: LaunchPlan) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {
        "model": str(plan.model),
        "model_fingerprint": model_fingerprint(plan.model) if plan.model.exists() else "",
        "model_overrides": plan.overrides,
        "data": [{"path": str(f.path), "sha256": f.sha256, "rows": f.rows} for f in plan.data.files],
        "batch": plan.batch.model_dump(),
        "deepspeed": _deepspeed(plan.deepspeed),
        "arguments": {a.name: list(a.words) for a in plan.arguments},
    }


def stopped(plan: LaunchPlan) -> dict[str, Any]:
    """The launch.json in the plan's output folder.

    Raises:
        InputError: there is none, so nothing to go on with.
    """
    found = read_json(plan.output / NAME)
    if not found:
        raise InputError(f"no {NAME}: no run was started here", where=plan.output, fix="bge-launch run")
    return found


def trained(plan: LaunchPlan) -> dict[str, Any]:
    """The launch.json of a folder in which a training came to its end; written now if a job of `show` trained it.

    Raises:
        InputError: no training did, or it was that of another plan.
    """
    if not read_json(plan.output / RECORD).get("trained"):
        fix = "wait for the job; if it has stopped, start it again with BGE_LAUNCH_RESUME=1 in its environment"
        raise InputError("no training has come to its end here", where=plan.output, fix=fix)
    found = read_json(plan.output / NAME)
    if found:
        same_run(found, plan)
    else:
        write(plan, exit_code=None, error=None, seconds=0)
    return read_json(plan.output / NAME)


def finished(before: dict[str, Any]) -> bool:
    """Whether a launch.json is that of a run that came to its end."""
    return before.get("exit_code") == 0 and not before.get("error")


def same_run(before: dict[str, Any], plan: LaunchPlan) -> None:
    """Refuses a plan that is not the run of a launch.json.

    Raises:
        InputError: names everything that changed: data, model, batch shape, arguments.
    """
    now = inputs(plan)
    changed = [f"the recipe: {before.get('recipe')}, now {plan.recipe}"] if before.get("recipe") != plan.recipe else []
    old, new = ([(f["path"], f["sha256"]) for f in side.get("data", [])] for side in (before, now))
    if [sha for _, sha in old] != [sha for _, sha in new]:
        names = [path for path, sha in new if sha not in [s for _, s in old]] or [path for path, _ in new]
        changed.append(f"the training data: {', '.join(names)}")
    for what in ("model_fingerprint", "model_overrides"):
        if before.get(what) != now[what]:
            changed.append(f"the model: {before.get('model')}, now {plan.model} ({what.split('_')[1]})")
    if (before.get("deepspeed") or {}).get("sha256") != (now["deepspeed"] or {}).get("sha256"):
        changed.append("the DeepSpeed file")
    if before.get("world_size") != plan.world_size:
        changed.append(f"processes: {before.get('world_size')}, now {plan.world_size}")
    changed += _differences("batch", before, now) + _differences("arguments", before, now)
    if changed:
        raise InputError(
            "the stopped run was another one. Changed:\n  - " + "\n  - ".join(changed),
            where=plan.output,
            fix="put it back as it was, or start anew with `bge-launch run --overwrite`",
        )


def git(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository that a folder is in, and whether tracked files differ from it; None without one."""
    try:
        words = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        commit, status = (
            subprocess.run(["git", *w], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for w in words
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(status.strip())}


def _differences(section: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before.get(section) or {}, now[section]
    names = [n for n in {**old, **new} if n not in _FREE and old.get(n) != new.get(n)]
    return [f"{name}: {_shown(old.get(name))}, now {_shown(new.get(name))}" for name in names]


def _shown(value: Any) -> str:
    return "not given" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _deepspeed(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    content = path.read_bytes()
    return {"path": str(path), "sha256": hashlib.sha256(content).hexdigest(), "settings": read_json(path)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
