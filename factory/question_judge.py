"""What the LLM says of questions: does the passage answer it, does it name its subject, do other passages answer it too?

How far its word goes is measured first, on controls whose answer is known; where it is no better than a coin it is not
asked about the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from factory.false_negatives import JudgeError, judge_error
from factory.judge import LLMJudge
from factory.records import Pair
from factory.retrieve import Target
from factory.settings_questions import QualityConfig

CONTROLS = 50
# Ranks, under the base model, from which the controls' wrong passages are drawn: of the same subject, seldom an answer.
WRONG = (30, 100)
# Questions that fit any text of their kind: the controls of "does it name its subject?"
GENERIC = {
    "zh": (
        "结果是什么？", "为什么会这样？", "被告人犯了什么罪？", "原告要求赔偿多少钱？", "主要原因有哪些？", "应该怎么处理？",
        "他是什么时候出生的？", "这家公司是做什么的？", "一共有多少人？", "发生在什么时候？", "有什么优点？", "需要注意什么？",
    ),
    "en": (
        "What was the result?", "Why did it happen?", "Who was responsible?", "What are the main causes?", "How is it done?",
        "When was he born?", "What does the company do?", "How many were there?", "What method was used?",
        "What are the advantages?", "What should be considered?", "How much did it cost?",
    ),
}  # fmt: skip


@dataclass
class Said:
    """`broken`: (reason, detail) of questions that go, by pair id; `also`: other targets that answer a question;
    `controls`: the judge's error in each of its tasks."""

    broken: dict[str, tuple[str, str]] = field(default_factory=dict)
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    controls: dict[str, JudgeError] = field(default_factory=dict)


def judge_questions(
    pairs: Sequence[Pair],
    known: Sequence[Pair],
    targets: Sequence[Target],
    nearest: Callable[[Sequence[Pair], int], list[list[int]]],
    judge: LLMJudge,
    config: QualityConfig,
    seed: int,
    say: Callable[[str], None],
    *,
    answered_only: bool = False,
) -> Said:
    """What the LLM says of `pairs`.

    Args:
        known: pairs whose passages answer them for all that is known: controls are drawn from them.
        nearest: for each pair the so many first targets of a search, as indices, none of which is its own or a copy of it.
        answered_only: ask nothing but whether the passage answers.
    """
    said = Said()
    draw = random.Random(f"{seed}:question-controls")
    drawn = draw.sample(list(known), min(CONTROLS, len(known)))
    wrong = [
        (p, draw.choice(found[WRONG[0] :] or found))
        for p, found in zip(drawn, nearest(drawn, WRONG[1]), strict=True)
        if found
    ]
    asked = [*((p.query, p.target_text) for p in drawn), *((p.query, targets[w].text) for p, w in wrong)]
    right, others = np.split(judge.score(asked), [len(drawn)])
    error = said.controls["answerable"] = judge_error(right, others)
    _say(say, "whether a passage answers", error)
    if error.usable:
        for pair, value in zip(pairs, judge.score([(p.query, p.target_text) for p in pairs]), strict=True):
            if value < error.threshold:
                detail = f"logit {value:.1f}, expected at least {error.threshold:.1f}"
                said.broken[pair.id] = ("not-answered-by-its-passage", detail)
    if answered_only:
        return said
    _specific([p for p in pairs if p.id not in said.broken], judge, said, say, draw)
    if config.elsewhere and error.usable:
        left = [p for p in pairs if p.id not in said.broken]
        _elsewhere(left, targets, nearest(left, config.elsewhere), judge, error, config, said)
    return said


def _specific(
    pairs: Sequence[Pair], judge: LLMJudge, said: Said, say: Callable[[str], None], draw: random.Random
) -> None:
    for lang, generic in GENERIC.items():
        here = [p for p in pairs if p.language == lang]
        if not here:
            continue
        some = judge.specific([p.query for p in draw.sample(here, min(CONTROLS, len(here)))])
        error = said.controls[f"specific, {lang}"] = judge_error(some, judge.specific(generic))
        if error.usable:
            for pair, value in zip(here, judge.specific([p.query for p in here]), strict=True):
                if value < error.threshold:
                    detail = f"logit {value:.1f}, expected at least {error.threshold:.1f}"
                    said.broken[pair.id] = ("not-specific", detail)
        _say(say, f"whether a question names its subject ({lang})", error)


def _elsewhere(
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    found: Sequence[Sequence[int]],
    judge: LLMJudge,
    error: JudgeError,
    config: QualityConfig,
    said: Said,
) -> None:
    """Other passages that answer: they become positives while they are few, else the question goes."""
    asked = [(pair, i) for pair, near in zip(pairs, found, strict=True) for i in near]
    yes = judge.score([(pair.query, targets[i].text) for pair, i in asked]) >= error.threshold
    answering: dict[str, list[int]] = {}
    for (pair, i), affirmed in zip(asked, yes, strict=True):
        if affirmed:
            answering.setdefault(pair.id, []).append(i)
    for pair in pairs:
        others = answering.get(pair.id, [])
        if len(others) > config.max_elsewhere:
            detail = f"{len(others)} of {config.elsewhere} other passages answer it, at most {config.max_elsewhere}"
            said.broken[pair.id] = ("answered-elsewhere", detail)
        else:
            same = [
                targets[i].id for i in others if targets[i].split == pair.split
            ]  # never a positive across the splits
            if same:
                said.also[pair.id] = tuple(same)


def _say(say: Callable[[str], None], what: str, error: JudgeError) -> None:
    right = (
        f"right on {100 * error.sensitivity:.0f} % of the questions and {100 * error.specificity:.0f} % of the controls"
    )
    say(f"the judge on {what}: {right}" + ("" if error.usable else "; that is too little to go by it"))


def nearest_others(
    targets: Sequence[Target], queries: dict[str, np.ndarray], vectors: np.ndarray
) -> Callable[[Sequence[Pair], int], list[list[int]]]:
    """`nearest` over the base model's vectors.

    Args:
        queries: by pair id, (d,); vectors: (targets, d); all of length 1.
    """
    codes = {g: i for i, g in enumerate(dict.fromkeys(t.duplicate_group for t in targets))}
    group = np.array([codes[t.duplicate_group] for t in targets])
    document = np.array([t.document_id for t in targets], dtype=object)
    start, end = np.array([t.start for t in targets]), np.array([t.end for t in targets])
    place = {t.id: i for i, t in enumerate(targets)}
    by_text = {t.text: i for i, t in enumerate(targets)}  # under some pairings two pairs have one target

    def nearest(pairs: Sequence[Pair], k: int) -> list[list[int]]:
        found = []
        for pair in pairs:
            scores = vectors @ queries[pair.id]
            own = place.get(pair.target_id, by_text.get(pair.target_text, -1))
            overlap = (document == document[own]) & (start < end[own]) & (start[own] < end)
            scores[(group == codes[pair.duplicate_group]) | overlap] = -np.inf
            first: dict[int, int] = {}  # of copies one will do
            for i in np.argsort(-scores, kind="stable"):
                if len(first) == k or not np.isfinite(scores[i]):
                    break
                first.setdefault(int(group[i]), int(i))
            found.append(list(first.values()))
        return found

    return nearest
