"""The columns of a training file as the `datasets` library infers them: names, and what kind of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# datasets, packaged_modules/json: a file's columns and their types come from its first chunk; a column that
# a later chunk adds, or a decimal in a column of whole numbers, then stops the loading (DatasetGenerationError).
FIRST_CHUNK = 10 << 20  # bytes
SCORES = ("pos_scores", "neg_scores")
KINDS = ("text", "whole", "decimal", "fraction")  # the later ones win; 5.0 is a decimal, 5.5 a fraction
TYPES = 3  # different values of `type` that are kept: more than one is what matters


class Columns:
    """Sees rows of one file in order. `early` and `after`: column → its kind in the first chunk, and beyond it."""

    def __init__(self) -> None:
        self.early: dict[str, str] = {}
        self.after: dict[str, str] = {}
        self.types: dict[str | None, None] = {}  # values of `type`
        self._open = True  # whether a further row of known columns can change a kind

    def see(self, row: dict[str, Any], offset: int) -> None:
        """One valid row, and the place of its first byte in the file."""
        if len(self.types) < TYPES:
            self.types[row.get("type")] = None
        kinds = self.early if offset < FIRST_CHUNK else self.after
        if not self._open and row.keys() <= kinds.keys():
            return
        for name, value in row.items():
            if value is not None:
                kinds[name] = max(kinds.get(name, "text"), _kind(value) if name in SCORES else "text", key=KINDS.index)
        self._open = any(kinds.get(name, "fraction") != "fraction" for name in SCORES)


def joined(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    """Of several parts of a file, each column's kind."""
    kinds: dict[str, str] = {}
    for part in parts:
        kinds |= {name: max(kinds.get(name, "text"), kind, key=KINDS.index) for name, kind in part.items()}
    return kinds


def kinds_of(early: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Column → "whole" or "decimal" for scores, else "text", as the loader takes them."""
    return {name: "decimal" if kind == "fraction" else kind for name, kind in (after | early).items()}


def late(early: dict[str, str], after: dict[str, str]) -> list[str]:
    """The columns that the first chunk does not tell of, or not rightly."""
    return [name for name, kind in after.items() if name not in early or (early[name], kind) == ("whole", "fraction")]


def _kind(scores: list[float]) -> str:
    if all(isinstance(s, int) for s in scores):
        return "whole"
    return "fraction" if any(s % 1 for s in scores) else "decimal"
