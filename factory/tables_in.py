"""The rows of a .csv, .tsv or .jsonl file; one that cannot be read is told by its line and the rest goes on."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from factory.decoding import decode_file
from factory.records import Dropped, InputError, loads

TABLE, LINES = {".csv", ".tsv"}, {".jsonl"}
SWALLOWED = 5  # lines in one value, each with as many commas as a row has: rows, not a text


def read_table(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row) of a .csv, .tsv or .jsonl file in any encoding that `decode` reads.

    Raises:
        InputError: the file is missing, of another type, undecodable or has a broken line.
    """
    if not path.is_file() or path.suffix.lower() not in TABLE | LINES:
        raise InputError("expected a .csv, .tsv or .jsonl file", where=path)
    text = decode_file(path)
    rows = (
        table_rows(text, path.suffix.lower(), str(path))
        if path.suffix.lower() in TABLE
        else json_lines(text, str(path))
    )
    good = []
    for number, row in rows:
        if isinstance(row, Dropped):
            raise InputError(row.detail, where=f"{path}:{number}")
        good.append((number, row))
    return good


def table_rows(text: str, suffix: str, name: str) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    """(line number, row) of a .csv or .tsv, whose first line names the columns.

    A quote that is never closed, or by chance far below, would swallow the rows behind it. So where the quotes are wrong,
    or a row over several lines has too many or too few values or looks like several rows, its first line is dropped and
    the next one read as a row of its own. In a .tsv with such a place quotes are plain characters.
    """
    csv.field_size_limit(1 << 30)
    lines = io.StringIO(text, newline="").readlines()
    tabs = suffix == ".tsv"
    plain = tabs and any(isinstance(row, str) for _, _, row in _records(lines, "\t"))
    columns: list[str] = []
    for first, last, values in _records(lines, "\t" if tabs else ",", plain):
        problem = values if isinstance(values, str) else ""
        if not problem and not columns:
            columns = [value.strip() for value in values]
            continue
        if not problem and any(value.strip() for value in values[len(columns) :]):
            problem = f"{len(values)} values for {len(columns)} columns; a value with {'a tab' if tabs else 'a comma'} in it needs quotes"
        if problem:
            detail = problem if columns else f"the names of the columns: {problem}"
            dropped = Dropped(
                stage="load", id=f"{name}:{first}", reason="broken-row", detail=detail, text=lines[first - 1][:200]
            )
            yield first, dropped
            if not columns:
                return
        else:
            yield last, dict(itertools.zip_longest(columns, values[: len(columns)]))


def _records(lines: list[str], delimiter: str, plain: bool = False) -> Iterator[tuple[int, int, list[str] | str]]:
    """(first line, last line, values or what is wrong with them) of each row that is not empty. `plain`: quotes are text."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    done, wanted = 0, 0
    while done < len(lines):
        start = done
        reader = csv.reader(lines[start:], delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for values in reader:
                first, last = done + 1, start + reader.line_num
                wanted = wanted or len(values)
                if last > first and len(values) != wanted:
                    raise csv.Error(f"a row over {last - first + 1} lines has {len(values)} values, expected {wanted}")
                rows = (line.count(delimiter) == wanted - 1 for line in lines[first - 1 : last])
                if last - first + 1 >= SWALLOWED and wanted > 1 and all(rows):
                    raise csv.Error(f"a quote swallows {last - first} rows")
                done = last
                if values:
                    yield first, last, values
        except csv.Error as e:
            yield done + 1, done + 1, f"{e}; a quote within a value is written twice, inside a quoted value"
            done += 1


def json_lines(text: str, name: str) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    # split on "\n" alone: U+2028 and the like are legal inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
            problem = "" if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"
        except json.JSONDecodeError as e:
            problem = f"not valid JSON: {e.msg} at column {e.colno}"
        yield (
            number,
            Dropped(stage="load", id=f"{name}:{number}", reason="broken-json", detail=problem, text=line[:200])
            if problem
            else row,
        )
