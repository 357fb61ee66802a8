"""What can be told of a model folder without loading it: is it complete, how does it pool, which one is it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from factory.records import InputError

TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MEGABYTE = 1 << 20


def model_fingerprint(path: str | Path) -> str:
    """SHA-256 of a model's files: names, sizes and content; a folder or a single file (GGUF).

    A file up to 1 MB counts in full. Of a larger one the first and last megabyte count and 256 samples of
    64 kB spread evenly between: 18 MB are read of each, whatever its size. The samples matter: a model whose
    adapters were merged may be the same as its base at both ends of the file.

    Raises:
        InputError: no such file or folder.
    """
    root = Path(path)
    if not root.exists():
        raise InputError("no such model", where=root, fix="give the path of a local folder or file")
    if root.is_file():
        files = [(root.name, root)]
    else:
        found = (Path(base) / name for base, _, names in os.walk(root, followlinks=True) for name in names)
        files = sorted((f.relative_to(root).as_posix(), f) for f in found)
        files = [(name, f) for name, f in files if not any(part.startswith(".") for part in name.split("/"))]
    digest = hashlib.sha256()
    for name, file in files:
        size = file.stat().st_size
        digest.update(json.dumps([name, size]).encode())
        with open(file, "rb") as f:
            if size <= MEGABYTE:
                digest.update(f.read())
                continue
            digest.update(f.read(MEGABYTE))
            for i in range(1, 257):
                f.seek(size * i // 257)
                digest.update(f.read(MEGABYTE // 16))
            f.seek(-MEGABYTE, os.SEEK_END)
            digest.update(f.read())
    return digest.hexdigest()


def check_model_folder(folder: Path) -> None:
    """See that a model folder is complete.

    Raises:
        InputError: no such folder; no configuration, weights or tokenizer in it; weights that git-lfs did not fetch.
    """
    if not folder.is_dir():
        raise InputError(
            "no such model folder",
            where=folder,
            fix="download the model and give its folder: names of a hub are not looked up, nothing is fetched",
        )
    inner = _transformer_folder(folder)
    needed = {
        "config.json": (inner / "config.json").is_file(),
        "the tokenizer (tokenizer.json, sentencepiece.bpe.model, vocab.txt, …)": any(
            (inner / t).is_file() for t in TOKENIZERS
        ),
        "the weights (model.safetensors or pytorch_model.bin)": any(
            (inner / w).is_file() or (inner / f"{w}.index.json").is_file() for w in WEIGHTS
        ),
    }
    missing = [name for name, there in needed.items() if not there]
    for w in WEIGHTS:
        if (inner / f"{w}.index.json").is_file():
            shards = set(read_json(inner / f"{w}.index.json").get("weight_map", {}).values())
            missing += sorted(s for s in shards if not (inner / s).is_file())
    if missing:
        raise InputError(
            f"the model folder is not complete; missing: {'; '.join(missing)}",
            where=inner,
            fix="copy the model again, whole",
        )
    for w in WEIGHTS:
        if (inner / w).is_file() and (inner / w).open("rb").read(40).startswith(b"version https://git-lfs"):
            raise InputError(
                "is a git-lfs pointer, not the weights", where=inner / w, fix="run `git lfs pull` in the model folder"
            )


def pooling_of(folder: Path) -> str | None:
    """ "cls" or "mean" if that (and a normalisation) is all that comes after the transformer, else None.

    A folder without modules.json says nothing: "cls", which is FlagEmbedding's own default.
    """
    if not (folder / "modules.json").exists():
        return "cls"
    modules = read_json(folder / "modules.json")
    kinds = [str(m["type"]).rsplit(".", 1)[-1] for m in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0]["path"]:
        return None
    config = read_json(folder / modules[1]["path"] / "config.json")
    modes = [
        name.removeprefix("pooling_mode_")
        for name, on in config.items()
        if name.startswith("pooling_mode_") and on is True
    ]
    if "pooling_mode" in config:  # written by sentence-transformers since version 5
        modes = [config["pooling_mode"]] if isinstance(config["pooling_mode"], str) else list(config["pooling_mode"])
    return (
        {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean"}.get(modes[0])
        if len(modes) == 1
        else None
    )


def write_mean_pooling(folder: Path, width: int, max_length: int) -> None:
    """sentence-transformers' files for mean pooling and normalisation, for a model of `width` dimensions that comes without."""
    stages = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(stages)
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "1_Pooling/config.json": pooling,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def position_limit(folder: Path) -> int | None:
    """The longest input in tokens; RoBERTa's kin spend the first positions on the padding's index. None: no limit."""
    config = read_json(_transformer_folder(folder) / "config.json")
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    return positions - config.get("pad_token_id", 1) - 1 if "roberta" in str(config.get("model_type")) else positions


def architecture_of(folder: Path) -> tuple[bool, int]:
    """(is it a sequence classifier, how many outputs it has)."""
    config = read_json(_transformer_folder(folder) / "config.json")
    classifier = any(str(a).endswith("ForSequenceClassification") for a in config.get("architectures") or [])
    return classifier, len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


def read_json(path: Path) -> Any:
    """A JSON file; an InputError names the file if it is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError("no such file", where=path) from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"not valid JSON: {e}", where=path) from e


def _transformer_folder(folder: Path) -> Path:
    """Where config.json and the weights lie: the folder, or the first module's (older sentence-transformers)."""
    if not (folder / "modules.json").exists():
        return folder
    modules = read_json(folder / "modules.json")
    return folder / modules[0]["path"] if isinstance(modules, list) and modules else folder
