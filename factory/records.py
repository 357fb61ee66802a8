"""Every schema on disk: Document → Passage → Pair → Candidate → Example, and how a line is read.

`Example` is the only definition of the FlagEmbedding training format in this project; the
exporter writes it, `bge-factory validate` and `bge-launch` read it.
"""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from factory.errors import InputError as InputError


class Record(BaseModel):
    """A frozen row. Unknown keys are an error, so a misspelt key is never silently lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Split = Literal["train", "dev", "eval"]
Text = Annotated[str, StringConstraints(pattern=r"\S")]  # at least one character that is not white space


class Document(Record):
    """One source file (or one row of a table): `text` is plain text or Markdown."""

    id: str
    source: str
    title: str = ""
    text: Text
    markdown: bool = False
    whole: bool = False  # an already prepared passage: kept as it is, never split


class Passage(Record):
    """A piece of one document: `text == document.text[start:end]`, in characters."""

    id: str
    document_id: str
    source: str
    title: str = ""
    headings: tuple[str, ...] = ()
    text: Text
    start: int
    end: int
    tokens: int  # under the training model's own tokenizer, without special tokens
    document_group: str  # near-duplicate documents share one; the unit of the split
    duplicate_group: str  # near-duplicate passages share one
    split: Split


class Pair(Record):
    """A question and what answers it. `target_id` is the text that a search should find.

    Under `question-document` the target is the passage; under `question-answer` the answer;
    under `question-question` another wording of the same question. `rank` is that of its target among all under the base
    model, from 1; `also` are the ids of other targets that answer it by the LLM's word.
    """

    id: str
    passage_id: str
    query: Text
    answer: str = ""
    type: str = ""
    asker: str = ""
    language: str = ""
    target_id: str
    target_text: Text
    duplicate_group: str
    split: Split
    origin: Literal["generated", "given"] = "generated"
    rank: int | None = None
    also: tuple[str, ...] = ()


class Dropped(Record):
    """What a stage left out, and why: one line in `dropped/<stage>.jsonl`."""

    stage: str
    id: str
    reason: str
    detail: str = ""
    text: str = ""


class LooseExample(BaseModel):
    """One line of FlagEmbedding training data, as far as its types: what `audit` reads, whoever wrote it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    query: Text
    pos: Annotated[list[Text], Field(min_length=1)]
    neg: Annotated[list[Text], Field(min_length=1)]
    pos_scores: list[float] | None = None
    neg_scores: list[float] | None = None
    prompt: str | None = None
    type: str | None = None
    id: str | None = None


class Example(LooseExample):
    """One line of FlagEmbedding training data.

    `pos_scores` and `neg_scores` are raw reranker logits (never scores in [0, 1]: FlagEmbedding
    takes a softmax over them at temperature 1), one for each entry of `pos` and `neg`.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _consistent(self) -> Example:
        if (self.pos_scores is None) != (self.neg_scores is None):
            raise ValueError("pos_scores and neg_scores must both be there or both be absent")
        for name in ("pos", "neg"):
            scores = getattr(self, f"{name}_scores")
            texts = getattr(self, name)
            if scores is not None and len(scores) != len(texts):
                raise ValueError(f"{name}_scores has {len(scores)} entries, {name} has {len(texts)}: expected the same")
            if scores is not None and not all(math.isfinite(s) for s in scores):
                raise ValueError(f"{name}_scores holds NaN or infinity: expected finite logits")
        both = set(self.pos) & set(self.neg)
        if both:
            raise ValueError(f"a text is both in pos and in neg: {sorted(both)[0][:60]!r}")
        return self

    def to_json(self) -> dict[str, Any]:
        """The row as FlagEmbedding reads it: absent fields are left out."""
        return self.model_dump(exclude_none=True)


def titled(title: str, text: str) -> str:
    """A passage with its title on a line of its own before it, as BEIR's models read it; once, not twice."""
    return text if text.startswith(title) else f"{title}\n{text}"


T = TypeVar("T", bound=BaseModel)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"{\0", b"\0{")  # how a file begins


def problem(error: ValidationError) -> str:
    """A pydantic error as one sentence: which field, what was expected, what was got."""
    parts = []
    for e in error.errors()[:3]:
        field = ".".join(str(p) for p in e["loc"])
        if e["type"] == "string_pattern_mismatch" and e["ctx"]["pattern"] == r"\S":
            message = "is empty or only white space"
        elif e["type"] == "extra_forbidden":
            message = "is not a known key"
        else:
            message = e["msg"].removeprefix("Value error, ")
            if e["type"] != "missing" and field:
                message += f", got {type(e['input']).__name__} {str(e['input'])[:60]!r}"
        parts.append(f"{field}: {message}" if field else message)
    return "; ".join(parts)


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each non-empty line of a JSON-lines file; a BOM is allowed.

    Raises:
        InputError: a line is not a JSON object or not UTF-8; names file:line.
    """
    for number, row in each_line(path):
        if isinstance(row, InputError):
            raise row
        yield number, row


def each_line(path: Path, strict: bool = False) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """As `read_lines`, but a bad line comes as the error that it is, and the reading goes on.

    Args:
        strict: as the trainer's loader reads, which stops at a key that stands twice and at half of an emoji.

    Raises:
        InputError: no such file, or it is UTF-16.
    """
    if path.is_dir():
        raise InputError("is a folder, expected a file", where=path, fix="give the file in it, e.g. train.jsonl")
    if not path.is_file():
        fix = "check the path; in a YAML file it is relative to that file's folder, on the command line to where you run it"
        raise InputError("no such file", where=path, fix=fix)
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            if number == 1 and raw.startswith(UTF16):
                raise InputError("is UTF-16, expected UTF-8", where=path, fix="save it as UTF-8")
            line = raw.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else raw.strip()
            if line:
                row: dict[str, Any] | InputError
                try:
                    row = object_in(line, f"{path}:{number}", strict)
                except InputError as e:
                    row = e
                yield number, row


def loads(text: str) -> Any:
    """`json.loads`, but a lone surrogate (half of an emoji, as an escape), which no file can hold, becomes U+FFFD.

    Raises:
        json.JSONDecodeError: also for what is nested too deep, or has too many digits, for Python.
    """
    try:
        value = json.loads(text)
        return _mended(value) if "\\ud" in text.lower() else value
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as e:
        what = "nested too deep" if isinstance(e, RecursionError) else "a number with too many digits"
        raise json.JSONDecodeError(what, text, 0) from None


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(v) for v in value]
    return {_mended(k): _mended(v) for k, v in value.items()} if isinstance(value, dict) else value


def object_in(line: bytes, where: str = "", strict: bool = False) -> dict[str, Any]:
    """The JSON object of one line; `strict` as in `each_line`.

    Raises:
        InputError: it is not UTF-8, not JSON or no object.
    """
    try:
        text = line.decode("utf-8")
        row = loads(text)
    except UnicodeDecodeError as e:
        raise InputError(f"not UTF-8 (byte {e.start} of the line)", where=where, fix="save it as UTF-8") from None
    except json.JSONDecodeError as e:
        what = f"not valid JSON: {e.msg} at column {e.colno}; got {text.strip()[:60]!r}"
        raise InputError(what, where=where, fix="one JSON object on each line") from None
    if strict and (refused := _refused(text)):
        raise InputError(f"{refused}; the trainer's loader stops here", where=where)
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, got {type(row).__name__}", where=where)
    return row


def _refused(text: str) -> str:
    """What the trainer's loader does not take of JSON that is valid; else nothing."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=once)
    if twice:
        return f"the key {twice[0]!r} stands twice, expected once"
    return "holds half of an emoji (a lone \\ud… escape), expected whole characters" if value != _mended(value) else ""


def parse(model: type[T], row: dict[str, Any], where: str) -> T:
    """A validated row; an InputError naming `where` if it does not fit."""
    try:
        return model.model_validate(row)
    except ValidationError as e:
        raise InputError(problem(e), where=where) from e


def read_records(path: Path, model: type[T]) -> list[T]:
    """All rows of a JSON-lines file as `model`; the first bad line is an InputError."""
    return [parse(model, row, f"{path}:{number}") for number, row in read_lines(path)]
