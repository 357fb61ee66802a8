"""LaunchPlan: the one frozen object that is checked, shown and run."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from pathlib import Path
from typing import Any, Literal

from factory.errors import InputError
from launch import trackers
from launch.base_model import overrides, stored_pooling
from launch.batch import BatchFacts, batch_facts
from launch.config import Frozen, Gpu, Hardware, LaunchConfig, deepspeed_file, load_config
from launch.contract import Contract, installed, refusal, translate
from launch.data import DataFacts, scan
from launch.machine import Machine, described, detect
from launch.problems import Problem, error, warning
from launch.recipes import Argument, Precision, Situation, dims, recipe_arguments

WORKER = "launch.worker"
SAVING = 300  # seconds that torchrun gives its ranks from SIGTERM to SIGKILL: a step, and a checkpoint


class LaunchPlan(Frozen):
    """A whole training run, decided. `check`, `show` and `run` all use this very object.

    `argv` is what is executed, word for word; on several nodes launch.render adds where they meet.
    `env` is added to the environment; `prepared` is a folder beside the output that stands in for
    `model`, with `overrides` in its config.json; None where the model is used as it is.
    """

    recipe: str
    argv: tuple[str, ...]
    env: dict[str, str]
    workdir: Path
    arguments: tuple[Argument, ...]
    batch: BatchFacts
    data: DataFacts
    machine: Machine
    device: Literal["cpu", "cuda"]
    precision: Precision
    world_size: int  # processes on all nodes
    nnodes: int = 1
    pooling: str
    model: Path
    prepared: Path | None
    overrides: dict[str, Any]
    output: Path
    cache: Path
    deepspeed: Path | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    dev: Path | None = None

    @property
    def nproc_per_node(self) -> int:
        """Processes on each node."""
        return self.world_size // self.nnodes

    def value(self, name: str) -> str | None:
        """The first word of an argument, None where it is not passed."""
        return next((a.words[0] for a in self.arguments if a.name == name and a.words), None)

    def on(self, name: str) -> bool:
        """Whether a yes-or-no argument is passed as true."""
        return (self.value(name) or "").lower() in ("true", "1", "yes", "y", "t")

    def number(self, name: str, unset: float) -> float:
        """An argument as a number; `unset` where it is not passed, or is none (the plan's problems say so)."""
        try:
            return float(self.value(name) or unset)
        except ValueError:
            return unset


def plan_file(path: Path) -> LaunchPlan:
    """The plan of a launch.yaml on this machine. InputError if the file does not fit."""
    config = load_config(path)
    return make_plan(config, detect(), installed(config.recipe))


def on_gpus(path: Path, memory: float) -> LaunchPlan:
    """The plan of a launch.yaml for GPUs of `memory` GiB with bf16, as many as it has processes, whatever is here."""
    config = load_config(path)
    count = 1 if config.hardware.nproc_per_node == "auto" else config.hardware.nproc_per_node
    hardware = Hardware(nnodes=config.hardware.nnodes, nproc_per_node=count, gpu=Gpu(memory=memory))
    return make_plan(config.model_copy(update={"hardware": hardware}), detect(), installed(config.recipe))


def must_be_here(plan: LaunchPlan) -> None:
    """InputError for a plan that this machine alone cannot execute."""
    fix = "bge-launch show --format bash, slurm, k8s or trainjob gives a job to start there"
    if plan.nnodes > 1:
        raise InputError(f"the plan is for {plan.nnodes} nodes; run trains on this machine alone", fix=fix)
    if plan.machine.elsewhere:
        kind = f"{plan.machine.gpus} GPUs of {plan.machine.memory:g} GiB" + " with bf16" * plan.machine.bf16
        what = f"the plan is for {kind} (`hardware.gpu` in launch.yaml), and they are not on this machine"
        raise InputError(what, fix=f"take `gpu:` out to train on what is here; {fix}")


def make_plan(config: LaunchConfig, machine: Machine, contract: Contract) -> LaunchPlan:
    """Decides everything. Problems with data or arguments are in the plan, not raised."""
    extra = translate(config.arguments, contract.names, config.recipe)
    config = config.model_copy(update={"arguments": extra.arguments, "matryoshka_dims": dims(config)})
    hardware, machine = config.hardware, described(config.hardware, machine)
    device = hardware.device
    if device == "auto":
        device = "cuda" if machine.gpus else "cpu"
    every = max(machine.gpus, 1) if device == "cuda" else 1
    per_node = every if hardware.nproc_per_node == "auto" else hardware.nproc_per_node
    world_size = hardware.nnodes * per_node
    precision: Precision = "fp32" if device == "cpu" else "bf16" if machine.bf16 else "fp16"

    notes, problems = list(extra.notes), list(extra.problems)
    if hardware.device == "auto" and device == "cpu":
        notes.append("no GPU is visible: it trains on the CPU")
        if world_size > 1:
            fix = "look at CUDA_VISIBLE_DEVICES and the driver, or set hardware.device: cpu if it is meant"
            problems.append(warning("gpus.none", f"no GPU is visible: {world_size} processes on the CPU", fix))
    pooling = config.pooling or stored_pooling(config.model) or "cls"
    changed = overrides(config.model, device)
    prepared = config.output.parent / f".{config.output.name}-base" if changed else None
    if changed.keys() - {"dtype", "torch_dtype"}:
        notes.append(f"dropout is off: it makes a step on a CPU much slower; {prepared} stands in for the model")
    if changed.keys() & {"dtype", "torch_dtype"}:
        notes.append(f"the half-precision weights are trained as float32; {prepared} stands in for the model")
    data = scan(config.train_data, config.train_group_size)
    cache = config.output / ".cache"
    situation = Situation(
        model=prepared or config.model,
        deepspeed=deepspeed_file(config.deepspeed),
        cache=cache,
        data=tuple(f.path for f in data.files),
        pooling=pooling,
        device=device,
        world_size=world_size,
        precision=precision,
        fully_scored=data.fully_scored,
        trackers=config.trackers if config.trackers is not None else trackers.default(),
        names=contract.names,
    )
    batch, bad_numbers = _batch(config, data, world_size)
    problems += bad_numbers
    arguments, reported = trackers.one_word(recipe_arguments(config, situation, batch.updates))
    words = [w for a in arguments for w in (f"--{a.name}", *a.words)]
    for said in refusal(contract, words):
        problems.append(error("argument.value", f"the installed trainer does not take the arguments: {said}"))
    torchrun = Path(sys.executable).parent / "torchrun"
    nodes = ["--standalone"] if hardware.nnodes == 1 else ["--nnodes", str(hardware.nnodes)]
    argv = [str(torchrun), *nodes, "--nproc_per_node", str(per_node), "-m", WORKER, config.recipe, *words]
    return LaunchPlan(
        recipe=config.recipe,
        argv=tuple(argv),
        env=_env(device, machine.cores, per_node) | trackers.environment(reported, config.output) | extra.env,
        workdir=Path.cwd(),
        arguments=tuple(arguments),
        batch=batch,
        data=data,
        machine=machine,
        device=device,
        precision=precision,
        world_size=world_size,
        nnodes=hardware.nnodes,
        pooling=pooling,
        model=config.model,
        prepared=prepared,
        overrides=changed,
        output=config.output,
        cache=cache,
        deepspeed=situation.deepspeed,
        notes=tuple(notes),
        problems=tuple(problems + _pooling_problems(config)),
        dev=config.dev,
    )


def _env(device: str, cores: int, processes: int) -> dict[str, str]:
    env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SAVING)
    home = Path(__file__).resolve().parent.parent
    if str(home) not in sysconfig.get_paths().values():  # a checkout: the ranks must find this very package
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        env["PYTHONPATH"] = os.pathsep.join([str(home), *(p for p in others if p not in ("", str(home)))])
    if device == "cpu":
        env["OMP_NUM_THREADS"] = str(max(cores // processes, 1))  # torchrun would set 1 for several processes
        # glibc gives the memory of each step's activations back and takes it anew: a quarter of the time of a step
        env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    return env


def _batch(config: LaunchConfig, data: DataFacts, world_size: int) -> tuple[BatchFacts, list[Problem]]:
    """The counts under `arguments:` too; one that is no number is reported and taken as unset."""
    problems: list[Problem] = []
    numbers: dict[str, int] = {}
    for name, unset, least in (("gradient_accumulation_steps", 1, 1), ("max_steps", -1, -1)):
        given = str(config.arguments.get(name, unset))
        numbers[name] = int(given) if given.lstrip("-").isdigit() and int(given) >= least else unset
        if str(numbers[name]) != given:
            problems.append(
                error("argument.value", f"arguments.{name}: expected a number from {least} on, got {given}")
            )

    def flag(name: str, default: bool) -> bool:
        return str(config.arguments.get(name, default)).lower() in ("true", "1", "yes", "y", "t")

    facts = batch_facts(
        data,
        batch_size=config.batch_size,
        group_size=config.train_group_size,
        world_size=world_size,
        epochs=config.epochs,
        drop_last=flag("dataloader_drop_last", True) or (config.recipe == "matryoshka" and world_size > 1),
        cross_device=flag("negatives_cross_device", world_size > 1),
        accumulation=numbers["gradient_accumulation_steps"],
        max_steps=numbers["max_steps"],
        same_dataset=flag("same_dataset_within_batch", False),
        in_batch=config.recipe != "reranker",
    )
    return facts, problems


def _pooling_problems(config: LaunchConfig) -> list[Problem]:
    stored = stored_pooling(config.model)
    if config.recipe == "reranker":  # it makes no vector
        return []
    if config.pooling is None and stored is None:
        reason = f"{config.model}: no 1_Pooling/config.json says how the model pools; cls is assumed"
        return [warning("pooling.assumed", reason, "set `pooling:` to what the model's page says")]
    if config.pooling and stored and config.pooling != stored:
        reason = f"pooling is {config.pooling}, but the base model was trained with {stored}"
        return [warning("pooling.differs", reason, f"set `pooling: {stored}`, or leave it out")]
    return []


def command(plan: LaunchPlan) -> str:
    """The plan as one shell command: environment, then argv, one argument a line."""
    lines: list[list[str]] = [[f"{name}={shlex.quote(value)}" for name, value in plan.env.items()], []]
    for word in plan.argv:
        if word.startswith("-") and not _is_number(word):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


def _is_number(word: str) -> bool:
    try:
        float(word)
        return True
    except ValueError:
        return False


def summary(plan: LaunchPlan) -> dict[str, Any]:
    """The plan's facts, for people: what → how much."""
    b = plan.batch
    negatives = f"{b.hard_negatives} hard + {b.in_batch_negatives} in batch"
    if plan.recipe == "reranker":
        negatives = f"{b.hard_negatives} hard, none in batch: the loss looks at one query's own group at a time"
    if plan.recipe == "m3-unified" and b.local_negatives != b.in_batch_negatives:
        negatives += f" (sparse and ColBERT: {b.local_negatives}, they never cross devices)"
    distilled = "on" if plan.on("knowledge_distillation") else "off"
    cut = next((a.words for a in plan.arguments if a.name in ("matryoshka_dims", "mrl_dims")), ())
    vectors = {"pooling": plan.pooling} | ({"lengths of a vector": ", ".join(cut)} if cut else {})
    return {
        "recipe": plan.recipe,
        "device": f"{plan.device}, {processes(plan)}, {plan.precision}"
        + ", not on this machine" * plan.machine.elsewhere,
        "rows": b.rows,
        "queries per step": b.queries_per_step,
        "steps per epoch": b.steps_per_epoch,
        "updates in all": b.updates,
        "rows left over in each epoch": b.dropped,
        "negatives per query": negatives,
        **({} if plan.recipe == "reranker" else vectors),
        "distillation from scores": f"{distilled} ({plan.data.scored} of {b.rows} rows have scores)",
        "output": plan.output,
    }


def processes(plan: LaunchPlan) -> str:
    """How many processes, and on how many nodes."""
    if plan.nnodes > 1:
        return f"{plan.nnodes} nodes × {plan.nproc_per_node} = {plan.world_size} processes"
    return f"{plan.world_size} process{'es' if plan.world_size > 1 else ''}"
