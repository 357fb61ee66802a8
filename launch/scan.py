"""One training file, read once: all cores, hash beside it, and the facts kept for the next time.

A file of a million rows has 5 to 15 GB, so the fast way decides only what is surely right; every other line goes to
factory.records, whose word counts, for the same facts and the same messages.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

from pydantic import Field

from factory.records import Example, InputError, object_in, parse
from launch.columns import TYPES, Columns, joined
from launch.config import Frozen

SHOWN = 20  # bad lines that are kept; the rest are counted
SPAN = 64 << 20  # bytes that one process reads at a time
WORTH = 4 << 20  # bytes; of a smaller file the facts are not kept
VERSION = 3  # to be raised when the same file gives other facts
SETTLED = 2.0  # seconds; a file changed later than so before the reading may change again within one tick of its clock
KEYS = frozenset(Example.model_fields)


class BadLine(Frozen):
    """A line that does not fit; `line` counts from 1."""

    line: int
    what: str
    fix: str = ""


class Contents(Frozen):
    """What a file, or a part of it, holds. All counts are of valid rows, but `lines` and `bad`."""

    sha256: str = ""
    lines: int = 0
    rows: int = 0
    scored: int = 0
    prompted: int = 0
    negatives: dict[int, int] = Field(default={})  # how many → in how many rows
    scores_range: tuple[float, float] | None = None
    first_type: str | None = None  # of the first valid row
    several_positives: int = 0
    early: dict[str, str] = Field(default={})  # column → kind, as launch.columns has them
    after: dict[str, str] = Field(default={})
    types: tuple[str | None, ...] = ()  # values of `type`, some of them
    bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()


def contents(path: Path) -> Contents:
    """The facts of an existing file, from the cache if it has not changed; OSError if it cannot be read."""
    stat = path.stat()
    if stat.st_size < WORTH:
        return read(path)
    key = _key(path)
    kept = _folder() / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        stored = json.loads(kept.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return Contents.model_validate(stored["contents"])
    settled = time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED
    found = read(path)
    if settled and _key(path) == key:
        with suppress(OSError):  # a cache that cannot be written is no error
            _write(kept, json.dumps({"key": key, "contents": found.model_dump(mode="json")}))
    return found


def _key(path: Path) -> dict[str, Any]:
    s = path.stat()
    return {
        "path": str(path.resolve()),
        "size": s.st_size,
        "modified": [s.st_mtime_ns, s.st_ctime_ns],
        "inode": [s.st_dev, s.st_ino],
        "version": VERSION,
    }


def _folder() -> Path:
    """$XDG_CACHE_HOME/bge-factory/launch, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "bge-factory" / "launch"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def read(path: Path, span: int = SPAN) -> Contents:
    """The facts of an existing file. `span`: bytes for one process; a file of two spans or more gets several."""
    size = path.stat().st_size
    starts = range(0, max(size, 1), span)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(starts) < 2 or cores < 2 or "fork" not in get_all_start_methods():
        with ThreadPoolExecutor(1) as thread:
            digest = thread.submit(_sha256, path)
            return _joined([_part(path, 0, size)], digest.result())
    with _processes(min(cores, len(starts))) as pool:
        parts = [pool.submit(_part, path, start, start + span) for start in starts]  # forks before any thread starts
        with ThreadPoolExecutor(1) as thread:
            digest = thread.submit(_sha256, path)
            return _joined(list(_watched(path, parts, span, size)), digest.result())


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave Ctrl-C to this one, and do not start on what waits when it comes."""
    pool = ProcessPoolExecutor(count, get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _watched(path: Path, parts: list[Future[Contents]], span: int, size: int) -> Iterator[Contents]:
    """The parts in order, with a bar for what takes a while."""
    from factory.progress import bar

    with bar(f"reading {path.name}", "B", size, unit_scale=True, disable=size < 4 * SPAN) as shown:
        for number, part in enumerate(parts):
            yield part.result()
            shown.update(min(span, size - number * span))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part(path: Path, start: int, end: int) -> Contents:
    """The lines that begin in bytes [start, end); their numbers count from 1 in each part."""
    import orjson

    lines = rows = scored = prompted = several = bad = 0
    columns = Columns()
    negatives: Counter[int] = Counter()
    low, high = math.inf, -math.inf
    first_type: str | None = None
    bad_lines: list[BadLine] = []
    with open(path, "rb", buffering=1 << 20) as file:
        at = max(start - 1, 0)
        file.seek(at)
        if start:
            at += len(file.readline())
        for raw in file:
            if at >= end:
                break
            begin, at = at, at + len(raw)
            lines += 1
            try:
                row = given = orjson.loads(raw)
                fits = _surely_fits(row) and _quotes(raw) == 2 * _strings(row)  # else a key stands twice
            except orjson.JSONDecodeError:
                fits = False
            if not fits:
                if raw.isspace():
                    continue
                first = start == 0 and lines == 1
                try:
                    line = raw.removeprefix(BOM_UTF8) if first else raw
                    given = object_in(line.strip(), strict=True)
                    row = parse(Example, given, "").model_dump()
                except InputError as e:
                    bad += 1
                    if bad <= SHOWN:
                        bad_lines.append(BadLine(line=lines, what=e.what, fix=e.fix or ""))
                    continue
            if not rows:
                first_type = row.get("type")
            rows += 1
            columns.see(given, begin)
            several += len(row["pos"]) > 1
            negatives[len(row["neg"])] += 1
            prompted += row.get("prompt") is not None
            if row.get("pos_scores") is not None and row.get("neg_scores") is not None:
                scored += 1
                scores = row["pos_scores"] + row["neg_scores"]
                low, high = min(low, *scores), max(high, *scores)
    return Contents(
        lines=lines,
        rows=rows,
        scored=scored,
        prompted=prompted,
        negatives=dict(negatives),
        scores_range=(float(low), float(high)) if scored else None,
        first_type=first_type,
        several_positives=several,
        early=columns.early,
        after=columns.after,
        types=tuple(columns.types),
        bad=bad,
        bad_lines=tuple(bad_lines),
    )


def _surely_fits(row: Any) -> bool:
    """Whether parsed JSON is a valid Example; false also where only Example itself can tell."""
    if type(row) is not dict or not row.keys() <= KEYS:
        return False
    pos, neg = row.get("pos"), row.get("neg")
    if type(pos) is not list or type(neg) is not list or not pos or not neg:
        return False
    for text in (row.get("query"), *pos, *neg):
        if type(text) is not str or not text or text.isspace():
            return False
    for text in pos:
        if text in neg:
            return False
    for name in ("prompt", "type", "id"):
        if row.get(name) is not None and type(row[name]) is not str:
            return False
    p, n = row.get("pos_scores"), row.get("neg_scores")
    if p is None and n is None:
        return True
    if type(p) is not list or type(n) is not list or len(p) != len(pos) or len(n) != len(neg):
        return False
    return all(type(score) is float or type(score) is int for score in (*p, *n))


def _quotes(raw: bytes) -> int:
    """The double quotes of a line of JSON that begin or end a string."""
    if b"\\" not in raw:
        return raw.count(b'"')
    plain = raw.replace(b"\\\\", b"")
    return plain.count(b'"') - plain.count(b'\\"')


def _strings(row: dict[str, Any]) -> int:
    """How many strings JSON needs for a row that fits, its keys among them."""
    return len(row) + len(row["pos"]) + len(row["neg"]) + sum(type(value) is str for value in row.values())


def _joined(parts: Iterable[Contents], sha256: str) -> Contents:
    """Consecutive parts as one; bad lines then count from the beginning of the first."""
    parts = list(parts)
    negatives: Counter[int] = Counter()
    bad_lines: list[BadLine] = []
    lines = 0
    for part in parts:
        negatives.update(part.negatives)
        bad_lines += [b.model_copy(update={"line": b.line + lines}) for b in part.bad_lines]
        lines += part.lines
    ranges = [p.scores_range for p in parts if p.scores_range]
    return Contents(
        sha256=sha256,
        lines=lines,
        rows=sum(p.rows for p in parts),
        scored=sum(p.scored for p in parts),
        prompted=sum(p.prompted for p in parts),
        negatives=dict(sorted(negatives.items())),
        scores_range=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
        first_type=next((p.first_type for p in parts if p.rows), None),
        several_positives=sum(p.several_positives for p in parts),
        early=joined(p.early for p in parts),
        after=joined(p.after for p in parts),
        types=tuple(dict.fromkeys(t for p in parts for t in p.types))[:TYPES],
        bad=sum(p.bad for p in parts),
        bad_lines=tuple(bad_lines[:SHOWN]),
    )
