"""Who might search in the corpus: proposed by the LLM from a sample of its passages."""

from __future__ import annotations

import random
from collections.abc import Sequence

from factory.config import Config
from factory.languages import language
from factory.llm import LLM, Request
from factory.parsing import parse_names
from factory.prompt_files import PROMPTS, read_prompt
from factory.records import Passage

SAMPLE, CHARACTERS = 8, 150  # passages of which the LLM sees the beginning; about as much as one whole passage
RARE = 0.1  # a language with fewer of the passages gets no askers of its own


def propose(passages: Sequence[Passage], config: Config, llm: LLM) -> dict[str, list[str]]:
    """`generate.propose_askers` askers for each language of the passages; a language for which the LLM wrote nothing that
    can be read has none."""
    found: dict[str, list[str]] = {}
    for lang in ("zh", "en"):
        own = [p for p in passages if language(p.text) == lang]
        if not own or len(own) < RARE * len(passages):
            continue
        prompt = read_prompt(PROMPTS / f"askers.{lang}.md", ("sample", "count"), ("sample", "count"))
        draw = random.Random(f"{config.seed}:askers").sample(own, min(SAMPLE, len(own)))
        sample = "\n".join(f"- {' '.join(p.text[:CHARACTERS].split())}" for p in draw)
        request = Request(
            messages=prompt.messages({"sample": sample, "count": config.generate.propose_askers}),
            max_tokens=40 * config.generate.propose_askers + 40,
            temperature=config.generate.temperature,
            seed=config.llm.seed,
            schema=_schema(config.generate.propose_askers, lang),
        )
        (answer,), _ = llm.complete([request], "propose askers")
        found[lang] = parse_names(answer.text)[: config.generate.propose_askers]
    return found


def _schema(count: int, lang: str) -> dict[str, object]:
    name = {"type": "string", "minLength": 2, "maxLength": 30 if lang == "zh" else 100}
    names = {"type": "array", "items": name, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"askers": names}, "required": ["askers"], "additionalProperties": False}
