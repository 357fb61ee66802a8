"""The demonstration in the package's prompts: a passage with a question of each kind that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml

from factory.focus import sentence_with
from factory.prompt_files import PROMPTS
from factory.question_types import called, in_words

FILE = PROMPTS / "demonstration.yaml"
# What is shown where every kind that is asked for is the user's own.
OTHERWISE = ("fact", "how-to")
VARIABLES = ("example_context", "example_passage", "example_count", "example_types", "example_answer")


@cache
def demonstrations() -> dict[str, Any]:
    """By language: words, context, passage and by kind of question its fields; see the file."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def demonstration(lang: str, types: Sequence[str], fields: Sequence[str], *, focused: bool = False) -> dict[str, str]:
    """The prompts' variables of a demonstration of these kinds, each once; its answer is JSON with these fields, the
    question's called as `question_types.called` has it.

    Args:
        focused: it is told for each kind which sentence the answer comes from.
    """
    shown = demonstrations()[lang]
    kinds = [kind for kind in dict.fromkeys(types) if kind in shown["questions"]] or list(OTHERWISE)
    items = [
        {called(kind, lang) if name == "question" else name: shown["questions"][kind][name] for name in fields}
        for kind in kinds
    ]
    answers = [shown["questions"][kind]["answer"] for kind in kinds] if focused else []
    about = [sentence_with(answer, shown["passage"], lang) for answer in answers]
    return {
        "example_context": shown["context"],
        "example_passage": shown["passage"],
        "example_count": str(len(kinds)),
        "example_types": in_words(kinds, lang, about),
        "example_answer": json.dumps({"items": items}, ensure_ascii=False, separators=(",", ":")),
    }
