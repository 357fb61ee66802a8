"""The base model's folder: what it says of itself, and a stand-in for it with another configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from factory.errors import InputError
from factory.workspace import write_json

# What BERT-like and DistilBERT-like configurations call their dropouts, and transformers' default for each.
DROPOUT_KEYS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
_BERT_DEFAULT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_BERT_LIKE = ("bert", "roberta", "xlm-roberta")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if it is missing or is none (the checks report that)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def safetensors_size(path: Path) -> int | None:
    """How many bytes a safetensors file should have: 8 of length, the header, the tensors. None: its header is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        return int(8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def dropout(config: dict[str, Any], key: str) -> float:
    """A model configuration's dropout, transformers' default where the file is silent."""
    default = _BERT_DEFAULT.get(key, 0.0) if config.get("model_type") in _BERT_LIKE else 0.0
    value = config.get(key, default)
    return float(value) if isinstance(value, int | float) else 0.0


def stored_pooling(model: Path) -> str | None:
    """The pooling in sentence-transformers' 1_Pooling/config.json (both of its forms); None if it does not say."""
    config = read_json(model / "1_Pooling" / "config.json")
    if not config:
        return None
    names = {"cls": "cls", "mean": "mean", "lasttoken": "last_token"}
    if isinstance(config.get("pooling_mode"), str):
        return names.get(config["pooling_mode"])
    keys = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last_token"}
    return next((name for key, name in keys.items() if config.get(key)), None)


def hidden_size(model: Path) -> int | None:
    """The length of the model's vectors as its config.json has it (DistilBERT says `dim`, T5 `d_model`)."""
    config = read_json(model / "config.json")
    value = next((config[key] for key in ("hidden_size", "dim", "d_model") if key in config), None)
    return value if isinstance(value, int) else None


def token_limit(model: Path) -> int | None:
    """How many tokens the model has positions for, special ones included; None where config.json does not say."""
    config = read_json(model / "config.json")
    limit = config.get("max_position_embeddings")
    if not isinstance(limit, int):
        return None
    if config.get("model_type") in ("roberta", "xlm-roberta"):
        limit -= config.get("pad_token_id", 1) + 1  # their positions start after the padding index
    return limit


def half_precision(model: Path) -> str | None:
    """The 16-bit type that the model's config.json names for its weights, if it does."""
    config = read_json(model / "config.json")
    value = config.get("dtype") or config.get("torch_dtype")
    return value if value in ("float16", "bfloat16") else None


def overrides(model: Path, device: str) -> dict[str, Any]:
    """What must differ from the model's config.json for training; empty if it can be used as it is.

    On a CPU every dropout is 0: a step then takes half the time or less (seen). Half-precision weights are
    to be loaded as float32: transformers 5 keeps the type that config.json names, and Adam's small
    steps are lost in 16 bits. (The m3 trainer ignores the name and keeps the file's type: refused.)
    """
    config = read_json(model / "config.json")
    off = {key: 0.0 for key in DROPOUT_KEYS if device == "cpu" and dropout(config, key)}
    half = {key: "float32" for key in ("dtype", "torch_dtype") if key in config and half_precision(model)}
    return off | half


def prepare(model: Path, prepared: Path, changed: dict[str, Any]) -> None:
    """Makes `prepared`: links to the model's files, and its config.json with `changed` in it.

    FlagEmbedding loads the model by its folder alone and ignores --config_name, so another
    folder is the only way to another configuration.
    """
    remove_prepared(prepared)
    prepared.mkdir(parents=True)
    config = read_json(model / "config.json")
    for file in model.iterdir():
        if file.name != "config.json":
            (prepared / file.name).symlink_to(file.resolve())
    write_json(prepared / "config.json", config | changed)


def remove_prepared(prepared: Path) -> None:
    """Removes what `prepare` made and nothing else. InputError if something else lies in it."""
    if not prepared.exists():
        return
    files = list(prepared.iterdir())
    foreign = [f for f in files if not f.is_symlink() and f.name != "config.json"]
    if foreign:
        raise InputError(f"holds {foreign[0].name}, which bge-launch did not put there", where=prepared, fix="move it")
    for file in files:
        file.unlink()
    prepared.rmdir()


def restore_dropout(model: Path, folder: Path) -> None:
    """Puts the base model's dropouts back into the config.json of a folder trained with them off."""
    config, original = read_json(folder / "config.json"), read_json(model / "config.json")
    if not config:
        return
    for key in DROPOUT_KEYS:
        if key in original:
            config[key] = original[key]
        elif dropout(original, key):
            config.pop(key, None)  # silent in the base: transformers' default again
    write_json(folder / "config.json", config)
