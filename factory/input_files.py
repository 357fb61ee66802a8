"""Which files the input names: a folder is searched with all that its links lead to; a run of ours in it is no input."""

from __future__ import annotations

import glob
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from factory.records import InputError
from factory.workspace import MANIFEST


def find_files(paths: str | list[str]) -> list[tuple[Path, str]]:
    """(file, name relative to its input folder) for every file, sorted by name; hidden ones are left out.

    A folder in which `bge-factory build` works or has worked is passed over without a word: what we wrote is no
    document. A link to nothing and a folder that may not be listed are there, too: reading them says what is wrong.

    Raises:
        InputError: a path that names nothing.
    """
    found: dict[str, str] = {}
    for pattern in [paths] if isinstance(paths, str) else paths:
        path = Path(pattern)
        if os.path.isdir(path):
            files = [(f, f.relative_to(path).as_posix()) for f in _inside(path)]
        elif os.path.lexists(path):
            files = [(path, path.name)]
        else:
            matches = [Path(m) for m in glob.glob(pattern, recursive=True) if os.path.isfile(m)]
            named = set(path.parents)
            files = [(m, m.name) for m in matches if not any(_ours(p) for p in m.parents if p not in named)]
        if not files:
            raise InputError(
                "a run of bge-factory, which is no input"
                if _ours(path)
                else "no such file or folder, or nothing in it",
                where=pattern,
                fix="correct the path in the configuration",
            )
        for each, name in files:
            found.setdefault(os.path.realpath(each) if os.path.exists(each) else os.path.abspath(each), name)
    taken: set[str] = set()
    result = []
    for name, file in sorted((name, file) for file, name in found.items()):
        unique = name if name not in taken else file
        taken.add(unique)
        result.append((Path(file), unique))
    return result


def _inside(folder: Path) -> Iterator[Path]:
    """The files below a folder, each folder once; one that a link leads to comes after those that lie there."""
    waiting, seen = deque([folder]), set()
    while waiting:
        here = waiting.popleft()
        real = os.path.realpath(here)
        if real in seen or _ours(here):
            continue
        seen.add(real)
        try:
            inside = sorted(here.iterdir())
        except OSError:
            yield here
            continue
        for each in inside:
            if each.name.startswith((".", "~$")):
                continue
            if os.path.isdir(each):
                (waiting.append if each.is_symlink() else waiting.appendleft)(each)
            elif os.path.isfile(each) or not os.path.exists(each):
                yield each


def _ours(folder: Path) -> bool:
    """Whether a build made this folder, or has begun to: until its first stage has ended there is no manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return (folder / ".lock").exists() and (folder / "1-documents.jsonl").exists()
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and "bge_factory" in manifest


def sources(paths: str | list[str]) -> Iterable[tuple[str, int, int]]:
    """(name, bytes, modification time in ns) of each file: what a stage rests on that reads them."""
    for path, name in find_files(paths):
        stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
        yield name, stat.st_size, stat.st_mtime_ns
