"""The arguments of a training run, each with the reason for its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from launch.base_model import hidden_size
from launch.config import Frozen, LaunchConfig
from launch.contract import warmup_name

SHORT_RUN = 1000  # updates; below, only the final model is saved
LOGGED_EACH_STEP = 200  # updates; up to here each one is logged
MINI_BATCH = 32  # texts; CachedMultipleNegativesRankingLoss's own default
CHECKPOINTED = {
    "m3-unified": "bge-m3 at 512 tokens and more would not fit otherwise",
    "reranker": "bge-reranker-v2-m3, as large as bge-m3, reads query and passage together",
}
REENTRANT = {
    "m3-unified": "the encoder runs twice a step, which reentrant checkpointing under DDP does not allow",
    "reranker": "DDP looks for unused parameters, which reentrant checkpointing does not allow",
}
Precision = Literal["fp32", "bf16", "fp16"]


Row = tuple[str, Any, str]  # an argument's name, value and reason


class Argument(Frozen):
    """One command-line argument: its name, its words, and why."""

    name: str
    words: tuple[str, ...]
    reason: str


class Situation(Frozen):
    """What the arguments depend on beside launch.yaml."""

    model: Path
    deepspeed: Path | None
    cache: Path
    data: tuple[Path, ...]
    pooling: str
    device: Literal["cpu", "cuda"]
    world_size: int
    precision: Precision
    fully_scored: bool
    trackers: tuple[str, ...]
    names: frozenset[str]


def words(value: Any) -> tuple[str, ...]:
    """A YAML value as command-line words: a list gives several, a mapping gives JSON."""
    if isinstance(value, list | tuple):
        return tuple(w for item in value for w in words(item))
    return (json.dumps(value),) if isinstance(value, dict) else (str(value),)


def recipe_arguments(config: LaunchConfig, at: Situation, updates: int) -> list[Argument]:
    """The recipe's arguments, then those of `arguments:`, which win; null there leaves one out.

    Args:
        config: launch.yaml; its `arguments` already translated for the installed trainer.
        at: machine, model and data.
        updates: optimizer updates in the whole run.
    """
    own: dict[str, Callable[[LaunchConfig, Situation], list[Row]]] = {
        "base": _embedder,
        "m3-unified": _embedder,
        "matryoshka": _matryoshka,
        "reranker": _reranker,
    }
    rows = _data(config, at) + own[config.recipe](config, at) + _training(config, at)
    rows += _logging(at, updates) + _hardware(config, at)
    if config.recipe == "m3-unified":
        rows += _m3(at)
    chosen = {name: (value, reason) for name, value, reason in rows if name not in config.arguments}
    if "fp16" in config.arguments or "bf16" in config.arguments:
        chosen = {name: v for name, v in chosen.items() if name not in ("fp16", "bf16")}
    chosen |= {name: (v, "launch.yaml, arguments") for name, v in config.arguments.items() if v is not None}
    return [Argument(name=name, words=words(value), reason=reason) for name, (value, reason) in chosen.items()]


def default_dims(width: int) -> tuple[int, ...]:
    """The whole vector, a half, a quarter, …: at most five lengths, and below the whole none under 64."""
    halves = (width >> k for k in range(1, 5) if width % 2**k == 0)
    return (width, *(dim for dim in halves if dim >= 64))


def dims(config: LaunchConfig) -> tuple[int, ...] | None:
    """The lengths to train for: launch.yaml's, else with `recipe: matryoshka` the defaults; None without any."""
    if config.recipe != "matryoshka" or config.matryoshka_dims:
        return config.matryoshka_dims
    width = hidden_size(config.model)
    return default_dims(width) if width else None


def _data(config: LaunchConfig, at: Situation) -> list[Row]:
    pair = " a pair of query and passage is as long as both together;" if config.recipe == "reranker" else ""
    return [
        ("model_name_or_path", at.model, "launch.yaml, model"),
        ("train_data", at.data, "launch.yaml, train_data"),
        ("cache_path", at.cache, "keeps the data set's Arrow copy out of ~/.cache; removed at the end"),
        ("output_dir", config.output, "launch.yaml, output"),
        ("train_group_size", config.train_group_size, "1 positive and the rest negatives for each query"),
        ("query_max_len", config.query_max_len, f"tokens;{pair} longer queries are cut"),
        ("passage_max_len", config.passage_max_len, f"tokens;{pair} longer passages are cut"),
    ]


def _instructions(config: LaunchConfig, end: str, reason: str) -> list[Row]:
    return [
        (f"query_instruction_for_{end}", config.query_instruction, reason),
        ("query_instruction_format", "{}{}", "instruction, then text; nothing between"),
        (f"passage_instruction_for_{end}", config.passage_instruction, "explicit, like the query's"),
        ("passage_instruction_format", "{}{}", "instruction, then text; nothing between"),
    ]


def _embedder(config: LaunchConfig, at: Situation) -> list[Row]:
    prefix = "always passed, even when empty: without it same_dataset_within_batch trains on 'None' + query"
    rows: list[Row] = [
        *_instructions(config, "retrieval", prefix),
        ("sentence_pooling_method", at.pooling, "as the base model was trained, or launch.yaml, pooling"),
        ("normalize_embeddings", True, "the loss then works on cosines, which the temperature is made for"),
        ("temperature", config.temperature, "launch.yaml; 0.02 is FlagEmbedding's"),
    ]
    if config.matryoshka_dims:
        rows.append(("use_mrl", True, "launch.yaml, matryoshka_dims: a cut vector is to be as good as it can"))
        rows.append(("mrl_dims", config.matryoshka_dims, "the loss is the mean of the losses at these lengths"))
    return rows


def _matryoshka(config: LaunchConfig, at: Situation) -> list[Row]:
    small = min(config.batch_size, MINI_BATCH)
    halves = "launch.yaml, or the model's width and its halves; the loss is the mean of the losses at these lengths"
    rows: list[Row] = [
        ("query_instruction_for_retrieval", config.query_instruction, "stands before every query, nothing between"),
        ("passage_instruction_for_retrieval", config.passage_instruction, "stands before every passage"),
        ("sentence_pooling_method", at.pooling, "as the base model was trained, or launch.yaml, pooling"),
        ("temperature", config.temperature, "launch.yaml; the loss's scale is 1 / temperature"),
        ("mini_batch_size", small, "texts in the encoder at a time; fewer need less memory and give the same gradient"),
    ]
    if config.matryoshka_dims:
        rows.append(("matryoshka_dims", config.matryoshka_dims, halves))
    return rows


def _reranker(config: LaunchConfig, at: Situation) -> list[Row]:
    rows = _instructions(config, "rerank", "always passed, even when empty")
    if at.fully_scored:
        reason = "every row has teacher scores; the loss is the sum of the label's and the teacher's"
        return [*rows, ("knowledge_distillation", True, reason)]
    return [*rows, ("knowledge_distillation", False, "not every row has pos_scores and neg_scores")]


def _training(config: LaunchConfig, at: Situation) -> list[Row]:
    drop = "a short last batch has fewer negatives and can stall cross-device gathering"
    if config.recipe == "reranker":
        drop = "a short last batch would be divided into groups that mix several queries"
    return [
        ("num_train_epochs", config.epochs, "launch.yaml, epochs"),
        ("learning_rate", config.learning_rate, "launch.yaml"),
        (warmup_name(at.names), 0.1, "a tenth of the updates: Adam's first steps are noisy"),
        ("per_device_train_batch_size", config.batch_size, "launch.yaml, batch_size"),
        ("dataloader_drop_last", True, drop),
        ("seed", config.seed, "launch.yaml"),
    ]


def _logging(at: Situation, updates: int) -> list[Row]:
    every = 1 if updates <= LOGGED_EACH_STEP else 10
    rows: list[Row] = [
        ("logging_steps", every, f"{updates} updates in all"),
        ("report_to", list(at.trackers) or "none", "curves as local files, nothing leaves the machine"),
    ]
    if updates < SHORT_RUN:
        reason = f"under {SHORT_RUN} updates: only the final model, which is saved in any case"
        return [*rows, ("save_strategy", "no", reason)]
    return [
        *rows,
        ("save_strategy", "steps", f"{SHORT_RUN} updates or more: progress is kept"),
        ("save_steps", max(updates // 10, 500), "about ten times in the run"),
        ("save_total_limit", 2, "a checkpoint is three times the model's size: weights and Adam's two moments"),
    ]


def _hardware(config: LaunchConfig, at: Situation) -> list[Row]:
    rows: list[Row] = []
    if at.device == "cpu":
        rows.append(("use_cpu", True, "no GPU is used"))
        if at.world_size > 1:
            rows.append(("ddp_backend", "gloo", "the backend that runs on CPUs"))
    elif at.precision != "fp32":
        why = "same range as fp32, no loss scaling" if at.precision == "bf16" else "this GPU has no bf16"
        rows.append((at.precision, True, f"half the memory, tensor cores; {why}"))
    if at.world_size > 1 and config.recipe != "reranker":
        rows.append(("negatives_cross_device", True, "every process's passages are negatives for every query"))
    if at.device == "cuda" and config.recipe in CHECKPOINTED:
        rows.append(("gradient_checkpointing", True, CHECKPOINTED[config.recipe]))
        rows.append(("gradient_checkpointing_kwargs", {"use_reentrant": False}, REENTRANT[config.recipe]))
    if at.deepspeed:
        rows.append(("deepspeed", at.deepspeed, "launch.yaml, deepspeed"))
    return rows


def _m3(at: Situation) -> list[Row]:
    rows: list[Row] = [
        ("unified_finetuning", True, "trains the dense, sparse and ColBERT heads together"),
        ("use_self_distill", True, "the sum of the three heads teaches each of them"),
        (
            "self_distill_start_step",
            0,
            "the base model's heads are good teachers at once (from the second step: the trainer asks for step > this)",
        ),
    ]
    if at.fully_scored:
        rows.append(("knowledge_distillation", True, "every row has teacher scores"))
        rows.append(
            ("kd_loss_type", "m3_kd_loss", "the loss that keeps in-batch negatives beside the teacher's scores")
        )
    else:
        rows.append(("knowledge_distillation", False, "not every row has pos_scores and neg_scores"))
    return rows
