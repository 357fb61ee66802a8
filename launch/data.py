"""Reads the training files once: rows, scores, negatives, hashes, and every line that does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from factory.records import Example, InputError, parse
from launch.config import Frozen
from launch.problems import Problem, error

SHOWN = 20  # bad lines listed for one file; the rest are counted


class FileFacts(Frozen):
    """What one training file holds. `rows` counts the valid rows only."""

    path: Path
    sha256: str = ""
    rows: int = 0
    scored: int = 0  # rows with pos_scores and neg_scores
    prompted: int = 0  # rows with their own `prompt`
    fewest_negatives: int = 0
    thin: int = 0  # rows with fewer negatives than the group needs
    scores_range: tuple[float, float] | None = None
    symmetric: bool = False  # FlagEmbedding halves the batch of such a file in same_dataset_within_batch
    problems: tuple[Problem, ...] = ()


class DataFacts(Frozen):
    """All training files, in the order in which the trainer gets them."""

    files: tuple[FileFacts, ...]

    @property
    def rows(self) -> int:
        """Valid rows in all files."""
        return sum(f.rows for f in self.files)

    @property
    def scored(self) -> int:
        """Rows with teacher scores in all files."""
        return sum(f.scored for f in self.files)

    @property
    def fully_scored(self) -> bool:
        """Whether every row has teacher scores."""
        return 0 < self.rows == self.scored


def data_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are; a folder becomes its .json and .jsonl files, sorted (the trainer's own order is not)."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else []
        files.extend(inside or [path])
    return files


def scan(paths: Iterable[Path], train_group_size: int) -> DataFacts:
    """The facts of all training files; no exception for bad data, but a Problem in its file's facts."""
    return DataFacts(files=tuple(_scan_file(p, train_group_size - 1) for p in data_files(paths)))


def _scan_file(path: Path, wanted: int) -> FileFacts:
    if path.is_dir():
        return FileFacts(
            path=path, problems=(error("data.missing", f"{path}: no .json or .jsonl file in this folder"),)
        )
    if not path.is_file():
        return FileFacts(path=path, problems=(error("data.missing", f"{path}: no such file"),))
    problems: list[Problem] = []
    if path.suffix not in (".json", ".jsonl"):
        reason = f"{path}: FlagEmbedding reads only names ending in .json or .jsonl and silently skips others"
        problems.append(error("data.extension", reason, "rename the file"))
    digest = hashlib.sha256()
    rows = scored = prompted = thin = bad = 0
    fewest: int | None = None
    low, high, symmetric = float("inf"), float("-inf"), False
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            digest.update(raw)
            if not raw.strip():
                continue
            try:
                row = _example(raw, number, path)
            except InputError as e:
                bad += 1
                if bad <= SHOWN:
                    problems.append(error("data.line", f"{e.where}: {e.what}", e.fix or ""))
                continue
            symmetric = symmetric or (rows == 0 and "symmetric" in (row.type or ""))
            rows += 1
            fewest = len(row.neg) if fewest is None else min(fewest, len(row.neg))
            thin += len(row.neg) < wanted
            prompted += row.prompt is not None
            if row.pos_scores is not None and row.neg_scores is not None:
                scored += 1
                scores = row.pos_scores + row.neg_scores
                low, high = min(low, *scores), max(high, *scores)
    if bad > SHOWN:
        problems.append(error("data.line", f"{path}: {bad - SHOWN} more bad lines"))
    if not rows and not bad:
        problems.append(error("data.empty", f"{path}: no row in it"))
    return FileFacts(
        path=path,
        sha256=digest.hexdigest(),
        rows=rows,
        scored=scored,
        prompted=prompted,
        fewest_negatives=fewest or 0,
        thin=thin,
        scores_range=(low, high) if scored else None,
        symmetric=symmetric,
        problems=tuple(problems),
    )


def _example(raw: bytes, number: int, path: Path) -> Example:
    where = f"{path}:{number}"
    try:
        row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as e:
        raise InputError("not UTF-8", where=where, fix="save the file as UTF-8") from e
    except json.JSONDecodeError as e:
        got = raw.strip().decode("utf-8")[:60]
        raise InputError(f"not valid JSON: {e.msg} at column {e.colno}; got {got!r}", where=where) from e
    if not isinstance(row, dict):
        raise InputError(
            f"expected a JSON object, got {type(row).__name__}", where=where, fix="one object on each line"
        )
    return parse(Example, row, where)
