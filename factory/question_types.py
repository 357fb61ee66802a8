"""Kinds of question, how each is asked for, how many of each; and how hard one is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from factory.settings_questions import Difficulty, GenerateConfig

# A kind that is not here is handed to the prompt as the user wrote it.
TYPES = {
    "zh": {
        "fact": "问一个具体的数值或事实",
        "how-to": "问该怎么做",
        "symptom": "说出看到的现象，问是什么原因",
        "comparison": "问两样东西有什么区别",
        "keyword": "只写几个搜索用的关键词",
        "reason": "问为什么",
        "colloquial": "用大白话问，不用资料里的术语",
        "description": "先用两三句话说清遇到的情况，再问",
    },
    "en": {
        "fact": "asks for a figure or fact",
        "how-to": "asks what to do",
        "symptom": "tells what was seen and asks why",
        "comparison": "asks how two things differ",
        "keyword": "is only a few search keywords",
        "reason": "asks why",
        "colloquial": "is asked in everyday words instead of the text's terms",
        "description": "describes the situation in two or three sentences and then asks",
    },
}
# What a question of such a kind is called in the LLM's answer. A small LLM that is only told the kind writes a plain question
# nearly every time; the name of the field that it has to fill in is what it follows.
CALLED = {
    "zh": {"keyword": "关键词", "colloquial": "大白话提问", "description": "情况和提问"},
    "en": {"keyword": "keywords", "colloquial": "everyday_question", "description": "situation_and_question"},
}
ROOM = {"description": 2.0, "keyword": 0.5}  # of the characters that a question may have

EASY, MEDIUM = 1, 5  # the last rank of the passage, under the base model, of a question that is called so


def difficulty(rank: int | None) -> Difficulty | None:
    """easy: the base model ranks the passage first; medium: to rank 5; hard: beyond. None where it is not measured."""
    return None if rank is None else "easy" if rank <= EASY else "medium" if rank <= MEDIUM else "hard"


def schedule(config: GenerateConfig, passages: int) -> list[list[str]]:
    """The kinds that each of so many passages is asked for, in order.

    Each question gets the kind that is furthest behind its share so far: after any number of questions every kind is
    within one of its share, and a plain list goes round.
    """
    shares = config.types if isinstance(config.types, dict) else dict.fromkeys(config.types, 1.0)
    if isinstance(config.types, list):
        shares = {kind: float(config.types.count(kind)) for kind in shares}
    shares = {kind: share / sum(shares.values()) for kind, share in shares.items() if share}
    given = dict.fromkeys(shares, 0)
    turns: list[list[str]] = []
    for number in range(passages):
        turns.append([])
        for i in range(config.questions_per_passage if shares else 0):
            asked = number * config.questions_per_passage + i + 1
            kind = max(shares, key=lambda k: round(shares[k] * asked - given[k], 9))
            given[kind] += 1
            turns[-1].append(kind)
    return turns


def called(kind: str, lang: str) -> str:
    """The field of the LLM's answer that holds a question of this kind."""
    return CALLED[lang].get(kind, "question")


def in_words(types: Sequence[str], lang: str, about: Sequence[str] = ()) -> str:
    """The kinds as a sentence: `第1个问该怎么做，第2个…`, `number 1 asks what to do, number 2 …`.

    Args:
        about: for each the sentence that its answer is to come from; "" where that is open.
    """
    said = {"zh": "第{}个{}", "en": "number {} {}"}[lang]
    where = {"zh": "（答案在这一句：“{}”）", "en": " (its answer is in “{}”)"}[lang]
    asked = [
        said.format(i, TYPES[lang].get(kind, kind)) + (where.format(sentence) if sentence else "")
        for i, (kind, sentence) in enumerate(zip_longest(types, about[: len(types)], fillvalue=""), 1)
    ]
    return {"zh": "，", "en": ", "}[lang].join(asked)
