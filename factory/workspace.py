"""A run's folder: atomic writes, fingerprints, the manifest `run.json`, one run at a time."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import jsonlines
from filelock import FileLock, Timeout
from pydantic import BaseModel

from factory import __version__
from factory.records import Dropped, InputError

MANIFEST = "run.json"
LIBRARIES = ("FlagEmbedding", "torch", "transformers", "faiss-cpu", "rapidfuzz", "semantic-text-splitter", "bm25s")


@dataclass(frozen=True)
class Outcome:
    """What a stage did: rows taken in, rows passed on (`counts` in the stage's own unit), rows left out.

    The invariant `taken == passed + len(dropped)` is asserted by the workspace.
    """

    taken: int
    passed: int
    dropped: list[Dropped] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes the final name only after the block ends well.

    Raises:
        InputError: the disk is full. Nothing half-written is left under the final name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                "the disk is full",
                where=path,
                fix="free some space and run the same command again: finished work is kept",
            ) from e
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """`atomic`, opened as UTF-8 text with `\\n` line ends."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as f:
        yield f


def write_jsonl(path: Path, rows: Iterable[BaseModel | Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, atomically; returns how many."""
    count = 0
    with atomic_text(path) as f, jsonlines.Writer(f, dumps=lambda row: json.dumps(row, ensure_ascii=False)) as writer:
        for row in rows:
            writer.write(row.model_dump(mode="json") if isinstance(row, BaseModel) else row)
            count += 1
    return count


def write_json(path: Path, value: Any) -> None:
    with atomic_text(path) as f:
        json.dump(value, f, ensure_ascii=False, indent=2, default=str)
        f.write("\n")


class Workspace:
    """The folder of one run. `stage` runs a step, or skips it when nothing that it rests on has changed.

    Args:
        cache: of LLM answers, embeddings and reranker scores; by default the folder's own.

    Raises:
        InputError: another process works in the folder, or `run.json` there is not ours.
    """

    def __init__(self, root: Path, config: Mapping[str, Any], say: Callable[[str], None], cache: Path | None = None):
        self.root, self.say, self.cache = root, say, cache or root / "cache"
        if root.exists() and not root.is_dir():
            raise InputError("is a file, expected a folder for the run", where=root)
        if root.is_dir() and any(root.iterdir()) and not (root / MANIFEST).exists() and not (root / ".lock").exists():
            raise InputError(
                "folder is not empty and holds no run.json", where=root, fix="give --out a new or empty folder"
            )
        root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(root / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as e:
            raise InputError(
                "another bge-factory works in this folder", where=root, fix="wait until it ends, or give another --out"
            ) from e
        _clear(root)
        self.manifest = self._read_manifest()
        self.manifest |= {
            "bge_factory": __version__,
            "config": config,
            "versions": {name: _version(name) for name in LIBRARIES} | {"python": sys.version.split()[0]},
        }
        self.manifest.setdefault("stages", {})

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def path(self, name: str) -> Path:
        return self.root / name

    def stage(
        self,
        name: str,
        work: Callable[[], Outcome],
        *,
        outputs: Iterable[str],
        inputs: Iterable[str] = (),
        rests_on: Any = None,
    ) -> None:
        """Run `work`, which writes `outputs`; skip it if its fingerprint and its outputs are unchanged.

        Args:
            inputs: files of this folder that it reads; their bytes count.
            rests_on: whatever else decides the result: its part of the configuration, models, sources.
        """
        outputs = list(outputs)
        key = fingerprint([name, __version__, rests_on, {i: sha256_file(self.path(i)) for i in inputs}])
        entry = self.manifest["stages"].get(name)
        if entry and entry["fingerprint"] == key and self._intact(entry["outputs"]):
            self.say(f"{name}: unchanged, kept ({_summary(entry)})")
            return
        self.manifest["stages"].pop(name, None)
        started = time.monotonic()
        outcome = work()
        assert outcome.taken == outcome.passed + len(outcome.dropped), (
            name,
            outcome.taken,
            outcome.passed,
            len(outcome.dropped),
        )
        write_jsonl(self.path(f"dropped/{name}.jsonl"), outcome.dropped)
        entry = {
            "fingerprint": key,
            "outputs": {o: sha256_file(self.path(o)) for o in [*outputs, f"dropped/{name}.jsonl"]},
            "taken": outcome.taken,
            "passed": outcome.passed,
            "counts": outcome.counts,
            "dropped": dict(Counter(d.reason for d in outcome.dropped)),
            "seconds": round(time.monotonic() - started, 1),
        }
        self.manifest["stages"][name] = entry
        self.save()
        self.say(f"{name}: {_summary(entry)} in {entry['seconds']:.0f} s")

    def forget(self, name: str) -> None:
        """A stage that this configuration has not: what an earlier run left of it is not this run's."""
        self.manifest["stages"].pop(name, None)

    def save(self) -> None:
        write_json(self.path(MANIFEST), self.manifest)

    def _intact(self, outputs: Mapping[str, str]) -> bool:
        return all(self.path(o).is_file() and sha256_file(self.path(o)) == digest for o, digest in outputs.items())

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self.path(MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise InputError(
                f"not valid JSON: {e}", where=self.path(MANIFEST), fix="delete it to redo the stages; caches stay"
            ) from e
        if not isinstance(manifest, dict) or "bge_factory" not in manifest:
            raise InputError("not a manifest of bge-factory", where=self.path(MANIFEST), fix="give another --out")
        return manifest


def _clear(root: Path) -> None:
    """Take away what processes that have died left half-written in a folder; those alive may be at it."""
    for stale in list(root.rglob(".*.tmp")):
        pid = stale.name.split(".")[-2]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _summary(entry: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{value:,} {key}" for key, value in entry["counts"].items())
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in entry["dropped"].items())
    return counts + (f"; dropped: {dropped}" if dropped else "")
