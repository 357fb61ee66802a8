"""The user's own questions with the text that answers them: all of the data, or mixed with generated questions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from factory.documents import find_files, read_table
from factory.languages import language, squeeze
from factory.passages import trainable
from factory.records import Document, Dropped, InputError, Pair, Passage
from factory.workspace import fingerprint

GIVEN = "given:"  # how the source of a text begins that came with its question
BREAK = "\0"  # between documents: no text holds it


def given_documents(files: str | list[str], documents: Sequence[Document]) -> list[Document]:
    """The texts of the pairs that stand in no document, each as a document that is kept whole."""
    everything = BREAK.join(squeeze(d.text) for d in documents)
    found: dict[str, Document] = {}
    for name, number, _, text, _ in _rows(files):
        plain = squeeze(text)
        if plain and plain not in everything and plain not in found:
            identity = f"{GIVEN}{name}#{number}"
            found[plain] = Document(id=identity, source=f"{GIVEN}{name}", text=text, whole=True)
    return list(found.values())


def given_pairs(passages: Sequence[Passage], files: str | list[str]) -> tuple[list[Pair], list[Dropped]]:
    """The rows of the files as pairs, each joined to the passage that holds (most of) its text.

    Raises:
        InputError: a file is missing, of another type or broken; names file:line.
    """
    where = Places(passages)
    leaking = {p.id for p in trainable(list(passages))[1]}
    pairs, dropped = [], []
    for name, number, query, text, answer in _rows(files):
        owner = where.of(text)
        if not query or owner is None:
            reason = "no-query" if not query else "no-passage"
            dropped.append(Dropped(stage="generate", id=f"{name}#{number}", reason=reason, text=query or text))
        elif owner.id in leaking:
            reason = "copies-a-held-out-passage"
            dropped.append(Dropped(stage="generate", id=f"{name}#{number}", reason=reason, text=query))
        else:
            pairs.append(
                Pair(
                    id=fingerprint([name, number, query, text])[:16],
                    passage_id=owner.id,
                    query=query,
                    answer=answer,
                    language=language(query),
                    target_id=owner.id,
                    target_text=owner.text,
                    duplicate_group=owner.duplicate_group,
                    split=owner.split,
                    origin="given",
                )
            )
    return pairs, dropped


def _rows(files: str | list[str]) -> list[tuple[str, int, str, str, str]]:
    """(file, line, query, text, answer) of each row."""
    found = []
    for path, name in find_files(files):
        rows = read_table(path)
        if rows and not any("query" in row and "text" in row for _, row in rows):
            got = ", ".join(map(str, rows[0][1]))
            raise InputError(f"expected columns query and text, got {got}", where=f"{path}:{rows[0][0]}")
        for number, row in rows:
            query, text, answer = (str(row.get(c) or "") for c in ("query", "text", "answer"))
            found.append((name, number, query.strip(), text, answer))
    return found


class Places:
    """Where in the passages a text stands, white space and width of characters aside."""

    def __init__(self, passages: Sequence[Passage]):
        parts: list[str] = []
        self._starts: list[int] = []
        self._passages, length = list(passages), 0
        for before, passage in zip([None, *passages], passages, strict=False):
            if before is not None and before.document_id != passage.document_id:
                parts.append(BREAK)
                length += len(BREAK)
            self._starts.append(length)
            parts.append(squeeze(passage.text))
            length += len(parts[-1])
        self._all = "".join(parts)
        self._exact = {squeeze(p.text): p for p in reversed(self._passages)}

    def of(self, text: str) -> Passage | None:
        """The passage with this text, else the one that holds the larger part of it, else None."""
        plain = squeeze(text)
        if not plain or plain in self._exact:
            return self._exact.get(plain)
        start = self._all.find(plain)
        if start < 0:
            return None
        end = start + len(plain)
        first, last = bisect_right(self._starts, start) - 1, bisect_right(self._starts, end - 1) - 1
        ends = [*self._starts[1:], len(self._all)]
        return self._passages[
            max(range(first, last + 1), key=lambda i: min(ends[i], end) - max(self._starts[i], start))
        ]
