"""What the LLM is asked: prompt files, their variables, the JSON schema of an answer."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from factory.config import Config
from factory.languages import language
from factory.llm import Request
from factory.records import InputError, Passage
from factory.settings import GenerateConfig

PROMPTS = Path(__file__).parent / "prompts"
# How each kind is asked for; a kind that is not here is handed to the prompt as the user wrote it.
TYPES = {
    "zh": {
        "fact": "问一个具体的数值或事实",
        "how-to": "问该怎么做",
        "symptom": "说出看到的现象，问是什么原因",
        "comparison": "问两样东西有什么区别",
        "keyword": "只写几个搜索用的关键词",
        "reason": "问为什么",
        "colloquial": "用最口语的话问",
    },
    "en": {
        "fact": "asks for a figure or fact",
        "how-to": "asks what to do",
        "symptom": "tells what was seen and asks why",
        "comparison": "asks how two things differ",
        "keyword": "is only a few search keywords",
        "reason": "asks why",
        "colloquial": "is asked in slang",
    },
}
# Who asks, where `generate.asker` does not say.
ASKER = {"zh": "要在资料库里查东西的人", "en": "somebody who looks for something in a collection of documents"}
MAX_CHARACTERS = {
    "zh": {"question": 60, "rephrased": 60, "answer": 40},
    "en": {"question": 240, "rephrased": 240, "answer": 180},
}
NUMBERING = re.compile(r"^(第?[\d.]+[章节]?|[一二三四五六七八九十]+|[（(][\d一二三四五六七八九十]+[)）])[、.．\s]\s*")


@dataclass(frozen=True)
class Prompt:
    """A prompt file: a YAML header between `---` lines, then `## system` and `## user` with ${variables}."""

    system: string.Template
    user: string.Template

    def messages(self, variables: dict[str, Any]) -> tuple[tuple[str, str], ...]:
        return (("system", self.system.safe_substitute(variables)), ("user", self.user.safe_substitute(variables)))


def read_prompt(path: Path) -> Prompt:
    """Raises InputError when the file is missing or has no `## system` / `## user` part."""
    if not path.is_file():
        raise InputError("no such prompt file", where=path)
    text = path.read_text(encoding="utf-8-sig")
    if text.startswith("---\n"):
        header, _, text = text[4:].partition("\n---\n")
        try:
            yaml.safe_load(header)
        except yaml.YAMLError as e:
            raise InputError(f"the header is not valid YAML: {e}", where=path) from e
    before, mark, user = text.partition("## user\n")
    _, mark2, system = before.partition("## system\n")
    if not mark or not mark2:
        raise InputError("expected a part '## system' and a part '## user'", where=path, fix=f"copy one from {PROMPTS}")
    if "${passage}" not in user and "${passage}" not in system:
        raise InputError("the prompt never names ${passage}", where=path)
    return Prompt(string.Template(system.strip()), string.Template(user.strip()))


def prompt_file(config: GenerateConfig, lang: str) -> Path:
    if config.prompt:
        return Path(config.prompt)
    family = "question-question" if config.pairing == "question-question" else "question-document"
    return PROMPTS / f"{family}.{lang}.md"


def schema(config: GenerateConfig, lang: str) -> dict[str, Any]:
    """The JSON schema of one answer: `questions_per_passage` items."""
    fields = ["question", "rephrased", "answer"] if config.pairing == "question-question" else ["question", "answer"]
    item = {
        "type": "object",
        # the limits keep a small model from repeating itself until max_tokens
        "properties": {f: {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS[lang][f]} for f in fields},
        "required": fields,
        "additionalProperties": False,
    }
    count = config.questions_per_passage
    items = {"type": "array", "items": item, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


def requests_for(passages: list[Passage], config: Config) -> list[Request]:
    prompts: dict[str, Prompt] = {}
    requests = []
    for number, passage in enumerate(passages):
        lang = language(passage.text)
        prompt = prompts.setdefault(lang, read_prompt(prompt_file(config.generate, lang)))
        variables = {
            "passage": crop(passage, config),
            "context": context_of(passage),
            "count": config.generate.questions_per_passage,
            "asker": config.generate.asker or ASKER[lang],
            "types": in_turn(types_of(number, config.generate), lang),
        }
        requests.append(
            Request(
                messages=prompt.messages(variables),
                max_tokens=config.generate.max_tokens,
                temperature=config.generate.temperature,
                seed=config.llm.seed,
                schema=schema(config.generate, lang),
            )
        )
    return requests


def crop(passage: Passage, config: Config) -> str:
    """The passage, or as much of its beginning as fits `llm.context` beside the prompt and the answer.

    The LLM's tokens are taken for the training model's, with a fifth to spare; the prompts take about 300.
    """
    room = int(0.8 * (config.llm.context - config.generate.max_tokens - 300))
    if passage.tokens <= room:
        return passage.text
    return passage.text[: max(1, len(passage.text) * room // passage.tokens)]


def in_turn(types: list[str], lang: str) -> str:
    """The kinds as a sentence: `第1个问该怎么做，第2个…`, `number 1 asks what to do, number 2 …`."""
    asked = [TYPES[lang].get(kind, kind) for kind in types]
    if lang == "zh":
        return "，".join(f"第{i}个{kind}" for i, kind in enumerate(asked, 1))
    return ", ".join(f"number {i} {kind}" for i, kind in enumerate(asked, 1))


def context_of(passage: Passage) -> str:
    """Title and heading path without their numbering, which small models copy into questions."""
    parts = [NUMBERING.sub("", part) for part in (passage.title, *passage.headings)]
    return " > ".join(dict.fromkeys(filter(None, parts))) or passage.source


def types_of(number: int, config: GenerateConfig) -> list[str]:
    """The kinds asked of the passage with this number: the list goes round, so that each kind gets its share."""
    start = number * config.questions_per_passage
    return (
        [config.types[(start + i) % len(config.types)] for i in range(config.questions_per_passage)]
        if config.types
        else []
    )
