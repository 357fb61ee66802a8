"""Whether this machine can run the plan: processors, ports, disk, the output folder. Each check yields Problems."""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from factory.errors import InputError
from factory.evalset import read_eval_set
from launch.base_model import half_precision
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning


def hardware(plan: LaunchPlan) -> Iterator[Problem]:
    """Processes against visible GPUs or cores, and torchrun."""
    if plan.device == "cuda" and plan.machine.gpus < plan.nproc_per_node:
        reason = f"{plan.nproc_per_node} processes, but {plan.machine.gpus} visible GPUs"
        fix = "lower hardware.nproc_per_node, or look at CUDA_VISIBLE_DEVICES and the driver; "
        fix += "to plan for another machine, describe its GPUs: hardware: {nproc_per_node: 8, gpu: {memory: 80}}"
        yield error("gpus.too-few", reason, fix)
    if plan.device == "cpu" and plan.nproc_per_node > plan.machine.cores:
        reason = f"{plan.nproc_per_node} processes share {plan.machine.cores} cores"
        yield warning("cpu.crowded", reason, f"set hardware.nproc_per_node: {plan.machine.cores} or less")
    if plan.on("tf32") and not (plan.machine.gpus and plan.machine.bf16):
        reason = (
            "arguments.tf32 is true, and no GPU of the Ampere generation or later is there; the trainer stops at that"
        )
        yield error("gpus.tf32", reason, "leave tf32 out")
    if plan.on("fp16") and plan.on("bf16"):
        yield error("argument.precision", "arguments.fp16 and arguments.bf16 are both true", "leave out one of the two")
    elif plan.on("bf16") and plan.device == "cuda" and not plan.machine.bf16:
        reason = "arguments.bf16 is true, and the GPUs have no bf16: torch emulates it, slowly, or the trainer stops"
        yield error("gpus.bf16", reason, "leave bf16 out: the plan takes fp16 by itself")
    if not os.access(plan.argv[0], os.X_OK):
        yield error("torchrun.missing", f"{plan.argv[0]}: not there", "install torch into this Python environment")


def ports(plan: LaunchPlan) -> Iterator[Problem]:
    """A fixed rendezvous port of this machine that something else listens on; --standalone picks a free one."""
    for at, word in enumerate(plan.argv):
        name, _, value = word.lstrip("-").replace("-", "_").partition("=")
        if name not in ("rdzv_endpoint", "master_port"):
            continue
        host, _, port = (value or plan.argv[at + 1]).rpartition(":")
        if port.isdigit() and host in ("", "localhost", "127.0.0.1", socket.gethostname()) and _listened_on(int(port)):
            reason = f"port {port} of this machine, which the plan fixes for the rendezvous, is in use"
            yield error("port.in-use", reason, "choose another port, or end what listens there (`ss -ltnp`)")


def _listened_on(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def disk(plan: LaunchPlan) -> Iterator[Problem]:
    """Room for the checkpoints that are kept, one more while it is written, and the final model."""
    model = weight_bytes(plan.model)
    there = _first_existing(plan.output)
    if not model or not there.is_dir():
        return
    kept = _checkpoints(plan)
    one = model if plan.on("save_only_model") else model * (5 if plan.deepspeed else 3)
    need, free = kept * one + model, shutil.disk_usage(there).free
    if need > free:
        reason = (
            f"{plan.output}: {free / 2**30:.1f} GiB free, but {kept} checkpoints of {one / 2**30:.1f} GiB (weights and "
            f"Adam's two moments) and the final model take about {need / 2**30:.1f}"
        )
        fix = "free some, put `output:` on another disk, or keep fewer: `save_total_limit: 1` under `arguments:`"
        yield error("disk.space", reason, fix)


def weight_bytes(model: Path) -> int:
    """The model's weights in float32, as they are saved: from the size of its weight files."""
    files = [*model.glob("model*.safetensors")] or [*model.glob("pytorch_model*.bin")] if model.is_dir() else []
    return sum(f.stat().st_size for f in files) * (2 if half_precision(model) else 1)


def _checkpoints(plan: LaunchPlan) -> int:
    """How many lie there at the most: the limit and one more, for the old one goes after the new one is written."""
    strategy, updates = plan.value("save_strategy") or "steps", plan.batch.updates
    if strategy not in ("steps", "epoch"):
        return 0
    per_save = plan.number("save_steps", 500)
    per_save *= updates if per_save < 1 else 1  # a fraction of the run
    if strategy == "epoch":
        per_save = updates / max(plan.number("num_train_epochs", 1), 1)
    saves = math.ceil(updates / per_save) if per_save >= 1 else updates  # the last update is saved in any case
    limit = int(plan.number("save_total_limit", 0))
    return min(saves, limit + 1) if limit > 0 else saves


def dev(plan: LaunchPlan) -> Iterator[Problem]:
    """The folder that `dev:` names, on which the tuned model is scored in the end."""
    if plan.dev is None:
        return
    if plan.recipe == "reranker":
        yield error("dev.reranker", "`dev:` scores embedding models, not rerankers", "leave it out")
    try:
        read_eval_set(plan.dev)
    except InputError as e:
        yield error("dev.unreadable", f"{e.where}: {e.what}", e.fix or "give a folder as bge-factory writes, or none")


def output(plan: LaunchPlan, overwrite: bool) -> Iterator[Problem]:
    """The output folder: new or empty, writable, and not one that holds the input."""
    output = plan.output
    for what, path in (("the model", plan.model), *(("training data", f.path) for f in plan.data.files)):
        if path == output or output in path.parents:
            reason = f"{output}: the output folder holds {what} ({path})"
            yield error("output.holds-input", reason, "give the tuned model a folder of its own")
    if output.exists() and not output.is_dir():
        yield error("output.file", f"{output}: is a file, not a folder", "choose another `output:`")
    elif output.is_dir() and any(output.iterdir()) and not overwrite:
        fix = "choose another `output:`, `run --overwrite`, which moves the old folder aside, or `bge-launch resume`"
        yield error("output.not-empty", f"{output}: not empty", fix)
    written = {output} if output.is_dir() else set()
    if plan.prepared or not written:  # the model's stand-in lies beside the output
        written.add(_first_existing(output.parent))
    for folder in sorted(written):
        if not os.access(folder, os.W_OK | os.X_OK):
            yield error("output.read-only", f"{folder}: cannot be written", "choose another `output:`")


def _first_existing(path: Path) -> Path:
    return path if path.exists() else _first_existing(path.parent)
