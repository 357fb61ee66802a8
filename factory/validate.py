"""`bge-factory validate`: every problem of a training file, with its line."""

from __future__ import annotations

from pathlib import Path

from factory.records import Example, InputError, each_line, parse

EVERYWHERE = {"prompt", "pos_scores", "neg_scores"}  # others may be missing: the loader takes null for them
FIRST_CHUNK = 10 << 20  # bytes, as datasets reads JSON lines


def check_file(path: Path, limit: int = 20) -> tuple[int, list[str]]:
    """(good rows, problems as `file:line: what`), for `bge-factory validate`; at most `limit` problems are told.

    Raises:
        InputError: no such file, or it has no row.
    """
    good, problems = 0, []
    first: set[str] | None = None
    known: set[str] = set()
    early = _first_lines(path) if path.is_file() else 0
    for number, row in each_line(path, strict=True):
        where = f"{path}:{number}"
        try:
            if isinstance(row, InputError):
                raise row
            parse(Example, row, where)
            has = {key for key, value in row.items() if value is not None}
            first = has if first is None else first
            late = ", ".join(sorted(has - known)) if number > early else ""
            known |= has
            if odd := ", ".join(sorted(EVERYWHERE & (first ^ has))):
                raise InputError(
                    f"keys differ from the first row's by {odd}",
                    where=where,
                    fix="the trainer needs these in every row or in none",
                )
            if late:
                raise InputError(
                    f"{late} stands here first, and the trainer's loader takes a file's keys from its first 10 MB",
                    where=where,
                    fix="put a row that has it at the beginning",
                )
            good += 1
        except InputError as e:
            problems.append(str(e))
            if len(problems) == limit:
                problems.append(f"… reading stopped after {limit} problems")
                break
    if not good and not problems:
        raise InputError("holds no row", where=path)
    return good, problems


def _first_lines(path: Path) -> int:
    """How many lines the loader's first chunk has."""
    with open(path, "rb") as file:
        return file.read(FIRST_CHUNK).count(b"\n") + 1
