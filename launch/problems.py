"""A problem found before training: what the checks give and the command line prints."""

from __future__ import annotations

from typing import Literal

from launch.config import Frozen


class Problem(Frozen):
    """One finding. An `error` stops the run; a `warning` is printed."""

    id: str
    severity: Literal["error", "warning"]
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.reason} [{self.id}]" + (f"\n  fix: {self.fix}" if self.fix else "")


def error(id: str, reason: str, fix: str = "") -> Problem:
    """A finding that stops the run."""
    return Problem(id=id, severity="error", reason=reason, fix=fix)


def warning(id: str, reason: str, fix: str = "") -> Problem:
    """A finding that is only printed."""
    return Problem(id=id, severity="warning", reason=reason, fix=fix)
