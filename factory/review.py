"""What experts decide on the review page: `review.jsonl`, written line by line, and what of it holds for a run.

Each line is a `Decision`; a pair's last one counts, `undo` takes its last one back, and `skip` says nothing. The file
is only ever appended to, and each line is on the disk before the page hears of it.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field

from factory.records import InputError, Pair, Record, loads, parse
from factory.workspace import fingerprint

LOG, LOCK = "review.jsonl", ".review.lock"
REVIEW = "review"  # the reason, in 7-decisions.parquet, of a candidate that a reviewer made a positive
GONE = {"not-answerable": "review: not answerable from its passage", "drop": "review: dropped"}  # the reasons
Verdict = Literal["good", "not-answerable", "positive", "drop", "skip"]


class Decision(Record):
    """One line of review.jsonl.

    Attributes:
        id: the pair's. negatives: with `positive` the candidates that answer the question, else empty.
        texts: `digest` of what was read, by pair and candidate id; a decision does not hold for other texts. What is
            not in it is not compared.
    """

    time: str
    id: str
    decision: Verdict | Literal["undo"]
    negatives: tuple[str, ...] = ()
    reviewer: str = ""
    texts: dict[str, str] = Field(default={})

    def read(self, key: str, *text: str) -> bool:
        """Whether these are the texts that the reviewer saw."""
        return self.texts.get(key) in (None, digest(*text))


def digest(*texts: str) -> str:
    return fingerprint(texts)[:12]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class History:
    """The decisions of a log in their order, less those taken back."""

    def __init__(self, decisions: Iterable[Decision] = ()):
        self._of: dict[str, list[Decision]] = defaultdict(list)
        self._order: list[Decision] = []
        for decision in decisions:
            self.take(decision)

    def take(self, decision: Decision) -> None:
        mine = self._of[decision.id]
        if decision.decision != "undo":
            mine.append(decision)
            self._order.append(decision)
        elif mine:
            last = mine.pop()
            del self._order[max(i for i, d in enumerate(self._order) if d is last)]

    def last(self, pair: str) -> Decision | None:
        """What an undo of this pair would take back."""
        return self._of[pair][-1] if self._of.get(pair) else None

    def of(self, pair: str) -> Decision | None:
        """The one that counts: the last that is no skip; a skip only if there is nothing else."""
        mine = self._of.get(pair, [])
        return next((d for d in reversed(mine) if d.decision != "skip"), mine[-1] if mine else None)

    def last_by(self, reviewer: str, counts: Callable[[Decision], bool]) -> Decision | None:
        """The reviewer's latest decision, of those that count, that nobody has decided over since."""
        mine = (d for d in reversed(self._order) if d.reviewer == reviewer and self.last(d.id) is d)
        return next((d for d in mine if counts(d)), None)

    def stands(self, decision: Decision) -> bool:
        """Whether the reviewer has said the very same already, at whatever time, and not taken it back."""
        return any(d.model_copy(update={"time": decision.time}) == decision for d in self._of.get(decision.id, ()))

    def effective(self) -> dict[str, Decision]:
        """By pair id, without skips, in the order of ids."""
        found = {pair: self.of(pair) for pair in sorted(self._of)}
        return {pair: d for pair, d in found.items() if d and d.decision != "skip"}


def read_log(run: Path, say: Callable[[str], None]) -> History:
    """The run's history; empty if nobody has reviewed. A last line that was cut short is left out, and said.

    Raises:
        InputError: another line is not a decision; names file:line.
    """
    path = run / LOG
    whole, torn = _lines(path.read_bytes() if path.is_file() else b"")
    if torn:
        say(f"{path}: the last line was cut short, and is left out: {_start(torn)}")
    return History(_decision(line, f"{path}:{n}") for n, line in enumerate(whole, 1) if line.strip())


def _lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines, and what is left of a last one that was never finished."""
    *whole, last = data.split(b"\n")
    try:
        _decision(last, "")
    except InputError:
        return whole, last
    return [*whole, last], b""  # only its line end is missing


def _decision(line: bytes, where: str) -> Decision:
    try:
        row = loads(line.decode("utf-8"))
    except ValueError as e:
        raise InputError(f"not a decision: {_start(line)}", where=where, fix="mend the line, or delete it") from e
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, got {_start(line)}", where=where, fix="mend the line, or delete it")
    return parse(Decision, row, where)


def _start(line: bytes) -> str:
    return repr(line.decode("utf-8", "replace")[:80])


class ReviewLog:
    """review.jsonl, open for decisions; `history` is always what is on the disk. Safe for several threads.

    Raises:
        InputError: another review of this run is open.
    """

    def __init__(self, run: Path, say: Callable[[str], None]):
        self.path, self._mutex = run / LOG, RLock()
        self._lock = FileLock(run / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as e:
            raise InputError(
                "this run is being reviewed already",
                where=run,
                fix="use the page that is open, or end that review first",
            ) from e
        try:
            self.history = read_log(run, say)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            self._mend()
            _sync_folder(run)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ReviewLog:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            os.close(self._file)
            self._lock.release()

    def add(self, decision: Decision) -> bool:
        """On the disk when this returns. The same decision twice, as when an answer was lost on its way, is one: false.

        Raises:
            InputError: the disk is full; nothing is kept of the line.
        """
        with self._mutex:
            last = self.history.last(decision.id)
            if last and decision.model_copy(update={"time": last.time}) == last:
                return False
            self._append(decision.model_dump_json().encode() + b"\n")
            self.history.take(decision)
            return True

    def undo(self, reviewer: str, counts: Callable[[Decision], bool] = lambda _: True) -> Decision | None:
        """Take the reviewer's latest decision, of those that count, back and return it; None if there is none."""
        with self._mutex:
            last = self.history.last_by(reviewer, counts)
            if last:
                self.add(Decision(time=now(), id=last.id, decision="undo", reviewer=reviewer))
            return last

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(self._file)
        except OSError as e:
            os.ftruncate(self._file, size)
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InputError("the disk is full", where=self.path, fix="free some space, then decide again") from e
            raise

    def _mend(self) -> None:
        """What was cut short goes (no page was told that it was saved), so that the next line begins a line."""
        data = self.path.read_bytes()
        _, torn = _lines(data)
        if torn:
            os.ftruncate(self._file, len(data) - len(torn))
        elif data and not data.endswith(b"\n"):
            self._append(b"\n")


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Review:
    """A run's decisions, as `build` applies them."""

    def __init__(self, decisions: Mapping[str, Decision]):
        self.decisions = decisions

    @classmethod
    def read(cls, run: Path, say: Callable[[str], None]) -> Review:
        return cls(read_log(run, say).effective())

    def __len__(self) -> int:
        return len(self.decisions)

    def all(self) -> list[dict[str, Any]]:
        """What export rests on."""
        return [d.model_dump() for d in self.decisions.values()]

    def promoting(self) -> list[Any]:
        """What choose rests on: the candidates said to answer."""
        return [(d.id, d.negatives, d.texts) for d in self.decisions.values() if d.decision == "positive"]

    def holding(self, pairs: Iterable[Pair], text: Mapping[str, str]) -> dict[str, Decision]:
        """The decisions on these pairs, as far as pairs and candidates are still what the reviewer read.

        Args:
            text: of each target that there is, by id.
        """
        held = {}
        for pair in pairs:
            decision = self.decisions.get(pair.id)
            if decision and decision.read(pair.id, pair.query, pair.target_text):
                known = tuple(c for c in decision.negatives if c in text and decision.read(c, text[c]))
                if known or decision.decision != "positive":
                    held[pair.id] = decision.model_copy(update={"negatives": known})
        return held
