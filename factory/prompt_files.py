"""Prompt files: a YAML header between `---` lines, then `## system` and `## user` with ${variables}.

Between them may stand demonstrations, each a `## user` and the `## assistant` that answers it: what a small LLM follows best.

The header's keys, all of them optional: `purpose` (a sentence), `language` (zh or en: the passages that it is for),
`variables` (those that the text uses), `fields` (what the LLM writes for each question, with the most characters that
it may take: the JSON schema of its answer), `answer` (in words, where the answer is no JSON).
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from factory.records import InputError, Record, problem

PROMPTS = Path(__file__).parent / "prompts"
GAP = re.compile(r"\n{3,}")
PART = re.compile(r"^## (system|user|assistant)[ \t]*\n", re.M)


class Header(Record):
    """What a prompt file says of itself."""

    purpose: str = ""
    language: Literal["zh", "en"] | None = None
    variables: list[str] | None = None
    fields: dict[Literal["question", "rephrased", "answer"], Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    answer: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt file that has been read; `messages` fills it in."""

    parts: tuple[tuple[str, string.Template], ...]  # (role, text): system, user, then assistant and user in turn
    header: Header = field(default_factory=Header)

    def messages(self, variables: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        """(role, text) of each message; empty variables leave no gap and no empty brackets."""
        empty = [b for name, value in variables.items() if value == "" for b in (f"（${{{name}}}）", f" (${{{name}}})")]

        def filled(text: str) -> str:
            for brackets in empty:
                text = text.replace(brackets, "")
            return GAP.sub("\n\n", string.Template(text).safe_substitute(variables)).strip()

        return tuple((role, filled(part.template)) for role, part in self.parts)


def read_prompt(path: Path, known: Collection[str], needed: Collection[str] = ("passage",)) -> Prompt:
    """The prompt in a file.

    Args:
        known: the variables that will be filled in; needed: those of them that the text must use.

    Raises:
        InputError: the file is missing, its header is no YAML or has other keys, a part is missing, or it uses a variable
            that is not known or not in its header.
    """
    if not path.is_file():
        raise InputError("no such prompt file", where=path)
    try:
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise InputError(f"not UTF-8 (byte {e.start})", where=path, fix="save it as UTF-8") from e
    header, text = _header(text, path)
    found = PART.split(text)[1:]
    roles = found[::2]
    if len(roles) < 2 or roles != ["system", *(("user", "assistant")[i % 2] for i in range(len(roles) - 1))]:
        got = ", ".join(f"## {role}" for role in roles) or "no part"
        what = f"got {got}; expected ## system, ## user, and for demonstrations ## assistant, ## user after that"
        raise InputError(what, where=path, fix=f"copy one from {PROMPTS}")
    if roles[-1] == "assistant":
        raise InputError(
            "the last part is ## assistant: nothing is left to be asked", where=path, fix="end with ## user"
        )
    prompt = Prompt(tuple((r, string.Template(t.strip())) for r, t in zip(roles, found[1::2], strict=True)), header)
    names = [set(part.get_identifiers()) for _, part in prompt.parts]
    used = set().union(*names)
    for name in sorted(needed):
        if name not in names[0] | names[-1]:  # a demonstration shows another passage
            raise InputError(f"the prompt never names ${{{name}}}", where=path)
    for name in sorted(used | set(header.variables or ())):
        if name not in known:
            fix = f"variables are {', '.join(sorted(known))}; a dollar sign itself is written $$"
            raise InputError(f"no such variable ${{{name}}}", where=path, fix=fix)
    if header.variables is not None and used - set(header.variables):
        missing = ", ".join(sorted(used - set(header.variables)))
        raise InputError(f"used but not in the header's variables: {missing}", where=path)
    return prompt


def _header(text: str, path: Path) -> tuple[Header, str]:
    if not text.startswith("---\n"):
        return Header(), text
    written, end, rest = text[4:].partition("\n---\n")
    if not end:
        raise InputError("the header has no end: expected a line ---", where=path)
    try:
        return Header.model_validate(yaml.safe_load(written) or {}), rest
    except yaml.YAMLError as e:
        raise InputError(f"the header is not valid YAML: {e}", where=path) from e
    except ValidationError as e:
        raise InputError(f"the header: {problem(e)}", where=path, fix=f"copy one from {PROMPTS}") from e
