"""Reads an eval set: ours, BEIR's own layout, a user's, or an MTEB retrieval task as it lies on a hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.records import InputError, read_lines, titled

SET_FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
ABOUT = ("type", "origin", "document")  # keys of a query or a passage by which results are grouped


@dataclass(frozen=True)
class EvalSet:
    """Passages and the judged queries, in file order.

    Attributes:
        relevant: for each query {index in `passages`: grade from 1}, never empty.
        unjudged: queries left out since nothing is judged relevant to them.
        about: for each query what the set says of it, under the keys of `ABOUT`; a document is the one that its
            relevant passages come from.
    """

    passage_ids: list[str]
    passages: list[str]
    query_ids: list[str]
    queries: list[str]
    relevant: list[dict[int, int]]
    unjudged: int
    about: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Texts:
    """Texts by id, each with its title before it, and what is known of each beside its text."""

    by_id: dict[str, str]
    about: dict[str, dict[str, str]]


def read_eval_set(folder: Path, *, split: str = "test", subset: str | None = None) -> EvalSet:
    """Read corpus.jsonl (`_id`, `title`, `text`), queries.jsonl (`_id`, `text`, and of our own `type` and `origin`), and
    qrels.tsv or, as in BEIR, qrels/<split>.tsv: query-id, corpus-id, grade, separated by tabs, with or without a header.
    A folder without qrels.tsv and qrels/*.tsv is read as MTEB reads a task, see `mteb_task`.

    A title is put before the text, on a line of its own, unless the text already begins with it. A grade of 0 is
    "judged not relevant".

    Args:
        subset: a language or domain of an MTEB task that has several.

    Raises:
        InputError: a file is missing or a line is bad (names file:line); a judgement names an unknown id;
            nothing is judged.
    """
    if not folder.is_dir():
        raise InputError(
            "no such folder", where=folder, fix="give a folder with corpus.jsonl, queries.jsonl and qrels.tsv"
        )
    path = folder / "qrels.tsv"
    if not path.is_file():
        path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        from factory.mteb_task import is_task, read_task

        if is_task(folder):
            return eval_set(*read_task(folder, split, subset))
        there = sorted(p.stem for p in (folder / "qrels").glob("*.tsv"))
        raise InputError(
            f"neither qrels.tsv nor qrels/{split}.tsv is there",
            where=folder,
            fix=f"--split {there[0]}" if there else "give a BEIR folder, or an MTEB task with its README.md",
        )
    return eval_set(_texts(folder / "corpus.jsonl"), _texts(folder / "queries.jsonl"), _judgements(path), path)


def eval_set(
    corpus: Texts, asked: Texts, judgements: Iterable[tuple[str, str, str, int]], where: str | Path
) -> EvalSet:
    """The set of its three parts; `judgements` are (where it is said, query id, passage id, grade)."""
    index = {key: i for i, key in enumerate(corpus.by_id)}
    relevant: dict[str, dict[int, int]] = {}
    document: dict[str, str] = {}
    for place, query, passage, grade in judgements:
        if query not in asked.by_id:
            raise InputError(f"query {query!r} is judged, but not in queries.jsonl", where=place)
        if passage not in index:
            raise InputError(f"passage {passage!r} is judged, but not in corpus.jsonl", where=place)
        if grade > 0:
            relevant.setdefault(query, {})[index[passage]] = grade
            if name := corpus.about.get(passage, {}).get("document"):
                document.setdefault(query, name)
    if not relevant:
        raise InputError(
            "no query has a relevant passage", where=where, fix="give at least one line: query, passage, 1"
        )
    kept = [key for key in asked.by_id if key in relevant]
    return EvalSet(
        passage_ids=list(corpus.by_id),
        passages=list(corpus.by_id.values()),
        query_ids=kept,
        queries=[asked.by_id[key] for key in kept],
        relevant=[relevant[key] for key in kept],
        unjudged=len(asked.by_id) - len(kept),
        about=[
            ({"document": document[key]} if key in document else {}) | dict(asked.about.get(key, {})) for key in kept
        ],
    )


def read_corpus(path: Path) -> dict[str, str]:
    """Texts by `_id`, each with its title before it.

    Raises:
        InputError: a line without `_id` or `text`, or an `_id` that is there twice; names file:line.
    """
    return _texts(path).by_id


def _texts(path: Path) -> Texts:
    return texts_of(((f"{path}:{number}", row) for number, row in read_lines(path)), path)


def texts_of(rows: Iterable[tuple[str, Mapping[str, Any]]], path: str | Path) -> Texts:
    """Texts of (where it is said, row); `_id` may be spelt `id`, as MTEB does since its version 2."""
    found: dict[str, str] = {}
    about: dict[str, dict[str, str]] = {}
    for where, row in rows:
        key, title, text = row.get("_id", row.get("id")), row.get("title") or "", row.get("text")
        key = "" if key is None else str(key)
        if not key or not isinstance(text, str) or not isinstance(title, str):
            raise InputError("expected the keys _id and text (a string)", where=where, fix='{"_id": "d1", "text": "…"}')
        if key in found:
            raise InputError(f"_id {key!r} is there twice", where=where)
        found[key] = titled(title, text)
        if said := {name: str(row[name]) for name in ABOUT if row.get(name) not in (None, "")}:
            about[key] = said
    if not found:
        raise InputError("the file is empty", where=path)
    return Texts(found, about)


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """(file:line, query id, passage id, grade)."""
    try:
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
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
        yield where, fields[0], fields[1], grade_of(fields[2], where)


def grade_of(value: Any, where: str) -> int:
    """A judgement's grade; 1.0 is 1."""
    try:
        grade = float(value)
    except (TypeError, ValueError) as e:
        raise InputError(f"the grade must be a whole number, got {value!r}", where=where) from e
    if not grade.is_integer():
        raise InputError(f"the grade must be a whole number, got {value!r}", where=where)
    return int(grade)
