"""Whether the base model is whole, local and fit for the recipe: each check yields Problems."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from launch.base_model import half_precision, read_json, safetensors_size, token_limit
from launch.checkpoints import HEADS
from launch.plan import LaunchPlan
from launch.problems import Problem, error, warning

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.json")


def model(plan: LaunchPlan) -> Iterator[Problem]:
    """The folder: its parts, m3's heads, and what the recipe cannot do with it."""
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
        elif said := _incomplete(found[0]):
            yield error(f"model.{what}", f"{found[0]}: {said}", "get the file itself: `git lfs pull`, or copy it again")
    kind = read_json(model / "tokenizer_config.json").get("tokenizer_class")
    if kind == "TokenizersBackend" and _major("transformers") < 5:
        reason = (
            f"{model}: its tokenizer was saved by transformers 5, and the installed one, older, does not know its class"
        )
        fix = (
            "write PreTrainedTokenizerFast for tokenizer_class in its tokenizer_config.json, or install transformers 5"
        )
        yield error("model.tokenizer", reason, fix)
    index = next((model / n for n in WEIGHTS if n.endswith(".index.json") and (model / n).is_file()), None)
    listed = read_json(index).get("weight_map", {}) if index else {}
    shards = sorted(set(listed.values())) if isinstance(listed, dict) else []
    absent = [s for s in shards if not (model / s).is_file() or _incomplete(model / s)]
    if absent:
        yield error("model.weights", f"{model}: its index names {', '.join(absent)}, not there or incomplete", fix)
    heads = [n for n in HEADS if not (model / n).is_file()]
    if plan.recipe == "m3-unified" and heads:
        reason = f"{model}: no {' and no '.join(heads)}; the sparse and ColBERT heads start from random numbers"
        yield warning("model.heads", reason, "start from bge-m3, or use `recipe: base`")
    for name in HEADS if plan.recipe == "m3-unified" and not heads else ():
        if said := _incomplete(model / name):
            yield error(
                "model.heads", f"{model / name}: {said}", "get the file itself: `git lfs pull`, or copy it again"
            )
    half = half_precision(model)
    if plan.recipe == "m3-unified" and half:
        reason = f"{model}: its weights are {half}; the m3 trainer keeps them so, and its float32 heads do not fit them"
        fix = "save it once as float32: AutoModel.from_pretrained(model, dtype='float32').save_pretrained(model)"
        yield error("model.half", reason, fix)
    if plan.recipe == "m3-unified" and plan.on("use_mrl"):
        yield error("model.mrl", "the m3 trainer does not implement use_mrl", "leave it out, or use `recipe: base`")


def _major(package: str) -> int:
    return int(importlib.metadata.version(package).split(".")[0])


def _incomplete(file: Path) -> str | None:
    """Why a file is not the file that it should be."""
    size = file.stat().st_size
    if size < 200 and file.read_bytes().startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file"
    if file.suffix != ".safetensors":
        return None
    whole = safetensors_size(file)
    if whole is None:
        return "not a safetensors file, or cut short"
    return f"{size} bytes of {whole}; the copy was cut short" if size < whole else None


def sub_batches(plan: LaunchPlan) -> Iterator[Problem]:
    """sub_batch_size with m3: its ColBERT vectors are joined, so every sub-batch must have the same length."""
    size = int(plan.number("sub_batch_size", -1))
    if plan.recipe != "m3-unified" or size == -1 or not plan.on("unified_finetuning"):
        return
    if size < 1:
        yield error("m3.sub-batch", f"sub_batch_size is {size}; the m3 trainer stops at that", "leave it out")
        return
    queries = int(plan.number("per_device_train_batch_size", 1))
    passages = queries * int(plan.number("train_group_size", 1))
    counts = {"query_max_len": queries, "passage_max_len": passages}
    longest = max((int(plan.number(name, 0)) for name, count in counts.items() if count > size), default=0)
    if int(plan.number("pad_to_multiple_of", 0)) < longest:
        reason = (
            f"sub_batch_size {size} cuts the {passages} passages of a step into sub-batches, each padded to its own "
            "longest text; the m3 trainer joins their ColBERT vectors and stops when two differ in length"
        )
        yield error("m3.sub-batch", reason, f"set pad_to_multiple_of: {longest} under `arguments:`, or leave both out")


def lengths(plan: LaunchPlan) -> Iterator[Problem]:
    """query_max_len and passage_max_len against the model's positions, and what sentence-transformers' file says it is for."""
    limit, own = token_limit(plan.model), read_json(plan.model / "sentence_bert_config.json").get("max_seq_length")
    for name in ("query_max_len", "passage_max_len"):
        given = int(plan.number(name, 0))
        if limit and given > limit:
            yield error("model.length", f"{name} is {given}, the model takes {limit} tokens", f"set {name}: {limit}")
        elif isinstance(own, int) and given > own:
            # all-MiniLM-L6-v2 (256) on Cranfield, nDCG@10: 49.5 with 512 tokens, 50.0 with 256 (benchmarks/README.md)
            reason = f"{name} is {given}, and the model's own limit (sentence_bert_config.json) {own}: what is longer may blur its vectors"
            yield warning("model.length", reason, f"set {name}: {own}, and split passages to fit")
