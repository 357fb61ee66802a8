"""The report's section on the experts' review: how much was read, what was said, how often it went against the machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.false_negatives import wilson
from factory.records import Pair, read_lines, read_records
from factory.report_words import Text, say
from factory.review import LOG, Review

VERDICTS = ("good", "not-answerable", "positive", "drop")


@dataclass(frozen=True)
class Reviews:
    """Of the kept questions that experts decided on. `contradicted`: the machine had kept the question with these
    negatives, and the expert says that it, or one of them, is wrong; `interval` is Wilson's, 95 %, both in percent.

    Attributes:
        verdicts: (name, number, percent) of each verdict. of_questions: all kept ones. stale: decisions on others, or on
            texts that have changed since.
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
        InputError: a line of review.jsonl is no decision, or one of the run's files is damaged.
    """
    if not (run_folder / LOG).is_file():
        return None
    review = Review.read(run_folder, say_line)
    if not review:
        return None
    kept, passages = run_folder / "4-kept.jsonl", run_folder / "2-passages.jsonl"
    pairs = read_records(kept, Pair) if kept.is_file() else []
    text = {p.target_id: p.target_text for p in pairs}
    text |= {row["id"]: row["text"] for _, row in read_lines(passages)} if passages.is_file() else {}
    held = list((review.holding(pairs, text) if pairs else review.decisions).values())
    seen = Counter(str(d.decision) for d in held)
    against = len(held) - seen["good"]
    low, high = wilson(against, len(held))
    return Reviews(
        reviewed=len(held),
        of_questions=len(pairs),
        stale=len(review) - len(held),
        reviewers=len({d.reviewer for d in held}),
        verdicts=[(say(f"review.{v}"), seen[v], 100 * seen[v] / max(len(held), 1)) for v in VERDICTS],
        contradicted=against,
        interval=(100 * low, 100 * high),
        false_negatives=sum(len(d.negatives) for d in held if d.decision == "positive"),
    )
