"""Reading training files: the fast way and several processes give the facts that Example, line by line, gives."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from factory.records import Example, InputError, each_line, parse
from launch.data import scan
from launch.scan import WORTH, Contents, _folder, read

ROW = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}


def lines(path: Path, *rows: Any) -> Path:
    """Each row a line; bytes as they are, anything else as JSON."""
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


# Every kind of line

TEXT = st.sampled_from(
    ["a", "b", 'say "焊接"', "\\", '\\"', "", " ", "\t\n", "\x1c", "\u2003", "\ufeff", "\u200b", "é", 1, None, ["a"]]
)
SCORE = st.sampled_from([0.5, -3, 1e400, float("nan"), 10**30, True, None, "1"])
ROWS = st.fixed_dictionaries(
    {"query": TEXT, "pos": st.lists(TEXT, max_size=3) | TEXT, "neg": st.lists(TEXT, max_size=4) | TEXT},
    optional={
        "pos_scores": st.lists(SCORE, max_size=3) | st.none(),
        "neg_scores": st.lists(SCORE, max_size=4) | st.none(),
        "prompt": TEXT,
        "type": TEXT,
        "id": TEXT,
        "other": TEXT,
    },
)
FAIR = st.sampled_from(
    [ROW, ROW | {"pos_scores": [3], "neg_scores": [1.5, -2]}, ROW | {"prompt": "", "type": "symmetric"}]
)
WORD = st.sampled_from(["a", "b", "c", "d", '"', "e\\"])
NEARLY = st.fixed_dictionaries(
    {"query": WORD, "pos": st.lists(WORD, min_size=1, max_size=2), "neg": st.lists(WORD, min_size=1, max_size=2)},
    optional={name: st.lists(st.floats(-9, 9), min_size=1, max_size=2) for name in ("pos_scores", "neg_scores")},
)
FIRST = b'{"query": "q", "pos": ["p"], "neg": ["n"]'
BYTES = st.sampled_from(
    [
        *(b"", b"  ", b"{", b"[1]", b"\xff", b'"'),
        FIRST.replace(b'"q"', b'"\\ud800"') + b"}",
        FIRST.replace(b'"p"', b'"neg"') + b"}",
        FIRST + b', "neg": ["m"]}',
        FIRST + b', "other": 1, "other": 2}',
    ]
)
LINE = (FAIR | NEARLY | ROWS).map(lambda row: json.dumps(row).encode()) | BYTES


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, max_size=6))
@example([json.dumps(ROW | {"query": blank}).encode() for blank in ("", " ", "\u2003\n", "\x1c", "\ufeff")])
@example([json.dumps(ROW | {"pos": [" "]}).encode(), json.dumps(ROW | {"neg": ["n", ""]}).encode()])
def test_a_line_counts_just_when_validate_takes_it(tmp_path: Path, rows: list[bytes]) -> None:
    path = lines(tmp_path / "t.jsonl", *rows)
    found = read(path)
    taken: list[Example] = []
    refused: list[tuple[int, str]] = []
    for number, row in each_line(path, strict=True):
        try:
            if isinstance(row, InputError):
                raise row
            taken.append(parse(Example, row, ""))
        except InputError as e:
            refused.append((number, e.what))
    assert (found.rows, found.bad) == (len(taken), len(refused))
    assert [(bad.line, bad.what) for bad in found.bad_lines] == refused
    assert sum(n * rows for n, rows in found.negatives.items()) == sum(len(row.neg) for row in taken)
    assert found.prompted == sum(row.prompt is not None for row in taken)
    assert found.first_type == (taken[0].type if taken else None)
    scores = [s for row in taken for s in (row.pos_scores or []) + (row.neg_scores or [])]
    assert found.scores_range == ((min(scores), max(scores)) if scores else None)


# Several processes


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
@pytest.mark.parametrize("span", [7, 64, 500])
def test_parts_read_by_several_processes_make_the_same_facts(tmp_path: Path, span: int) -> None:
    choose = random.Random(span)
    rows: list[Any] = [
        ROW | {"query": "长" * choose.randrange(1, 40), "neg": ["n"] * choose.randrange(1, 9)} for _ in range(40)
    ]
    for at in (3, 11, 39):
        rows[at] = b"{"
    rows[20] = b""
    rows[0] = b"\xef\xbb\xbf" + json.dumps(ROW | {"type": "symmetric"}).encode()
    path = lines(tmp_path / "t.jsonl", *rows)
    path.write_bytes(path.read_bytes().rstrip())
    whole = read(path)
    assert read(path, span) == whole
    assert [bad.line for bad in whole.bad_lines] == [4, 12, 40] and whole.rows == 36 and whole.first_type == "symmetric"


def test_only_the_first_bad_lines_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", *[b"{"] * 30, ROW)
    assert read(path, 16) == read(path)
    (facts,) = scan([path], 3).files
    assert facts.rows == 1 and len(facts.problems) == 21
    assert facts.problems[0].reason.startswith(f"{path}:1: not valid JSON")
    assert facts.problems[-1].reason == f"{path}: 10 more bad lines"


# The cache


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file large enough for the cache, last changed a minute ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = lines(tmp_path / "t.jsonl", *[ROW | {"pos": ["p" * (WORTH // 8)]}] * 9)
    return aged(path, monkeypatch)


def aged(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody can set a file's change time: here a minute later, now is now."""
    now = path.stat().st_ctime
    monkeypatch.setattr("launch.scan.time.time", lambda: now + 60)
    return path


def kept() -> list[Path]:
    return list(_folder().iterdir()) if _folder().is_dir() else []


def test_an_unchanged_file_is_not_read_again(large: Path) -> None:
    first = scan([large], 4)
    (file,) = kept()
    stored = json.loads(file.read_text())
    stored["contents"]["rows"] = 12345  # what only the cache can say
    file.write_text(json.dumps(stored))
    again = scan([large], 2).files[0]
    assert again.rows == 12345 and again.sha256 == first.files[0].sha256
    assert (first.files[0].thin, again.thin) == (9, 0)  # the group size is no matter of the file
    assert scan([large], 3).files[0].thin == 0


def test_a_changed_file_is_read_again_even_with_the_same_size_and_time(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan([large], 4).files[0]
    stat = large.stat()
    large.write_bytes(large.read_bytes().replace(b'"q"', b'"Q"', 1))
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert scan([aged(large, monkeypatch)], 4).files[0].sha256 != first.sha256
    lines(large, ROW)
    assert scan([large], 4).files[0].rows == 1


def test_a_file_written_just_now_is_not_kept(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(large.parent / "other"))
    os.utime(large)
    assert scan([large], 4).rows == 9 and kept() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"contents": {}}'])
def test_a_spoilt_cache_is_written_anew(large: Path, text: str) -> None:
    first = scan([large], 4)
    (file,) = kept()
    whole = file.read_text()
    file.write_text(text)
    assert scan([large], 4) == first and file.read_text() == whole


def test_a_cache_that_cannot_be_written_is_no_error(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (large.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(large.parent / "file"))
    assert scan([large], 4).rows == 9


def test_small_files_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = aged(lines(tmp_path / "t.jsonl", ROW), monkeypatch)
    assert scan([path], 4).rows == 1 and kept() == []
    assert read(lines(tmp_path / "empty.jsonl")) == Contents(sha256=scan([tmp_path / "empty.jsonl"], 4).files[0].sha256)
