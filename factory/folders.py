"""A folder that is written beside its place and moved there when it is whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from factory.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What safetensors and datasets say, in errors without a number.
SAID = (*(f"(os error {number})" for number in FULL), "Not enough disk space")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, which takes the name `path` when the block ends well, and is removed otherwise.

    Raises:
        InputError: `path` is there and not an empty folder; the disk is full.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError("is there already and not empty", where=path, fix="give --out a new or empty folder")
    with temporary_folder(path) as temporary:
        yield temporary
        os.replace(temporary, path.resolve())


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for as long as the block runs. What killed processes left there for `path` goes, too.

    Raises:
        InputError: the disk is full.
    """
    path = path.resolve()
    for stale in path.parent.glob(".*.tmp"):
        pid = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d{{1,7}})\.tmp", stale.name)
        if pid and (int(pid[1]) == os.getpid() or not psutil.pid_exists(int(pid[1]))):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
    except Exception as e:
        if _of_full_disk(e) or _of_full_disk(e.__cause__):
            raise InputError(
                "the disk is full", where=path, fix="free some space and run the same command again"
            ) from e
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _of_full_disk(e: BaseException | None) -> bool:
    said = not isinstance(e, InputError) and any(text in str(e) for text in SAID)
    return said or getattr(e, "errno", None) in FULL
