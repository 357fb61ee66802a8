"""Stage 6, score: one row of features for each candidate.

For a question q with its positive a, and a candidate ta with its own question tq, four pairs are
compared: (q, tq), (a, tq), (q, ta), (a, ta). The columns are listed in `COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from factory.models import Reranker
from factory.progress import bar
from factory.records import Pair
from factory.retrieve import Target
from factory.tokens import tokens

SIDES = {
    "query_tgt_query": ("query", "target_query"),
    "answer_tgt_query": ("answer", "target_query"),
    "query_tgt_answer": ("query", "target_answer"),
    "answer_tgt_answer": ("answer", "target_answer"),
}
MEASURES = ("bge_cos", "lcs_score", "edit_dist", "jaccard")
COLUMNS = (
    "query",
    "answer",
    "target_query",
    "target_answer",
    "rerank_score",
    *(f"{side}_{measure}" for side in SIDES for measure in MEASURES),
)


def lcs_score(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Length of the longest common subsequence of characters over the longer text's length, 0 to 1 (rapidfuzz)."""
    from rapidfuzz import process
    from rapidfuzz.distance import LCSseq

    return np.asarray(process.cpdist(left, right, scorer=LCSseq.normalized_similarity, workers=-1, dtype=np.float32))


def edit_dist(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Levenshtein distance of characters over the longer text's length, 0 (equal) to 1 (rapidfuzz)."""
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    return np.asarray(process.cpdist(left, right, scorer=Levenshtein.normalized_distance, workers=-1, dtype=np.float32))


def token_jaccard(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Shared over all distinct tokens (Chinese bigrams, English words), 0 to 1."""
    sets = {text: frozenset(tokens(text)) for text in {*left, *right}}
    values = []
    for a, b in zip(left, right, strict=True):
        union = len(sets[a] | sets[b])
        values.append(len(sets[a] & sets[b]) / union if union else 1.0)
    return np.asarray(values, dtype=np.float32)


def score(
    candidates: dict[str, list[Any]],
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    queries: np.ndarray,
    answers: np.ndarray,
    reranker: Reranker | None,
) -> pa.Table:
    """The candidates with their features, and what the choice needs beside them.

    Further columns: `pair_id, candidate_id, source, rank, score`; `positive_score`, the cosine of the
    question and its own positive; `chance_score`, the mean cosine of a question and an unrelated
    target; `positive_rerank_score`. Features of a pair whose target has no question of its own are null.

    Args:
        queries: (pairs, d), answers: (targets, d), both float32 with rows of length 1.
    """
    pair_at = {p.id: i for i, p in enumerate(pairs)}
    target_at = {t.id: i for i, t in enumerate(targets)}
    question_at: dict[str, int] = {}
    for i, p in enumerate(pairs):
        question_at.setdefault(p.target_id, i)
    q = np.array([pair_at[i] for i in candidates["pair_id"]], dtype=np.int64)
    ta = np.array([target_at[i] for i in candidates["candidate_id"]], dtype=np.int64)
    tq = np.array([question_at.get(i, -1) for i in candidates["candidate_id"]], dtype=np.int64)
    a = np.array([target_at[pairs[i].target_id] for i in range(len(pairs))], dtype=np.int64)[q] if len(q) else q
    vectors = {
        "query": (queries, q),
        "answer": (answers, a),
        "target_query": (queries, tq),
        "target_answer": (answers, ta),
    }
    texts = {
        "query": [pairs[i].query for i in q],
        "answer": [targets[i].text for i in a],
        "target_query": [pairs[i].query if i >= 0 else None for i in tq],
        "target_answer": [targets[i].text for i in ta],
    }
    columns: dict[str, Any] = {**candidates, **texts}
    own = np.array([target_at[p.target_id] for p in pairs], dtype=np.int64)
    positive = (queries * answers[own]).sum(axis=1) if len(pairs) else np.zeros(0, dtype=np.float32)
    columns["positive_score"] = positive[q]
    columns["chance_score"] = np.full(len(q), chance_score(queries, answers), dtype=np.float32)
    _rerank(columns, pairs, targets, own, q, reranker)
    known = np.flatnonzero(tq >= 0)
    for side, (left, right) in SIDES.items():
        rows = known if right == "target_query" else np.arange(len(q))
        for measure, values in _measures(texts, vectors, left, right, rows).items():
            columns[f"{side}_{measure}"] = _with_nulls(values, rows, len(q))
    order = [*candidates, *COLUMNS, "positive_score", "chance_score", "positive_rerank_score"]
    return pa.table({name: columns[name] for name in order})


def chance_score(queries: np.ndarray, answers: np.ndarray) -> float:
    """Mean cosine of a question and any target: the product of the two mean vectors. Encoders such as
    e5 put it near 0.8, so that a share of a raw cosine means nothing; counted from here it does."""
    return float(queries.mean(axis=0) @ answers.mean(axis=0)) if len(queries) and len(answers) else 0.0


def _rerank(
    columns: dict[str, Any],
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    own: np.ndarray,
    q: np.ndarray,
    reranker: Reranker | None,
) -> None:
    if reranker is None:
        columns["rerank_score"] = columns["positive_rerank_score"] = pa.nulls(len(q), pa.float32())
        return
    candidates = zip(columns["query"], columns["target_answer"], strict=True)
    positives = ((p.query, targets[i].text) for p, i in zip(pairs, own, strict=True))
    asked = list(dict.fromkeys([*candidates, *positives]))  # each distinct pair once
    logits: dict[tuple[str, str], float] = {}
    with bar("rerank", "pair", len(asked)) as shown:
        for start in range(0, len(asked), 1024):
            block = asked[start : start + 1024]
            logits.update(zip(block, reranker.score(block).tolist(), strict=True))
            shown.update(len(block))
    columns["rerank_score"] = pa.array(
        [logits[k] for k in zip(columns["query"], columns["target_answer"], strict=True)], pa.float32()
    )
    columns["positive_rerank_score"] = pa.array([logits[pairs[i].query, targets[own[i]].text] for i in q], pa.float32())


def _measures(
    texts: dict[str, list[Any]],
    vectors: dict[str, tuple[np.ndarray, np.ndarray]],
    left: str,
    right: str,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """The four measures of the rows, each distinct text pair compared once."""
    keys = [(texts[left][i], texts[right][i]) for i in rows]
    distinct = list(dict.fromkeys(keys))
    at = {key: i for i, key in enumerate(distinct)}
    back = np.array([at[key] for key in keys], dtype=np.int64)
    lefts, rights = [k[0] for k in distinct], [k[1] for k in distinct]
    (lv, li), (rv, ri) = vectors[left], vectors[right]
    return {
        "bge_cos": np.einsum("ij,ij->i", lv[li[rows]], rv[ri[rows]]).astype(np.float32),
        "lcs_score": lcs_score(lefts, rights)[back] if distinct else np.zeros(0, np.float32),
        "edit_dist": edit_dist(lefts, rights)[back] if distinct else np.zeros(0, np.float32),
        "jaccard": token_jaccard(lefts, rights)[back] if distinct else np.zeros(0, np.float32),
    }


def _with_nulls(values: np.ndarray, rows: np.ndarray, length: int) -> pa.Array:
    full = np.zeros(length, dtype=np.float32)
    full[rows] = values
    missing = np.ones(length, dtype=bool)
    missing[rows] = False
    return pa.array(full, mask=missing)
