"""After training: what FlagEmbedding does not save, and proof that the tuned folder loads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from launch.base_model import read_json, restore_dropout, stored_pooling, write_json
from launch.plan import LaunchPlan

TOKENIZER_EXTRAS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
ST_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_ST = "sentence_transformers.models."
_LOSS = re.compile(r"'(loss|train_loss)': '?([0-9.eE+-]+|nan|inf)")


class LoadFailed(RuntimeError):
    """The tuned folder does not load, or gives vectors that are not finite."""


def finish(plan: LaunchPlan) -> None:
    """Restores dropout, sentence-transformers' and tokenizer files; removes what was only for the run."""
    shutil.rmtree(plan.cache, ignore_errors=True)
    folders = [plan.output, *sorted(plan.output.glob("checkpoint-*"))]
    for folder in folders:
        if plan.prepared:
            restore_dropout(plan.model, folder)
        restore_files(plan.model, folder, plan.pooling)


def restore_files(model: Path, folder: Path, pooling: str) -> None:
    """Copies what the trainer leaves out from the base model; never over a file of the tuned one.

    Without modules.json sentence-transformers falls back to mean pooling (FlagEmbedding#1326), so
    where the base has none it is written, with the pooling that was trained.
    """
    modules = _modules(model)
    for name in (*ST_FILES, *TOKENIZER_EXTRAS):
        if (model / name).is_file() and not (folder / name).exists():
            shutil.copyfile(model / name, folder / name)
    for sub in (m["path"] for m in modules if m.get("path")):
        if (model / sub).is_dir() and not (folder / sub).exists():
            shutil.copytree(model / sub, folder / sub)
    if not modules:
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        written = [{"idx": i, "name": str(i), "path": p, "type": _ST + kind} for i, (p, kind) in enumerate(kinds)]
        write_json(folder / "modules.json", written)
    if stored_pooling(folder) != pooling:
        _write_pooling(model, folder, pooling)


def _modules(model: Path) -> list[dict[str, str]]:
    try:
        value = json.loads((model / "modules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []


def _write_pooling(model: Path, folder: Path, pooling: str) -> None:
    place = folder / "1_Pooling"
    place.mkdir(exist_ok=True)
    keys = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last_token": "pooling_mode_lasttoken"}
    width = read_json(model / "config.json").get("hidden_size")
    settings = {key: name == pooling for name, key in keys.items()}
    write_json(place / "config.json", {"word_embedding_dimension": width} | settings)


def load_test(folder: Path, recipe: str) -> None:
    """Loads the folder with AutoModel and encodes two texts.

    Raises:
        LoadFailed: it does not load, or a vector or an m3 head is not finite.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        with torch.no_grad():
            states = model(**tokenizer(["a question", "一个问题"], padding=True, return_tensors="pt")).last_hidden_state
        tensors = {"a vector": states}
        if recipe == "m3-unified":
            for name in ("colbert_linear.pt", "sparse_linear.pt"):
                weights = torch.load(folder / name, map_location="cpu", weights_only=True)
                tensors |= {f"{name}, {key}": value for key, value in weights.items()}
    except Exception as e:  # whatever a library raises here means the same: the folder is no model
        raise LoadFailed(f"{folder}: the tuned model does not load: {e}") from e
    for what, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise LoadFailed(f"{folder}: {what} of the tuned model is not finite; lower learning_rate")


def losses(output: Path, log: str) -> dict[str, float | None]:
    """First, last and mean training loss: from the newest trainer_state.json, else from the log.

    With save_strategy `no` the trainer writes no trainer_state.json, only these lines.
    """
    found = [(kind, float(value)) for kind, value in _LOSS.findall(log)]
    each = [value for kind, value in found if kind == "loss"]
    mean = [value for kind, value in found if kind == "train_loss"]
    states = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda p: p.stat().st_mtime)
    history = read_json(states[-1]).get("log_history", []) if states else []
    each = each or [row["loss"] for row in history if "loss" in row]
    return {
        "first": each[0] if each else None,
        "last": each[-1] if each else None,
        "mean": mean[-1] if mean else None,
    }
