"""Everything that can be known before a GPU starts. Each check yields Problems; all are collected."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from factory.evalset import read_eval_set
from factory.records import InputError
from launch.base_model import half_precision, read_json, token_limit
from launch.checks_recipes import matryoshka, reranker
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.json")


def check(plan: LaunchPlan, *, overwrite: bool = False) -> list[Problem]:
    """All problems of a plan, errors first. `overwrite`: a full output folder is no error."""
    checks = (
        _data,
        _batch,
        _distillation,
        _model,
        _lengths,
        _same_dataset,
        _hardware,
        _deepspeed,
        _dev,
        reranker,
        matryoshka,
    )
    found = list(plan.problems)
    for one in checks:
        found.extend(one(plan))
    found.extend(_output(plan, overwrite))
    return sorted(found, key=lambda p: p.severity)  # "error" sorts before "warning"


def _data(plan: LaunchPlan) -> Iterator[Problem]:
    need = int(plan.value("train_group_size") or 1) - 1
    for file in plan.data.files:
        yield from file.problems
        if file.thin:
            reason = (
                f"{file.path}: {file.thin} of {file.rows} rows have fewer than train_group_size - 1 = {need} negatives "
                f"(the fewest: {file.fewest_negatives}); the trainer repeats them within the group"
            )
            yield warning(
                "data.few-negatives", reason, f"mine more, or set train_group_size: {file.fewest_negatives + 1}"
            )
        if file.scores_range and file.scores_range[0] >= 0 and file.scores_range[1] <= 1:
            reason = (
                f"{file.path}: every score lies in [0, 1]; the trainer takes a softmax over them at temperature 1, "
                f"and even 1 against 0 then gives the positive only {_best_share(need):.2f} of the weight"
            )
            yield warning("data.scores-in-unit", reason, "write raw reranker logits, without sigmoid")
    prompted = sum(f.prompted for f in plan.data.files)
    if plan.recipe == "reranker":
        return  # its trainer reads no `prompt`
    if 0 < prompted < plan.data.rows:
        reason = f"{prompted} of {plan.data.rows} rows have `prompt`; the others would train on 'None' + query"
        yield error("data.prompt-mixed", reason, "give every row a `prompt` (an empty one counts), or none")
    elif prompted and plan.value("query_instruction_for_retrieval"):
        reason = "every row has its own `prompt`, so query_instruction is not used"
        yield warning("data.prompt-wins", reason, "leave out one of the two")


def _best_share(negatives: int) -> float:
    """Softmax weight of a positive scored 1 among `negatives` scored 0: e / (e + negatives)."""
    return 2.718281828 / (2.718281828 + negatives)


def _batch(plan: LaunchPlan) -> Iterator[Problem]:
    b = plan.batch
    if b.rows and not b.steps_per_epoch:
        reason = (
            f"{b.rows} rows give no step: one takes {b.queries_per_step} "
            f"({plan.value('per_device_train_batch_size')} per process × {plan.world_size}), and a short one is dropped"
        )
        fix = f"set batch_size: {max(b.rows // plan.world_size, 1)} or less, or add rows"
        yield error("batch.zero-steps", reason, fix)
    elif b.dropped * 5 > b.rows:
        reason = f"{b.dropped} of {b.rows} rows are left over in each epoch: a step takes {b.queries_per_step}"
        yield warning("batch.leftover", reason, "a smaller batch_size leaves fewer")


def _distillation(plan: LaunchPlan) -> Iterator[Problem]:
    if plan.on("knowledge_distillation") and not plan.data.fully_scored:
        reason = f"knowledge_distillation needs scores on every row; {plan.data.scored} of {plan.data.rows} have them"
        yield error("distillation.no-scores", reason, "score all rows, or leave the argument out")
    elif 0 < plan.data.scored < plan.data.rows:
        reason = f"only {plan.data.scored} of {plan.data.rows} rows have scores: they are not used"
        yield warning("distillation.partial", reason, "score all rows to distil from them")


def _model(plan: LaunchPlan) -> Iterator[Problem]:
    model, fix = plan.model, "copy the whole model folder to this machine; nothing is downloaded (HF_HUB_OFFLINE=1)"
    if not model.is_dir():
        yield error("model.missing", f"{model}: no such folder", fix)
        return
    if not read_json(model / "config.json").get("model_type"):
        yield error("model.config", f"{model}/config.json: missing, or says no model_type", fix)
    for what, names in (("weights", WEIGHTS), ("tokenizer", TOKENIZERS)):
        found = [model / n for n in names if (model / n).is_file()]
        if not found:
            yield error(f"model.{what}", f"{model}: no {what}; expected one of {', '.join(names)}", fix)
        elif found[0].stat().st_size < 200 and found[0].read_bytes().startswith(b"version https://git-lfs"):
            yield error(f"model.{what}", f"{found[0]}: a Git LFS pointer, not the file", "run `git lfs pull` in it")
    shards = read_json(model / "model.safetensors.index.json").get("weight_map", {})
    absent = sorted({s for s in shards.values() if not (model / s).is_file()}) if isinstance(shards, dict) else []
    if absent:
        yield error("model.weights", f"{model}: its index names {', '.join(absent)}, not there", fix)
    heads = [n for n in ("colbert_linear.pt", "sparse_linear.pt") if not (model / n).is_file()]
    if plan.recipe == "m3-unified" and heads:
        reason = f"{model}: no {' and no '.join(heads)}; the sparse and ColBERT heads start from random numbers"
        yield warning("model.heads", reason, "start from bge-m3, or use `recipe: base`")
    half = half_precision(model)
    if plan.recipe == "m3-unified" and half:
        reason = f"{model}: its weights are {half}; the m3 trainer keeps them so, and its float32 heads do not fit them"
        fix = "save it once as float32: AutoModel.from_pretrained(model, dtype='float32').save_pretrained(model)"
        yield error("model.half", reason, fix)
    if plan.recipe == "m3-unified" and plan.on("use_mrl"):
        yield error("model.mrl", "the m3 trainer does not implement use_mrl", "leave it out, or use `recipe: base`")


def _lengths(plan: LaunchPlan) -> Iterator[Problem]:
    limit = token_limit(plan.model)
    if limit is None:
        return
    for name in ("query_max_len", "passage_max_len"):
        given = int(plan.value(name) or 0)
        if given > limit:
            yield error("model.length", f"{name} is {given}, the model takes {limit} tokens", f"set {name}: {limit}")


def _same_dataset(plan: LaunchPlan) -> Iterator[Problem]:
    if not plan.on("same_dataset_within_batch"):
        return
    for file in plan.data.files:
        if 0 < file.rows < plan.batch.queries_per_step:
            reason = (
                f"{file.path}: {file.rows} rows, fewer than one step's {plan.batch.queries_per_step}: never trained on"
            )
            fix = "merge it with another file, or lower batch_size"
            yield warning("data.small-file", reason, fix)
        if file.path.stem.endswith("no_in_batch_neg"):
            reason = f"{file.path}: its name turns in-batch negatives off for it"
            yield warning("data.no-in-batch-neg", reason, "rename the file if that is not meant")


def _hardware(plan: LaunchPlan) -> Iterator[Problem]:
    if plan.device == "cuda" and plan.machine.gpus < plan.nproc_per_node:
        reason = f"{plan.nproc_per_node} processes, but {plan.machine.gpus} visible GPUs"
        fix = "lower hardware.nproc_per_node, or look at CUDA_VISIBLE_DEVICES and the driver; "
        fix += "to plan for another machine, describe its GPUs: hardware: {nproc_per_node: 8, gpu: {memory: 80}}"
        yield error("gpus.too-few", reason, fix)
    if plan.device == "cpu" and plan.nproc_per_node > plan.machine.cores:
        reason = f"{plan.nproc_per_node} processes share {plan.machine.cores} cores"
        yield warning("cpu.crowded", reason, f"set hardware.nproc_per_node: {plan.machine.cores} or less")
    if not os.access(plan.argv[0], os.X_OK):
        yield error("torchrun.missing", f"{plan.argv[0]}: not there", "install torch into this Python environment")


def _deepspeed(plan: LaunchPlan) -> Iterator[Problem]:
    path = plan.deepspeed
    if path is None:
        return
    if importlib.util.find_spec("deepspeed") is None:
        yield error(
            "deepspeed.missing", "deepspeed is not installed", "pip install deepspeed, or leave `deepspeed:` out"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        names = ", ".join(sorted(f.stem for f in path.parent.glob("*.json"))) or "none there"
        yield error("deepspeed.file", f"{path}: no such file", f"names in that folder: {names}")
        return
    except ValueError as e:
        yield error("deepspeed.json", f"{path}: not valid JSON: {e}")
        return
    sections = {k: v for k, v in settings.items() if isinstance(v, dict)} if isinstance(settings, dict) else {}
    if not isinstance(settings, dict):
        yield error("deepspeed.json", f"{path}: expected a JSON object")
    if plan.recipe == "m3-unified" and sections.get("zero_optimization", {}).get("stage") == 3:
        reason = f"{path}: ZeRO-3 with m3: FlagEmbedding saves the unfilled shards, not the gathered weights"
        yield error("deepspeed.zero3", reason, "use stage0 or stage1")
    scaling = sorted(set(sections.get("bf16", {})) & {"loss_scale", "initial_scale_power", "loss_scale_window"})
    if scaling:
        reason = f"{path}: {', '.join(scaling)} inside bf16; DeepSpeed 0.17 and later refuses that (FlagEmbedding#1487)"
        yield error("deepspeed.bf16", reason, "bf16 needs no loss scaling: remove the keys")


def _dev(plan: LaunchPlan) -> Iterator[Problem]:
    if plan.dev is None:
        return
    if plan.recipe == "reranker":
        yield error("dev.reranker", "`dev:` scores embedding models, not rerankers", "leave it out")
    try:
        read_eval_set(plan.dev)
    except InputError as e:
        yield error("dev.unreadable", f"{e.where}: {e.what}", e.fix or "give a folder as bge-factory writes, or none")


def _output(plan: LaunchPlan, overwrite: bool) -> Iterator[Problem]:
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
    above = _first_existing(output.parent)
    if not os.access(above, os.W_OK):
        yield error("output.read-only", f"{above}: cannot be written", "choose another `output:`")


def _first_existing(path: Path) -> Path:
    return path if path.exists() else _first_existing(path.parent)
