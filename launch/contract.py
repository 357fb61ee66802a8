"""Which arguments the *installed* trainer accepts, and what became of those that it no longer does.

HfArgumentParser stops on any unknown argument, and which exist differs between transformers 4
and 5. So the names come from the installed sources (signature.py), never from a list kept here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from launch.problems import Problem, error
from launch.signature import ENTRIES, Signature, signature

MODULES = ENTRIES

# Old name → new name, where only the name changed.
RENAMED = {
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "normlized": "normalize_embeddings",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "same_task_within_batch": "same_dataset_within_batch",
}
# Old name → why it can be left out.
DROPPED = {
    "overwrite_output_dir": "no longer there; use `bge-launch run --overwrite`, which keeps the old folder",
    "save_safetensors": "the trainer now always writes safetensors",
    "do_train": "FlagEmbedding always trains, and with it refuses the folder that already holds launch.log",
}
# Arguments that bge-launch decides, and the key of launch.yaml to set instead.
OWNED = {
    "model_name_or_path": "model",
    "train_data": "train_data",
    "output_dir": "output",
    "deepspeed": "deepspeed",
    "sentence_pooling_method": "pooling",
    "query_instruction_for_retrieval": "query_instruction",
    "passage_instruction_for_retrieval": "passage_instruction",
    "query_instruction_for_rerank": "query_instruction",
    "passage_instruction_for_rerank": "passage_instruction",
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    "train_group_size": "train_group_size",
    "query_max_len": "query_max_len",
    "passage_max_len": "passage_max_len",
    "temperature": "temperature",
    "matryoshka_dims": "matryoshka_dims",
    "seed": "seed",
    "use_cpu": "hardware.device",
    "ddp_backend": "hardware.device",
    "cache_path": "output",
}


@dataclass(frozen=True)
class Contract:
    """The names that a trainer accepts, and with `signature` also which values."""

    names: frozenset[str]
    signature: Signature | None = None


@dataclass(frozen=True)
class Translated:
    """Extra arguments under names that the installed trainer accepts."""

    arguments: dict[str, Any]
    env: dict[str, str]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def installed(recipe: str) -> Contract:
    """The contract of the installed FlagEmbedding and transformers. InputError if they are not there."""
    found = signature(recipe)
    return Contract(found.names, found)


def refusal(contract: Contract, words: list[str]) -> list[str]:
    """What the trainer's own parser would say against a command line; empty if it takes it."""
    return contract.signature.refusal(words) if contract.signature else []


def translate(arguments: dict[str, Any], names: frozenset[str], recipe: str = "base") -> Translated:
    """`arguments:` of launch.yaml in the installed trainer's words; every problem, not only the first."""
    known: dict[str, Any] = {}
    env: dict[str, str] = {}
    notes: list[str] = []
    problems: list[Problem] = []
    for given, value in arguments.items():
        name = given.lstrip("-").replace("-", "_")
        if name in DROPPED:
            notes.append(f"arguments.{given} is left out: {DROPPED[name]}")
            continue
        if name not in names and name == "logging_dir":
            env["TENSORBOARD_LOGGING_DIR"] = str(value)
            notes.append(f"arguments.{given} is gone from transformers 5: set as TENSORBOARD_LOGGING_DIR instead")
            continue
        new = _renamed(name, value, names)
        if new != name:
            notes.append(f"arguments.{given} is called {new} in the installed trainer: translated")
        if new in OWNED:
            fix = f"set `{OWNED[new]}:` of launch.yaml instead"
            problems.append(error("argument.owned", f"arguments.{given}: bge-launch sets {new} itself", fix))
        elif new == "resume_from_checkpoint":
            fix = "leave it out, and use `bge-launch resume`, which takes the newest whole checkpoint"
            problems.append(error("argument.refused", f"arguments.{given}: bge-launch chooses the checkpoint", fix))
        elif new in names:
            known[new] = value
        else:
            near = difflib.get_close_matches(new, names, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]!r}?" if near else f"see `python -m {MODULES[recipe]} --help`"
            reason = f"arguments.{given}: the installed trainer has no such argument"
            problems.append(error("argument.unknown", reason, fix))
    return Translated(known, env, tuple(notes), tuple(problems))


def warmup_name(names: frozenset[str]) -> str:
    """Where a warm-up *fraction* goes: transformers 5 takes it as a float below 1 in warmup_steps, which is whole in 4.

    warmup_ratio alone does not tell: sentence-transformers keeps it with transformers 5, and warns. logging_dir went with it.
    """
    return "warmup_ratio" if {"warmup_ratio", "logging_dir"} <= names else "warmup_steps"


def _renamed(name: str, value: Any, names: frozenset[str]) -> str:
    if name == "warmup_ratio":
        return warmup_name(names)
    if name == "warmup_steps" and _is_fraction(value):
        return warmup_name(names)
    return RENAMED.get(name, name) if name not in names else name


def _is_fraction(value: Any) -> bool:
    try:
        return 0 < float(value) < 1
    except (TypeError, ValueError):
        return False
