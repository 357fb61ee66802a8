"""The questions on which a model gained or lost most, with what each system found, to be read side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.evaluation import Difference, Evaluation, label

if TYPE_CHECKING:
    from factory.evalset import EvalSet
    from factory.evaluate import SetResults

LARGEST = 20  # of each kind, for each comparison
RELEVANT = 3  # relevant passages shown of a question


def wins_and_losses(e: Evaluation, r: SetResults) -> Iterator[dict[str, Any]]:
    """For each later model and mode, the 20 largest wins and the 20 largest losses against the first model.

    Largest by the headline metric, then by the change of the first relevant passage's rank; a question that both
    answer equally well by that metric is neither. A row holds `set`, `model`, `base`, `mode`, `kind`, `_id`, `query`,
    `about`, `metric`, `base_value`, `value`, `difference`, `base_rank`, `rank` (null: not within `depth`), `relevant`,
    and the top three of each, `base_top` and `top`: `_id`, `text`, `grade` (0: not judged relevant).
    """
    for d in e.differences:
        for kind, sign in (("win", 1), ("loss", -1)):
            for i in largest(e, d, sign):
                yield _row(e, r, d, kind, i)


def largest(e: Evaluation, d: Difference, sign: int) -> list[int]:
    """Places of the queries with the largest differences of that sign, largest first."""
    after, before = label(d.model, d.mode), label(d.base, d.mode)
    differences = sign * (np.array(e.per_query[after][e.metric]) - np.array(e.per_query[before][e.metric]))
    ranks = {s: np.array([rank or e.depth + 1 for rank in e.ranks[s]]) for s in (after, before)}
    moved = sign * (ranks[before] - ranks[after])
    order = np.lexsort((-moved, -differences))[:LARGEST]
    return [int(i) for i in order if differences[i] > 0]


def _row(e: Evaluation, r: SetResults, d: Difference, kind: str, i: int) -> dict[str, Any]:
    after, before = label(d.model, d.mode), label(d.base, d.mode)
    value, base_value = e.per_query[after][e.metric][i], e.per_query[before][e.metric][i]
    relevant = sorted(r.data.relevant[i], key=lambda p: -r.data.relevant[i][p])[:RELEVANT]
    return {
        "set": e.name,
        "model": d.model,
        "base": d.base,
        "mode": d.mode,
        "kind": kind,
        "_id": r.data.query_ids[i],
        "query": r.data.queries[i],
        "about": r.data.about[i] if r.data.about else {},
        "metric": e.metric,
        "base_value": round(base_value, 6),
        "value": round(value, 6),
        "difference": round(value - base_value, 6),
        "base_rank": e.ranks[before][i] or None,
        "rank": e.ranks[after][i] or None,
        "relevant": [_passage(r.data, i, p) for p in relevant],
        "base_top": [_passage(r.data, i, p) for p in r.measured[d.base, d.mode].top[i] if p >= 0],
        "top": [_passage(r.data, i, p) for p in r.measured[d.model, d.mode].top[i] if p >= 0],
    }


def _passage(data: EvalSet, query: int, passage: int) -> dict[str, Any]:
    grade = data.relevant[query].get(int(passage), 0)
    return {"_id": data.passage_ids[passage], "text": data.passages[passage], "grade": grade}
