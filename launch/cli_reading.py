"""The commands `diagnose` and `migrate`, which read somebody's log or script."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def diagnose(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Ours or anybody's; - reads standard input.")],
) -> None:
    """Say why a training failed: the known causes in its log, each with its line and what to change."""
    from launch.diagnose import report

    print(report(_text(log)), end="")


def migrate(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A file with the command; - reads standard input.")],
    out: Annotated[Path | None, typer.Option(help="Write launch.yaml here; default: print it.")] = None,
) -> None:
    """Turn a training command, or a script with one, into the launch.yaml that does the same today."""
    from factory.errors import InputError
    from launch.contract import installed
    from launch.migrate import migrate as read

    if out and out.exists():
        raise InputError("is there already", where=out, fix="give --out another name, or move the file aside")
    text, folder = _text(script), Path.cwd() if str(script) == "-" else script.parent
    made = read(text, folder=folder)
    made = read(text, folder=folder, names=installed(made.recipe).names)
    print(made.explain(), file=sys.stderr)
    if out is None:
        print(made.yaml(), end="")
        return
    write_text(out, made.yaml())
    print(f"wrote {out}; next: bge-launch check {out}", file=sys.stderr)


def _text(path: Path) -> str:
    """The file, or with - standard input, in whatever encoding; bytes that fit none are shown as such."""
    from factory.decoding import Unreadable, decode
    from factory.errors import InputError

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as e:
        raise InputError(e.strerror or "cannot be read", where=path) from e
    try:
        return decode(data)
    except Unreadable:
        return data.decode("utf-8-sig", errors="replace")


def write_text(path: Path, text: str) -> None:
    """The whole text or none of it; InputError if that cannot be."""
    from factory.errors import InputError
    from factory.workspace import atomic_text

    try:
        with atomic_text(path) as file:
            file.write(text)
    except OSError as e:
        raise InputError(e.strerror or "cannot be written", where=path) from e
