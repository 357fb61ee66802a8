"""`bge-factory validate`: every problem of a training file, with its line."""

from __future__ import annotations

from pathlib import Path

from factory.records import Example, InputError, each_line, parse


def check_file(path: Path, limit: int = 20) -> tuple[int, list[str]]:
    """(good rows, problems as `file:line: what`), for `bge-factory validate`; at most `limit` problems are told.

    Raises:
        InputError: no such file, or it has no row.
    """
    good, problems = 0, []
    first_keys: set[str] | None = None
    for number, row in each_line(path):
        where = f"{path}:{number}"
        try:
            if isinstance(row, InputError):
                raise row
            parse(Example, row, where)
            first_keys = first_keys or set(row)
            if set(row) != first_keys:
                odd = ", ".join(sorted(first_keys ^ set(row)))
                raise InputError(
                    f"keys differ from the first row's by {odd}",
                    where=where,
                    fix="the trainer needs the same keys in every row",
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
