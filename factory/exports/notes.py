"""The README.md that lies beside exported files: how to load them, and what the model wants before each text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from factory.workspace import atomic_text

if TYPE_CHECKING:
    from factory.exports.run import Run


def header(configs: Mapping[str, Mapping[str, str]], first: str | None = None) -> str:
    """The YAML header from which `datasets.load_dataset(FOLDER, CONFIG)` knows its files.

    Args:
        configs: for each configuration {split: file}.
        first: the configuration that is loaded when none is named.
    """
    listed = [
        {"config_name": name}
        | {"data_files": [{"split": split, "path": path} for split, path in files.items()]}
        | ({"default": True} if name == first else {})
        for name, files in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': listed}, sort_keys=False)}---\n"


def instructions(run: Run) -> str:
    """What is put before the texts, in words; the exported texts are without."""
    query, passage = run.instruction("query"), run.instruction("passage")
    if not query and not passage:
        return "The model of this run wants nothing before its texts."
    return (
        f"The texts are without instructions. The model of this run wants {query!r} before each query and "
        f"{passage!r} before each passage."
    )


def write_note(run: Run, folder: Path, what: str, head: str = "", embedder: bool = True) -> None:
    """README.md in `folder`: `head`, a title, `what` (Markdown); for an embedder what it wants before its texts."""
    parts = [
        f"{head}# {run.name}: exported by bge-factory",
        what.strip("\n"),
        *([instructions(run)] if embedder else []),
    ]
    with atomic_text(folder / "README.md") as f:
        f.write("\n\n".join(parts) + "\n")
