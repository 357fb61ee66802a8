"""Several rankings made one: reciprocal rank fusion, the usual hybrid search."""

from __future__ import annotations

import numpy as np

CONSTANT = 60  # Cormack, Clarke and Büttcher, SIGIR 2009: chosen in a pilot study there, and never changed since


def reciprocal_rank_fusion(first: np.ndarray, second: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, scores), each (queries, k): a passage's score is the sum of 1 / (60 + its rank) over both rankings.

    Ranks count from 1; what a ranking does not hold adds nothing. Equal scores keep the order of `first`, then of `second`.

    Args:
        first, second: (queries, depth) passage indices, best first, -1 where nothing was found; no passage twice in a row.
    """
    rows = np.concatenate([first, second], axis=1)
    ranks = np.concatenate([np.arange(1, first.shape[1] + 1), np.arange(1, second.shape[1] + 1)])
    scores = np.where(rows >= 0, 1 / (CONSTANT + ranks), -np.inf)
    by_id = np.argsort(rows, axis=1, kind="stable")  # a passage that both hold: its two places lie side by side
    sorted_rows, sorted_scores = np.take_along_axis(rows, by_id, 1), np.take_along_axis(scores, by_id, 1)
    twice = np.zeros(rows.shape, bool)
    twice[:, 1:] = (sorted_rows[:, 1:] == sorted_rows[:, :-1]) & (sorted_rows[:, 1:] >= 0)
    sorted_scores[:, :-1][twice[:, 1:]] += sorted_scores[twice]
    sorted_scores[twice] = -np.inf
    np.put_along_axis(scores, by_id, sorted_scores, 1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, best, 1)
    return np.where(np.isfinite(scores), np.take_along_axis(rows, best, 1), -1), scores
