"""What the report's section on rounds shows, from rounds.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.evaluation import Change
from factory.rounds_result import RESULT, Score, read_rounds


def rounds_section(run_folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The base model and each round as rows of one table; None for a run without rounds, or with no result yet.

    Args:
        config: of run.json; without rounds in it, what an earlier build left is not this run's.
    """
    result = read_rounds(run_folder) if config.get("rounds", {}).get("count", 1) > 1 else None
    if result is None:
        return None
    at = _axis([result.base.score, *(r.score for r in result.rounds)])
    rows: list[dict[str, Any]] = [
        {
            "number": 0,
            "best": result.best.round == 0,
            "value": 100 * result.base.score.value,
            "at": at(result.base.score),
        }
    ]
    for r in result.rounds:
        rows.append(
            {
                "number": r.round,
                "best": result.best.round == r.round,
                "value": 100 * r.score.value,
                "at": at(r.score),
                "train": r.train,
                "rows": r.rows,
                "new": None if r.new_negatives is None else 100 * r.new_negatives,
                "to_base": _points(r.to_base),
                "to_before": _points(r.to_before) if r.round > 1 else None,
                "verdict": r.verdict,
            }
        )
    best = result.rounds[result.best.round - 1] if result.best.round else None
    return {
        "rows": rows,
        "best": result.best.round,
        "gain": _points(best.to_base) if best else None,
        "folder": result.best.link or result.best.folder,
        "finished": result.finished,
        "questions": result.development.questions,
        "documents": result.development.documents,
        "file": RESULT,
    }


def _points(c: Change) -> dict[str, Any]:
    verdict = "better" if c.low > 0 else "worse" if c.high < 0 else "unsure"
    return {"verdict": verdict, "value": 100 * c.value, "low": 100 * c.low, "high": 100 * c.high}


def _axis(scores: Sequence[Score]) -> Any:
    """Where value and interval of a score are drawn, in percent of the width that holds all of them."""
    low, high = min(s.low for s in scores), max(s.high for s in scores)
    width = (high - low) or 1

    def at(s: Score) -> dict[str, float]:
        return {end: 2 + 96 * (getattr(s, end) - low) / width for end in ("low", "value", "high")}

    return at
