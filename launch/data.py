"""What the training files hold: rows, scores, negatives, hashes, and every line that does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from launch.columns import kinds_of, late
from launch.config import Frozen
from launch.problems import Problem, error
from launch.scan import contents

_PATTERN = re.compile(r"[*?]|::|\[[^/]*\]")  # of `datasets`, which looks for files with them


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
    several_positives: int = 0  # rows with two positives or more
    columns: tuple[tuple[str, str], ...] = ()  # (column, kind), as `launch.columns` has them
    late: tuple[str, ...] = ()  # columns that the file's first chunk does not have, or has as whole numbers
    mixed_types: bool = False  # not every row has the same `type`
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
    if found := _PATTERN.search(str(path)):
        reason = f"{path}: the trainer's loader takes {found[0]} for a pattern, and finds other files or none"
        problems.append(error("data.pattern", reason, "rename the file or folder without [ ], *, ? and ::"))
    try:
        held = contents(path)
    except OSError as e:
        reason = f"{path}: cannot be read: {e.strerror}"
        return FileFacts(path=path, problems=(*problems, error("data.unreadable", reason)))
    problems += [error("data.line", f"{path}:{bad.line}: {bad.what}", bad.fix) for bad in held.bad_lines]
    if held.bad > len(held.bad_lines):
        problems.append(error("data.line", f"{path}: {held.bad - len(held.bad_lines)} more bad lines"))
    if not held.rows and not held.bad:
        problems.append(error("data.empty", f"{path}: no row in it"))
    return FileFacts(
        path=path,
        sha256=held.sha256,
        rows=held.rows,
        scored=held.scored,
        prompted=held.prompted,
        fewest_negatives=min(held.negatives, default=0),
        thin=sum(rows for negatives, rows in held.negatives.items() if negatives < wanted),
        scores_range=held.scores_range,
        several_positives=held.several_positives,
        columns=tuple(kinds_of(held.early, held.after).items()),
        late=tuple(late(held.early, held.after)),
        mixed_types=len(held.types) > 1,
        symmetric="symmetric" in (held.first_type or ""),
        problems=tuple(problems),
    )
