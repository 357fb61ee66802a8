"""What a migration found: a launch.yaml, and everything that a reader should know about the way."""

from __future__ import annotations

import os
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.config import Frozen, absolute

COMMENT = textwrap.TextWrapper(110, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)
COMMENT.break_on_hyphens = False


class Change(Frozen):
    """`given` in the command is `now` in launch.yaml (`key: value`; empty where it is left out)."""

    given: str
    now: str
    why: str


class Migration(Frozen):
    """A command as a launch.yaml, and everything that a reader should know about the way.

    `config` has the keys of LaunchConfig in its order, paths as in the command; `remarks` are the texts
    that were taken for remarks and dropped; `notes` say what to look at, such as paths that do not exist;
    `environment` is what the script sets, for the user to set; `not_understood` has line and text.
    """

    recipe: str
    config: dict[str, Any]
    changes: tuple[Change, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    environment: dict[str, str]
    not_understood: tuple[tuple[int, str], ...]

    def yaml(self) -> str:
        """The text of launch.yaml: what happened as comments, above the key that it happened to."""
        head = ["Made by `bge-launch migrate`. Keep it where the command was run: paths are relative to this file."]
        head += [f"Set before it runs: export {name}={value}" for name, value in self.environment.items()]
        head += [f"NOT UNDERSTOOD, line {line}: {text}" for line, text in self.not_understood]
        head += [f"Note: {note}" for note in self.notes]
        head += [f"{c.given}: left out. {c.why}" for c in self.changes if ":" not in c.now]
        return "".join([_comment(text) for text in head] + [self._entry("", k, v) for k, v in self.config.items()])

    def _entry(self, above: str, key: str, value: Any) -> str:
        import yaml

        path = above + key
        comments = "".join(_comment(f"{c.given}: {c.why}") for c in self.changes if c.now.startswith(f"{path}:"))
        if isinstance(value, dict) and not above:
            inside = "".join(self._entry(f"{key}.", k, v) for k, v in value.items())
            return f"{comments}{key}:\n{textwrap.indent(inside, '  ')}"
        return comments + yaml.safe_dump({key: value}, allow_unicode=True, sort_keys=False, width=10_000)

    def explain(self) -> str:
        """The same for the terminal: one paragraph for each kind of finding that there is."""
        parts = {
            "changed": [f"{c.given} → {c.now or 'left out'}\n    {c.why}" for c in self.changes],
            "to look at": self.notes,
            "taken for remarks and dropped": self.remarks,
            "environment, yours to set": [f"{name}={value}" for name, value in self.environment.items()],
            "not understood": [f"line {line}: {text}" for line, text in self.not_understood],
        }
        found = [f"{what}:\n" + "\n".join(f"  {line}" for line in lines) for what, lines in parts.items() if lines]
        return "\n\n".join([f"recipe: {self.recipe}", *found]) + "\n"


def _comment(text: str) -> str:
    return COMMENT.fill(" ".join(text.split())) + "\n"


@dataclass
class Draft:
    """A Migration in the making. `told`: the trainer's arguments that the command gave, in today's names."""

    recipe: str
    folder: Path
    names: frozenset[str]
    told: set[str] = field(default_factory=set)
    keys: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    not_understood: list[tuple[int, str]] = field(default_factory=list)

    def change(self, given: str, now: str, why: str) -> None:
        """Adds a Change."""
        self.changes.append(Change(given=given, now=now, why=why))

    def lost(self, line: int, text: str) -> None:
        """Adds what is not understood."""
        self.not_understood.append((line, text))


def scalar(text: str) -> Any:
    """True, false or a number as such; `007` stays a text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][-+]?\d+)", text) else text


def is_there(draft: Draft, path: str) -> bool:
    """Whether a path of the command exists."""
    try:
        return os.path.exists(absolute(path, draft.folder))  # False, too, where no path can be so long
    except ValueError:  # a variable that is not set
        return False
