"""Reads an eval set in BEIR's layout: ours, BEIR's own, or a user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.records import InputError, read_lines, titled


@dataclass(frozen=True)
class EvalSet:
    """Passages and the judged queries, in file order.

    Attributes:
        relevant: for each query {index in `passages`: grade from 1}, never empty.
        unjudged: queries left out since nothing is judged relevant to them.
    """

    passage_ids: list[str]
    passages: list[str]
    query_ids: list[str]
    queries: list[str]
    relevant: list[dict[int, int]]
    unjudged: int


def read_eval_set(folder: Path) -> EvalSet:
    """Read corpus.jsonl (`_id`, `title`, `text`), queries.jsonl (`_id`, `text`, more keys are ignored), and
    qrels.tsv or, as in BEIR, qrels/test.tsv: query-id, corpus-id, grade, separated by tabs, with or without a header.

    A title is put before the text, on a line of its own, unless the text already begins with it. A grade of 0 is
    "judged not relevant".

    Raises:
        InputError: a file is missing or a line is bad (names file:line); a judgement names an unknown id;
            nothing is judged.
    """
    if not folder.is_dir():
        raise InputError(
            "no such folder", where=folder, fix="give a folder with corpus.jsonl, queries.jsonl and qrels.tsv"
        )
    corpus = read_corpus(folder / "corpus.jsonl")
    asked = read_corpus(folder / "queries.jsonl")
    index = {key: i for i, key in enumerate(corpus)}
    path = folder / "qrels.tsv"
    if not path.is_file():
        path = folder / "qrels" / "test.tsv"
    if not path.is_file():
        raise InputError("neither qrels.tsv nor qrels/test.tsv is there", where=folder)
    relevant: dict[str, dict[int, int]] = {}
    for where, query, passage, grade in _judgements(path):
        if query not in asked:
            raise InputError(f"query {query!r} is judged, but not in queries.jsonl", where=where)
        if passage not in index:
            raise InputError(f"passage {passage!r} is judged, but not in corpus.jsonl", where=where)
        if grade > 0:
            relevant.setdefault(query, {})[index[passage]] = grade
    if not relevant:
        raise InputError("no query has a relevant passage", where=path, fix="give at least one line: query, passage, 1")
    kept = [key for key in asked if key in relevant]
    return EvalSet(
        passage_ids=list(corpus),
        passages=list(corpus.values()),
        query_ids=kept,
        queries=[asked[key] for key in kept],
        relevant=[relevant[key] for key in kept],
        unjudged=len(asked) - len(kept),
    )


def read_corpus(path: Path) -> dict[str, str]:
    """Texts by `_id`, each with its title before it.

    Raises:
        InputError: a line without `_id` or `text`, or an `_id` that is there twice; names file:line.
    """
    found: dict[str, str] = {}
    for number, row in read_lines(path):
        where = f"{path}:{number}"
        key, title, text = str(row.get("_id", "")), row.get("title") or "", row.get("text")
        if not key or not isinstance(text, str) or not isinstance(title, str):
            raise InputError("expected the keys _id and text (a string)", where=where, fix='{"_id": "d1", "text": "…"}')
        if key in found:
            raise InputError(f"_id {key!r} is there twice", where=where)
        found[key] = titled(title, text)
    if not found:
        raise InputError("the file is empty", where=path)
    return found


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """(file:line, query id, passage id, grade)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"not UTF-8: byte {e.start}", where=path, fix="save it as UTF-8") from e
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        fields = line.split("\t")
        if not line.strip() or (number == 1 and fields[0] in ("query-id", "query_id", "qid")):
            continue
        if len(fields) != 3:
            raise InputError(
                f"expected 3 columns separated by tabs, got {len(fields)}: {line[:60]!r}",
                where=where,
                fix="query-id <tab> corpus-id <tab> grade",
            )
        try:
            grade = float(fields[2])
        except ValueError as e:
            raise InputError(f"the grade must be a whole number, got {fields[2]!r}", where=where) from e
        if grade != int(grade):
            raise InputError(f"the grade must be a whole number, got {fields[2]!r}", where=where)
        yield where, fields[0], fields[1], int(grade)
