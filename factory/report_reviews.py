"""The report's section on the experts' review: how much was read, what was said, how often it went against the machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.false_negatives import wilson
from factory.records import read_lines
from factory.report_words import Text, say
from factory.review import LOG, Review, read_log

VERDICTS = ("good", "not-answerable", "positive", "drop")


@dataclass(frozen=True)
class Reviews:
    """Of the kept questions that experts decided on. `contradicted`: the machine had kept the question with these
    negatives, and the expert says that it, or one of them, is wrong; `interval` is Wilson's, 95 %, both in percent.

    Attributes:
        verdicts: (name, number, percent) of each verdict. of_questions: all kept ones. stale: decisions on others.
        false_negatives: negatives that were said to answer the question.
    """

    reviewed: int
    of_questions: int
    stale: int
    reviewers: int
    verdicts: list[tuple[Text, int, float]]
    contradicted: int
    interval: tuple[float, float]
    false_negatives: int


def reviews_view(run_folder: Path, say_line: Any = lambda _: None) -> Reviews | None:
    """None where nobody has decided anything.

    Raises:
        InputError: a line of review.jsonl is no decision.
    """
    if not (run_folder / LOG).is_file():
        return None
    decisions = Review(read_log(run_folder, say_line).effective()).decisions
    kept = run_folder / "4-kept.jsonl"
    questions = {row["id"] for _, row in read_lines(kept)} if kept.is_file() else set()
    held = [d for d in decisions.values() if d.id in questions] if questions else list(decisions.values())
    if not decisions:
        return None
    seen = Counter(str(d.decision) for d in held)
    against = len(held) - seen["good"]
    low, high = wilson(against, len(held))
    return Reviews(
        reviewed=len(held),
        of_questions=len(questions),
        stale=len(decisions) - len(held),
        reviewers=len({d.reviewer for d in held}),
        verdicts=[(say(f"review.{v}"), seen[v], 100 * seen[v] / max(len(held), 1)) for v in VERDICTS],
        contradicted=against,
        interval=(100 * low, 100 * high),
        false_negatives=sum(len(d.negatives) for d in held if d.decision == "positive"),
    )
