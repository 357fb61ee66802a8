"""After training: what FlagEmbedding does not save, and proof that the tuned folder loads."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from factory.workspace import write_json
from launch.base_model import read_json, restore_dropout, stored_pooling
from launch.checkpoints import HEADS
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
TOKENIZER = "tokenizer_config.json"
ST_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_ST = "sentence_transformers.models."
TEXTS = ("What is a GPU?", "一个问题，比第一个要长一些")
TOLERANCE = 1e-4
# Options of `bge-factory evaluate`, and the trainer's arguments that have their values.
DEV_OPTIONS = {
    "--query-instruction": "query_instruction_for_retrieval",
    "--passage-instruction": "passage_instruction_for_retrieval",
    "--query-max-length": "query_max_len",
    "--passage-max-length": "passage_max_len",
}
_LOSS = re.compile(r"'(loss|train_loss)': '?(-?inf|nan|[0-9.eE+-]+)")


class LoadFailed(RuntimeError):
    """The tuned folder does not load, or does not give the vectors that were trained."""


def finish(plan: LaunchPlan) -> None:
    """Restores dropout, sentence-transformers' and tokenizer files; removes what was only for the run."""
    shutil.rmtree(plan.cache, ignore_errors=True)
    folders = [plan.output, *sorted(plan.output.glob("checkpoint-*"))]
    for folder in folders:
        if plan.prepared:
            restore_dropout(plan.model, folder)
        if (plan.model / TOKENIZER).is_file():
            # No recipe changes the tokenizer, but transformers 5 gives it a class that 4 cannot load.
            shutil.copyfile(plan.model / TOKENIZER, folder / TOKENIZER)
        if plan.recipe == "reranker":
            restore_reranker_files(plan.model, folder)
        else:
            restore_files(plan.model, folder, plan.pooling)
        if plan.recipe == "m3-unified":
            _copy(plan.model, folder, HEADS)  # without unified_finetuning they are not trained, and not saved


def restore_reranker_files(model: Path, folder: Path) -> None:
    """The tokenizer's files, and sentence-transformers' own if the base is its CrossEncoder.

    An embedder's files stay behind: with its modules.json sentence-transformers would look for a vector.
    """
    cross = read_json(model / "config_sentence_transformers.json").get("model_type") == "CrossEncoder"
    _copy(model, folder, (*TOKENIZER_EXTRAS, *(ST_FILES if cross else ())))


def restore_files(model: Path, folder: Path, pooling: str) -> None:
    """Copies what the trainer leaves out from the base model; never over a file of the tuned one.

    Without modules.json sentence-transformers falls back to mean pooling (FlagEmbedding#1326), so
    where the base has none it is written, with the pooling that was trained.
    """
    modules = _modules(model)
    _copy(model, folder, (*ST_FILES, *TOKENIZER_EXTRAS))
    for sub in (m["path"] for m in modules if m.get("path")):
        if (model / sub).is_dir() and not (folder / sub).exists():
            shutil.copytree(model / sub, folder / sub)
    if not (folder / "modules.json").exists():
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        written = [{"idx": i, "name": str(i), "path": p, "type": _ST + kind} for i, (p, kind) in enumerate(kinds)]
        write_json(folder / "modules.json", written)
    if stored_pooling(folder) != pooling:
        _write_pooling(model, folder, pooling)


def _copy(model: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (model / name).is_file() and not (folder / name).exists():
            shutil.copyfile(model / name, folder / name)


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


def prove(plan: LaunchPlan) -> dict[str, float | None]:
    """Loads the tuned folder as its users will, and tells how far each part is from the base model.

    Returns:
        The relative change of the encoder, and with m3 of each head: |tuned - base| / |base|; None
        where the base has no such part.

    Raises:
        LoadFailed: it does not load, a number is not finite, or sentence-transformers gives other vectors.
    """
    load_test(plan.output, plan.recipe)
    if plan.recipe != "reranker":
        same_vectors(plan.output, plan.pooling)
    changes = changed(plan.model, plan.output, plan.recipe)
    shown = [f"{name} {'new' if share is None else f'{share:.2%}'}" for name, share in changes.items()]
    print(f"changed by: {', '.join(shown)}", flush=True)
    frozen = {"encoder"} if plan.on("fix_encoder") else set()
    for name in sorted(name for name, share in changes.items() if share == 0 and name not in frozen):
        print(f"warning: {name} is as in the base model: nothing trained it [finish.untouched]", file=sys.stderr)
    return changes


def load_test(folder: Path, recipe: str) -> None:
    """Loads the folder with transformers and runs it on two texts; a reranker on two pairs.

    Raises:
        LoadFailed: it does not load, lacks a tensor, or a vector, a score or an m3 head is not finite.
    """
    import torch
    from transformers import AutoTokenizer

    second = list(TEXTS[::-1]) if recipe == "reranker" else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = _class(recipe).from_pretrained(
            folder, local_files_only=True, dtype="float32", output_loading_info=True
        )
        model.eval()
        with torch.no_grad():
            tensors = {"an output": model(**tokenizer(list(TEXTS), second, padding=True, return_tensors="pt"))[0]}
        if recipe == "m3-unified":
            for name in HEADS:
                weights = torch.load(folder / name, map_location="cpu", weights_only=True)
                tensors |= {f"{name}, {key}": value for key, value in weights.items()}
    except Exception as e:  # whatever a library raises here means the same: the folder is no model
        raise LoadFailed(f"{folder}: the tuned model does not load: {e}") from e
    if lacking := sorted(info["missing_keys"]):  # transformers would go on with random numbers there
        raise LoadFailed(f"{folder}: the tuned model lacks {len(lacking)} of its tensors, such as {lacking[0]}")
    for what, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise LoadFailed(f"{folder}: {what} of the tuned model is not finite; lower learning_rate")


def same_vectors(folder: Path, pooling: str) -> None:
    """Compares sentence-transformers with the encoder and `pooling`, which is how FlagEmbedding uses the folder.

    Raises:
        LoadFailed: it does not load there, or a number of a normalised vector differs by more than TOLERANCE.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
        with torch.no_grad():
            states = _model(folder, "base")(**batch)[0]
        there = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})
        theirs = there.encode(list(TEXTS), prompt="", normalize_embeddings=True, convert_to_tensor=True)
    except Exception as e:
        raise LoadFailed(f"{folder}: the tuned model does not load in sentence-transformers: {e}") from e
    mask = batch["attention_mask"]
    if pooling == "cls":
        ours = states[:, 0]
    elif pooling == "mean":
        ours = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)  # right with padding on either side
        ours = states[torch.arange(len(mask)), last]
    ours = torch.nn.functional.normalize(ours, dim=-1)
    if ours.shape != theirs.shape or not bool((ours - theirs.cpu()).abs().max() <= TOLERANCE):
        off = f"by {(ours - theirs.cpu()).abs().max():.2g}" if ours.shape == theirs.shape else "in length"
        reason = f"{folder}: sentence-transformers gives vectors that differ {off} from those of {pooling} pooling"
        raise LoadFailed(f"{reason}; look at modules.json and 1_Pooling/config.json, which come from the base model")


def changed(base: Path, tuned: Path, recipe: str) -> dict[str, float | None]:
    """|tuned - base| / |base|, over all numbers of the encoder, and of each m3 head."""
    import torch

    pairs: dict[str, tuple[Any, Any]] = {"encoder": tuple(_model(f, recipe).state_dict() for f in (base, tuned))}
    for name in HEADS if recipe == "m3-unified" else ():
        there = [torch.load(f / name, weights_only=True) if (f / name).exists() else {} for f in (base, tuned)]
        pairs[name.removesuffix(".pt")] = (there[0], there[1])
    shares: dict[str, float | None] = {}
    for part, (before, after) in pairs.items():
        both = [n for n in before.keys() & after.keys() if before[n].shape == after[n].shape]
        moved = sum(float((after[n].double() - before[n].double()).square().sum()) for n in both)
        size = sum(float(before[n].double().square().sum()) for n in both)
        shares[part] = (moved / size) ** 0.5 if size else None
    return shares


def _class(recipe: str) -> Any:
    from transformers import AutoModel, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if recipe == "reranker" else AutoModel


def _model(folder: Path, recipe: str) -> Any:
    return _class(recipe).from_pretrained(folder, local_files_only=True, dtype="float32").eval()


def score(plan: LaunchPlan) -> dict[str, Any] | None:
    """Base and tuned on `dev:`, its table printed; the figures, or why there are none. None without `dev:`.

    In a process of its own, so that its memory is free again, and a failure there is no failed training.
    """
    if plan.dev is None:
        return None
    out = plan.output / "dev"
    words = [sys.executable, "-m", "factory.cli", "evaluate", plan.dev, "--out", out]
    words += ["--model", f"base={plan.model}", "--model", f"tuned={plan.output}", "--device", plan.device]
    for name, argument in DEV_OPTIONS.items():
        value = plan.value(argument)
        words += [name, value] if value is not None else []
    print(f"scoring base and tuned on {plan.dev}", flush=True)
    code = subprocess.run([str(w) for w in words], env=os.environ | plan.env, check=False).returncode
    if code:
        print(f"warning: the dev set was not scored (exit code {code}) [finish.dev]", file=sys.stderr)
        return {"error": f"exit code {code}"}
    return read_json(out / "evaluation.json")


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
    told = {"first": each[:1], "last": each[-1:], "mean": mean[-1:]}
    return {name: value[0] if value and math.isfinite(value[0]) else None for name, value in told.items()}
