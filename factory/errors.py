"""The error that is the user's to mend. On its own, so that `--help` need not import pydantic."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """The user's input is at fault. The command line prints the message and exits with code 2.

    Args:
        what: what is wrong, with what was got and what was expected.
        where: file, or file:line, where it is wrong.
        fix: how to mend it.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        super().__init__((f"{where}: " if where else "") + what + (f"\n  fix: {fix}" if fix else ""))
