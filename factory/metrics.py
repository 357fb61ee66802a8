"""Numbers from rankings: ranx's metrics for each query, and how sure a difference of means is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

METRICS = ("recall", "precision", "mrr", "ndcg", "map", "hit_rate")
RESAMPLES = 10_000  # the interval's ends then move by about 0.1 of its half width from seed to seed
FEWEST = 6  # queries: of five that all gain, the randomisation test's p is still 2 / 2^5, above 0.05
ALPHA = 0.05  # of the randomisation test; the intervals hold 95 %
CELLS = 1 << 22  # resampled indices held at once: 32 MB


def names(cutoffs: Sequence[int]) -> list[str]:
    """`metric@k` as ranx spells it, metric by metric."""
    return [f"{metric}@{k}" for metric in METRICS for k in cutoffs]


def measure(relevant: Sequence[dict[int, int]], ranking: np.ndarray, cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Each metric for each query, (queries,) float64 in [0, 1], by ranx.

    recall: share of the relevant passages in the first k; precision: share of the first k that is relevant, over k
    even where fewer were found; hit rate: is there any; mrr: 1 / rank of the first one, 0 beyond k; map: mean of the
    precision at each relevant one within k, over all relevant ones; ndcg: Järvelin's, gain = grade, discount
    1 / log2(rank + 1). All as trec_eval and BEIR have them.

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


def compare(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals, (columns, 2), and p values, (columns,), of the mean of each column of paired differences.

    An interval shows nothing that the test calls chance: where p is 0.05 or more, that of `bootstrap` is stretched to zero. It
    matters where most differences are zero: four hits lost in 60 questions have [-13.3, -0.2] points and p = 0.125.

    Args:
        differences: (queries, columns).
    """
    intervals = bootstrap(differences, resamples=resamples, seed=seed)
    p = randomisation(differences, resamples=resamples, seed=seed)
    chance = p >= ALPHA
    intervals[chance, 0] = np.minimum(intervals[chance, 0], 0)
    intervals[chance, 1] = np.maximum(intervals[chance, 1], 0)
    return intervals, p


def bootstrap(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 42) -> np.ndarray:
    """95 % interval of the mean of each column, (columns, 2), by resampling rows (Efron's percentiles).

    Rows are paired differences, one for each query; every column is resampled by the same draws. Plain percentiles are too
    narrow for few queries: ours lie a little further out than 2.5 and 97.5, as Student's t does from the normal (Hesterberg
    2015, the expanded percentile interval), and neither end lies within Student's own interval, which holds better where
    the differences are symmetric and worse where they are skewed. From a few hundred queries on both are nothing.
    Fewer than `FEWEST` queries show nothing, however they agree: where any of them differs, the interval is then all that a
    metric in [0, 1] can differ by.

    Args:
        differences: (queries, columns).
    """
    from scipy.special import ndtr, stdtrit

    n = len(differences)
    if n < FEWEST:
        most = np.any(differences, axis=0).astype(float)
        return np.stack([0 - most, most], axis=1)
    rng = np.random.default_rng(seed)
    means = []
    for rows in _steps(n, resamples):
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # how often each query was drawn
        means.append(times @ differences / n)
    tail = 100 * float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    mean, student = differences.mean(axis=0), stdtrit(n - 1, 0.975) * differences.std(axis=0, ddof=1) / np.sqrt(n)
    return np.stack([np.minimum(low, mean - student), np.maximum(high, mean + student)], axis=1)


def randomisation(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 42) -> np.ndarray:
    """Two-sided p value of each column's mean, (columns,): Fisher's paired randomisation test.

    If the two systems were equal, each query's difference could as well have the other sign. p is the share of random
    signs with a mean at least as far from zero, the signs that were observed counted as one of them (Smucker et al.
    2007; never 0).

    Args:
        differences: (queries, columns), paired.
    """
    n = len(differences)
    rng = np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=0))
    reached = np.zeros(differences.shape[1], np.int64)
    for rows in _steps(n, resamples):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (rows, n), dtype=np.int8)
        reached += (np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum(axis=0)
    return (reached + 1) / (resamples + 1)


def _steps(n: int, resamples: int) -> Iterator[int]:
    """How many resamples of n queries are drawn at once, until all are."""
    step = max(1, CELLS // n)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
