"""Questions that people asked, given for the test: each rests on spans (quotes) of named documents."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from factory.documents import decode_file, read_table
from factory.languages import squeeze
from factory.records import Document, InputError, Passage, Record, Text, parse, read_lines

QUERY_COLUMNS = ("query", "question", "text")


class Answer(Record):
    document: Text = Field(description="file name, or its path relative to the input folder")
    quote: Text = Field(description="a span of the document; white space and width of characters do not matter")


class Question(Record):
    id: Text
    query: Text
    answers: tuple[Answer, ...] = Field(min_length=1)
    where: str = ""


def read_questions(path: Path) -> list[Question]:
    """Raises InputError with file:line for a broken line, a missing key or an id that occurs twice."""
    questions: dict[str, Question] = {}
    for number, row in read_lines(path):
        where = f"{path}:{number}"
        question = parse(Question, row | {"where": where}, where)
        if question.id in questions:
            raise InputError(f"id {question.id!r} occurs twice", where=where)
        questions[question.id] = question
    if not questions:
        raise InputError("holds no question", where=path)
    return list(questions.values())


def read_user_questions(path: Path, tests: list[Question], say: Callable[[str], None]) -> list[str]:
    """Questions that users asked, each once, without those that are test questions: .txt with one a line, or .csv, .tsv,
    .jsonl with a column query, question or text.

    Raises:
        InputError: no such file, of another type, undecodable, broken, or with no question in it.
    """
    if not path.is_file():
        raise InputError(
            "no such file", where=path, fix="generate.examples: questions that your users asked, one a line"
        )
    if path.suffix.lower() == ".txt":
        found = [line.strip() for line in decode_file(path).splitlines()]
    else:
        rows = [row for _, row in read_table(path)]
        found = [next((str(row[c]).strip() for c in QUERY_COLUMNS if row.get(c)), "") for row in rows]
    distinct = {squeeze(q): q for q in reversed(found) if squeeze(q)}
    if not distinct:
        raise InputError(
            "holds no question", where=path, fix=f"one a line in a .txt, or a column {' or '.join(QUERY_COLUMNS)}"
        )
    held = {squeeze(q.query) for q in tests}
    if both := held & distinct.keys():
        say(f"{len(both):,} of the questions in {path.name} are test questions: they are not shown to the LLM")
    left = [q for key, q in reversed(distinct.items()) if key not in held]
    if not left:
        raise InputError("every question in it is a test question", where=path, fix="give others, or split them in two")
    return left


def _names(source: str, answer: Answer) -> bool:
    return source == answer.document or Path(source).name == answer.document


def documents_of(questions: list[Question], documents: list[Document]) -> set[str]:
    """Ids of the documents that hold the quotes.

    Raises:
        InputError: a quote is in no document of that name; says which, with file:line.
    """
    texts = [(d, squeeze(d.text)) for d in documents]
    found = set()
    for question in questions:
        for answer in question.answers:
            named = [(d, text) for d, text in texts if _names(d.source, answer)]
            holding = [d.id for d, text in named if squeeze(answer.quote) in text]
            if not holding:
                raise InputError(
                    f"quote {answer.quote[:40]!r} is not in {answer.document!r}"
                    if named
                    else f"document {answer.document!r} is not among the input",
                    where=question.where,
                    fix="copy the quote from the text of the document as build reads it (1-documents.jsonl)",
                )
            found.update(holding)
    return found


def passages_of(question: Question, passages: list[Passage]) -> list[str]:
    """Ids of the passages that hold the question's quotes; a quote that a split cut goes to the larger part's passage."""
    ids: list[str] = []
    for answer in question.answers:
        quote = squeeze(answer.quote)
        named = [(p, squeeze(p.text)) for p in passages if _names(p.source, answer)]
        holding = [p.id for p, text in named if quote in text]
        if not holding:
            for (a, left), (b, right) in itertools.pairwise(named):
                at = (left + right).find(quote)
                if a.document_id == b.document_id and at >= 0:
                    holding = [a.id if len(left) - at >= len(quote) / 2 else b.id]
                    break
        ids += [i for i in holding if i not in ids]
    return ids
