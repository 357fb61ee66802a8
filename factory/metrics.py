"""Numbers from rankings: ranx's metrics for each query, and how sure a difference of means is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

METRICS = ("recall", "mrr", "ndcg", "hit_rate")
RESAMPLES = 10_000  # the interval's ends then move by about 0.1 of its half width from seed to seed
CELLS = 1 << 22  # resampled indices held at once: 32 MB


def names(cutoffs: Sequence[int]) -> list[str]:
    """`metric@k` as ranx spells it, metric by metric."""
    return [f"{metric}@{k}" for metric in METRICS for k in cutoffs]


def measure(relevant: Sequence[dict[int, int]], ranking: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Each metric for each query, (queries,) float64 in [0, 1], by ranx.

    recall: share of the relevant passages in the first k; hit rate: is there any; mrr: 1 / rank of the first one,
    0 beyond k; ndcg: Järvelin's, gain = grade, discount 1 / log2(rank + 1), as trec_eval and BEIR have it.

    Args:
        relevant: for each query {passage index: grade from 1}.
        ranking: (queries, depth) passage indices, best first, -1 where nothing was found.
    """
    # ranx takes numba lists of (id, score) rows as well as dictionaries of strings. Indices need no hashing, stay
    # exact, and keep our order among equal scores. The first call of an installation compiles for half a minute.
    import warnings

    from numba.core.errors import NumbaTypeSafetyWarning
    from numba.typed import List
    from ranx import evaluate

    qrels = List([np.array(sorted(r.items(), key=lambda x: -x[1]), np.float64).reshape(-1, 2) for r in relevant])
    run = List()
    for row in ranking:
        found = row[row >= 0]
        run.append(np.column_stack([found, -np.arange(len(found))]).astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaTypeSafetyWarning)
        found = evaluate(qrels, run, names(cutoffs), return_mean=False)
    assert isinstance(found, dict)
    return found


def bootstrap(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 42) -> np.ndarray:
    """95 % percentile interval of the mean of each column, (columns, 2), by resampling rows (Efron).

    Rows are paired differences, one for each query; every column is resampled by the same draws.

    Args:
        differences: (queries, columns).
    """
    n = len(differences)
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // n)
    means = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # how often each query was drawn
        means.append(times @ differences / n)
    return np.percentile(np.concatenate(means), [2.5, 97.5], axis=0).T
