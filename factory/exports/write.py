"""From a run's folder to a folder of exports, all or nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from factory.exports import FORMATS
from factory.exports.run import Run
from factory.folders import whole_folder
from factory.records import InputError

# The module of each format, and its function. Loaded when asked for: one format's libraries are not another's.
WRITERS = {
    "sentence-transformers": ("sentence_transformers", "write"),
    "flagembedding-lengths": ("flagembedding", "write_lengths"),
    "flagembedding-reranker": ("flagembedding", "write_reranker"),
    "ms-swift": ("ms_swift", "write"),
    "llama-index": ("llama_index", "write"),
    "beir": ("beir", "write"),
    "mteb": ("mteb", "write"),
    "datasets": ("hf_datasets", "write"),
}


def export(
    run_folder: Path,
    formats: Sequence[str],
    out: Path,
    say: Callable[[str], None],
    model: Path | None = None,
) -> dict[str, dict[str, int]]:
    """Write a run in each of `formats` to a folder of that name in `out`; the rows of each file.

    Nothing is in `out` until all is written.

    Args:
        model: whose tokenizer counts for flagembedding-lengths; by default the run's model.

    Raises:
        InputError: an unknown format; no finished run; `out` is not empty; a training row holds held-out text; the disk
            is full.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise InputError(
            f"unknown format {unknown[0]!r}" if unknown else "no format is given",
            where="--to",
            fix="choose from " + ", ".join(FORMATS),
        )
    run = Run(run_folder)
    counts: dict[str, dict[str, int]] = {}
    with whole_folder(out) as folder:
        for name in dict.fromkeys(formats):
            module, function = WRITERS[name]
            writer = getattr(importlib.import_module(f"factory.exports.{module}"), function)
            (folder / name).mkdir()
            more = {"model": model} if name == "flagembedding-lengths" else {}
            counts[name] = writer(run, folder / name, **more)
            say(f"{name}: " + ", ".join(f"{file} {rows:,}" for file, rows in counts[name].items()))
    return counts
