"""What the LLM is asked: the variables of the prompts, the JSON schema of an answer, one request for each passage."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory import demonstrations
from factory.config import Config
from factory.focus import focus
from factory.languages import language
from factory.llm import Request
from factory.prompt_files import PROMPTS, Prompt, read_prompt
from factory.question_titles import own_titles, unnamed
from factory.question_types import ROOM, called, in_words, schedule
from factory.records import InputError, Passage
from factory.settings_questions import GenerateConfig
from factory.token_estimate import crop_to, estimated_tokens

VARIABLES = (
    "asker",
    "passage",
    "context",
    "before",
    "after",
    "count",
    "types",
    "style",
    "examples",
    *demonstrations.VARIABLES,
)
# Who asks, where `generate.asker` does not say.
ASKER = {"zh": "要在资料库里查东西的人", "en": "somebody who looks for something in a collection of documents"}
# How the sentences and blocks that may be empty are put.
WORDING = {
    "zh": {
        "tone": "语气：{}。",
        "length": "每个问题的长度：{}。",
        "examples": "真实用户平时这样提问（只学口吻和长短，不要照抄内容）：\n{}",
        "before": "（上文：……{}）\n",
        "after": "\n（下文：{}……）",
    },
    "en": {
        "tone": " Tone: {}.",
        "length": " Length of each question: {}.",
        "examples": "Real users ask like this (take over their manner and length, not their subjects):\n{}",
        "before": "(Before it: … {})\n",
        "after": "\n(After it: {} …)",
    },
}
# Most characters of each field, where the prompt file does not say.
MAX_CHARACTERS = {
    "zh": {"question": 60, "rephrased": 60, "answer": 40},
    "en": {"question": 240, "rephrased": 240, "answer": 180},
}
NEEDED = {
    "question-document": ("question",),
    "question-answer": ("question", "answer"),
    "question-question": ("question", "rephrased"),
}
# 第3章, 3. or 2.1, but neither the year of 2023 Annual Report nor the measure of 3.5 mm jack
NUMBERING = re.compile(
    r"^((第[\d.]+[章节]?|\d+[章节]|[一二三四五六七八九十]+|[（(][\d一二三四五六七八九十]+[)）])[、.．\s]"
    r"|\d{1,3}(\.\d{1,2})*[、.．](?!\d)|\d{1,2}(\.\d{1,2})+\s(?!\s*(英?寸|[米克吨升万亿倍℃%]|([a-z]{1,2}|inch)\b)))\s*"
)
OTHERS_AFTER = 64  # passages that are shown the same examples: servers reuse a prefix that many requests share


def prompt_file(config: GenerateConfig, lang: str) -> Path:
    if isinstance(config.prompt, str):
        return Path(config.prompt)
    if config.prompt and lang in config.prompt:
        return Path(config.prompt[lang])  # type: ignore[index]
    family = "question-question" if config.pairing == "question-question" else "question-document"
    return PROMPTS / f"{family}.{lang}.md"


def prompt_for(config: GenerateConfig, lang: str) -> Prompt:
    """The prompt for passages in a language.

    Raises:
        InputError: the file is at fault, is for the other language, or its fields are not what the pairing needs.
    """
    path = prompt_file(config, lang)
    prompt = read_prompt(path, VARIABLES)
    if prompt.header.language not in (None, lang):
        raise InputError(
            f"the prompt is for passages in {prompt.header.language}, and there are some in {lang}",
            where=path,
            fix="generate.prompt: {zh: FILE, en: FILE}; or take `language` out of its header",
        )
    if prompt.header.fields:
        for name in NEEDED[config.pairing]:
            if name not in prompt.header.fields:
                raise InputError(f"generate.pairing {config.pairing} needs the field {name!r}", where=path)
    return prompt


def fields_of(config: GenerateConfig, lang: str, prompt: Prompt) -> dict[str, int]:
    """What the LLM writes for each question, in order, with the most characters of each."""
    fields = ["question", "rephrased", "answer"] if config.pairing == "question-question" else ["question", "answer"]
    return dict(prompt.header.fields) or {f: MAX_CHARACTERS[lang][f] for f in fields}  # type: ignore[arg-type]


def schema(config: GenerateConfig, lang: str, prompt: Prompt, types: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of one answer: `questions_per_passage` items with the prompt's fields.

    Where the package's demonstration is shown, the question's field is called by its kind, as it is there.
    """
    most, count = fields_of(config, lang, prompt), config.questions_per_passage
    kinds = [(called(kind, lang), ROOM.get(kind, 1.0)) for kind in types] or [("question", 1.0)] * count
    if not any("example_answer" in part.get_identifiers() for _, part in prompt.parts):
        kinds = [("question", max(1.0, *(share for _, share in kinds)))] * count

    def item(question: str, share: float) -> dict[str, Any]:
        fields = {question if f == "question" else f: n if f == "answer" else int(share * n) for f, n in most.items()}
        return {
            "type": "object",
            # the limits keep a small model from repeating itself until max_tokens
            "properties": {f: {"type": "string", "minLength": 1, "maxLength": n} for f, n in fields.items()},
            "required": list(fields),
            "additionalProperties": False,
        }

    # prefixItems without items: llama.cpp takes `items` for the whole array wherever it is there
    of = {"items": item(*kinds[0])} if len(set(kinds)) == 1 else {"prefixItems": [item(*kind) for kind in kinds]}
    items = {"type": "array", **of, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


def requests_for(
    asked: Sequence[Passage],
    config: Config,
    *,
    corpus: Sequence[Passage] = (),
    askers: Mapping[str, Sequence[str]] | None = None,
    examples: Sequence[str] = (),
) -> list[Request]:
    """One request for each passage.

    Args:
        corpus: all passages in their documents' order, for `generate.neighbours`.
        askers: by language, who asks, in turn; examples: the users' own questions, some of which are shown.
    """
    prompts: dict[str, Prompt] = {}
    turns = schedule(config.generate, len(asked))
    around = neighbours(corpus, config.generate.neighbours)
    requests = []
    own, share = own_titles(corpus or asked), config.generate.unnamed
    for number, whole in enumerate(asked):
        hidden = whole.title in own and random.Random(f"{config.seed}:unnamed:{whole.id}").random() < share
        passage = (unnamed(whole) if hidden else None) or whole
        lang = language(passage.text)
        if lang not in prompts:
            prompts[lang] = prompt_for(config.generate, lang)
        before, after = around.get(passage.id, ("", "")) if passage is whole else ("", "")
        words = {"before": before, "after": after, "examples": shown(examples, lang, number, config)}
        words |= {"tone": config.generate.tone, "length": config.generate.length}
        put = {name: WORDING[lang][name].format(text) if text else "" for name, text in words.items()}
        prompt = prompts[lang]
        shape = schema(config.generate, lang, prompt, turns[number])
        fields = list(fields_of(config.generate, lang, prompt))
        about = focus(crop(passage, config, 0), lang, len(turns[number]), passage.id) if config.generate.focus else []
        variables = {
            "passage": "",
            "context": context_of(passage),
            "count": config.generate.questions_per_passage,
            "asker": asker_of(number, lang, config, askers or {}),
            "types": in_words(turns[number], lang, about),
            "style": put.pop("tone") + put.pop("length"),
            **put,
            **demonstrations.demonstration(lang, turns[number], fields, focused=config.generate.focus),
        }
        variables["passage"] = crop(passage, config, size(prompt.messages(variables)))
        requests.append(
            Request(
                messages=prompt.messages(variables),
                max_tokens=config.generate.max_tokens,
                temperature=config.generate.temperature,
                seed=config.llm.seed,
                schema=shape,
            )
        )
    return requests


def asker_of(number: int, lang: str, config: Config, askers: Mapping[str, Sequence[str]]) -> str:
    """Who asks about the passage with this number."""
    own = config.generate.asker
    everybody = [*([own] if isinstance(own, str) else own), *askers.get(lang, ())]
    named = [a for a in everybody if a.strip()]
    return named[number % len(named)] if named else ASKER[lang]


def shown(examples: Sequence[str], lang: str, number: int, config: Config) -> str:
    """The examples for the passage with this number, one a line: drawn anew after each `OTHERS_AFTER` passages."""
    here = [e for e in examples if language(e) == lang] or list(examples)
    draw = random.Random(f"{config.seed}:examples:{number // OTHERS_AFTER}")
    return "\n".join(f"- {e}" for e in draw.sample(here, min(config.generate.examples_shown, len(here))))


def neighbours(corpus: Sequence[Passage], characters: int) -> dict[str, tuple[str, str]]:
    """By passage id the end of the passage before it in its document and the beginning of the one after it, on one line."""
    if not characters:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for i, passage in enumerate(corpus):
        sides = [corpus[j] if 0 <= j < len(corpus) else None for j in (i - 1, i + 1)]
        before, after = (s.text if s and s.document_id == passage.document_id else "" for s in sides)
        found[passage.id] = (" ".join(before[-characters:].split()), " ".join(after[:characters].split()))
    return found


def crop(passage: Passage, config: Config, prompt: int) -> str:
    """The passage, or as much of its beginning as the encoder reads (`model.passage_max_length`: nobody could find what lies
    behind) and as fits `llm.context` beside a prompt of so many tokens and the answer.

    The LLM's tokens are taken for the training model's or, if more, for those guessed, with a fifth to spare.
    """
    room = max(16, int(0.8 * (config.llm.context - config.generate.max_tokens - prompt)))
    read, text = min(room, config.model.passage_max_length), passage.text
    if passage.tokens > read:
        text = text[: max(1, len(text) * read // passage.tokens)]
    return crop_to(text, room)


def size(messages: Sequence[tuple[str, str]]) -> int:
    return estimated_tokens("".join(content for _, content in messages))


def context_of(passage: Passage) -> str:
    """Title and heading path without their numbering, which small models copy into questions; "" for a table's row without a title."""
    parts = [NUMBERING.sub("", part) for part in (passage.title, *passage.headings)]
    return " > ".join(dict.fromkeys(filter(None, parts)))
