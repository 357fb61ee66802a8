"""The ways to tell a hard negative from a false one. Each looks at whole columns and gives a verdict on every row.

Scores are cosines. `perc` and `margin` are NV-Retriever's positive-aware ceilings (arXiv 2407.15831), `range` is
what FlagEmbedding's hn_mine.py does, `window` a classic recipe over HNSW64; `resolve` is our own and the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from factory.retrieve import FUSION
from factory.settings import ChooseConfig
from factory.tables import TEXTS

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """On each candidate of a block.

    Attributes:
        reasons: why it must not be a negative; "" if it may be.
        promoted: it answers the question and becomes a positive; its reason says by whose word.
        fallback: it may be a negative, but only where too few others are.
        order: the column by which candidates follow one another, best first.
        draw: at random from the first `depth`, at random from all, or just the first ones.
    """

    reasons: np.ndarray
    promoted: np.ndarray
    fallback: np.ndarray
    order: str = "rank"
    draw: Literal["depth", "all", "first"] = "depth"


def columns_of(scores: pa.Table) -> Columns:
    """The numbers of a block, NaN where a value is missing."""
    numbers = [n for n in scores.column_names if n not in (*TEXTS, "pair_id", "candidate_id", "duplicate_group")]
    return {n: scores[n].to_numpy(zero_copy_only=False).astype(np.float64) for n in numbers}


def judge_by(columns: Columns, config: ChooseConfig, scores: pa.Table) -> Verdict:
    """The verdict of the preset that the configuration names."""
    if config.preset == "rules":
        from factory.rules import by_rules

        return by_rules(scores, config.rules)
    return PRESETS[config.preset](columns, config)


def closeness(columns: Columns) -> np.ndarray:
    """Where the candidate's score lies between a chance pair's (0) and the positive's (1), by cosine."""
    span = columns["positive_score"] - columns["chance_score"]
    return np.asarray((columns["score"] - columns["chance_score"]) / np.maximum(span, 1e-6))


def resolve(columns: Columns, config: ChooseConfig) -> Verdict:
    """No copies of the positive, nothing whose own question is nearly this one, and nothing whose probability of
    answering reaches `reject_at`; of the others the hardest. With a judge the probability is what it taught, and a judged one from `promote_at` on becomes a positive.
    Without one it is what the pairs taught (evidence.py), and then nothing either that holds the question's own answer
    word for word, as in DPR (arXiv 2004.04906), nor above the ceiling `chance + ceiling × (positive − chance)`:
    NV-Retriever's share counted from the score of an unrelated pair, so that it means the same for an encoder whose
    cosines all lie near 0.8 and for one with negative scores."""
    n = len(columns["score"])
    promoted = np.zeros(n, bool)
    copy = columns["answer_tgt_answer_jaccard"] >= config.near_copy
    refused: list[tuple[np.ndarray, str]] = [(copy, "near-copy-of-the-positive")]
    refused.append((columns["query_tgt_query_jaccard"] >= config.near_copy, "answers-nearly-the-same-question"))
    if "judged" in columns:
        p, read = columns["probability"], columns["judged"] > 0
        promoted = ~copy & read & (p >= config.promote_at) & (config.promote_at < 1)
        refused.append((promoted, "judged-to-answer"))
        refused.append((read & (p >= config.reject_at), "judged-to-answer-perhaps"))
        refused.append((p >= config.reject_at, "probably-answers"))
    else:
        if "probability" in columns:
            refused.append((columns["probability"] >= config.reject_at, "probably-answers"))
        refused.append((closeness(columns) > config.ceiling, "above-the-ceiling"))
        refused.append((columns["answer_found"] > 0, "holds-the-answer"))
        refused.append((columns["rerank_score"] >= columns["positive_rerank_score"], "reranker-prefers-it"))
    refused += _unread(columns)
    return Verdict(_first_reason(refused, n), promoted, np.zeros(n, bool), by_hardness(columns))


def perc(columns: Columns, config: ChooseConfig) -> Verdict:
    """TopK-PercPos: at most `ceiling` times the positive's score, the hardest first. Below zero the share is taken
    off the size of the score: 0.95 × −0.2 would lie above −0.2."""
    positive = columns["positive_score"]
    return _ceiling(columns, positive - (1 - config.ceiling) * np.abs(positive))


def margin(columns: Columns, config: ChooseConfig) -> Verdict:
    """TopK-MarginPos: at least `margin` below the positive's score, the hardest first."""
    return _ceiling(columns, columns["positive_score"] - config.margin)


def _ceiling(columns: Columns, ceiling: np.ndarray) -> Verdict:
    refused = [(columns["score"] > ceiling, "above-the-ceiling"), *_unread(columns)]
    return _plain(_first_reason(refused, len(ceiling)), _by_cosine(columns), "first")


def topk(columns: Columns, config: ChooseConfig) -> Verdict:
    """The dense search's first ones, with nothing held against any of them."""
    n = len(columns["score"])
    return _plain(_first_reason([(np.isnan(columns["dense_rank"]), "not-found-by-dense")], n), "dense_rank", "first")


def range_(columns: Columns, config: ChooseConfig) -> Verdict:
    """hn_mine's range_for_sampling "a-b": ranks a to b − 1, counted from 0, drawn at random."""
    rank = columns["dense_rank"] - 1
    out = ~((rank >= config.range[0]) & (rank < config.range[1]))  # true for NaN too
    return _plain(_first_reason([(out, "outside-the-range")], len(rank)), "dense_rank", "all")


def window(columns: Columns, config: ChooseConfig) -> Verdict:
    """Dense candidates at a distance in (low, high], drawn at random; farther ones only to fill up."""
    distance = 2 - 2 * columns["score"]
    refused = [
        (np.isnan(columns["dense_rank"]), "not-found-by-dense"),
        (distance <= config.window[0], "nearer-than-the-window"),
    ]
    reasons = _first_reason(refused, len(distance))
    return Verdict(reasons, np.zeros(len(distance), bool), distance > config.window[1], "dense_rank", "all")


def by_hardness(columns: Columns) -> str:
    """What the model to be trained confuses most: its own searches' ranks, fused. BM25 is not the model's, and only
    decides among what they did not find."""
    ranks = [columns[name] for name in ("dense_rank", "sparse_rank") if name in columns]
    fused = sum((np.nan_to_num(1 / (FUSION + rank)) for rank in ranks), np.zeros(len(columns["rank"])))
    columns["hardness"] = np.where(fused > 0, -fused, columns["rank"])
    return "hardness"


def _by_cosine(columns: Columns) -> str:
    columns["_by_cosine"] = -columns["score"]
    return "_by_cosine"


def _unread(columns: Columns) -> list[tuple[np.ndarray, str]]:
    """With a reranker: candidates that it did not read have no teacher score, and are not used."""
    with_reranker = not np.isnan(columns["positive_rerank_score"]).all()
    return [(np.isnan(columns["rerank_score"]), "not-read-by-the-reranker")] if with_reranker else []


def _first_reason(refused: list[tuple[np.ndarray, str]], n: int) -> np.ndarray:
    reasons = np.full(n, "", object)
    for where, reason in reversed(refused):
        reasons[where] = reason
    return reasons


def _plain(reasons: np.ndarray, order: str, draw: Literal["depth", "all", "first"]) -> Verdict:
    nothing = np.zeros(len(reasons), bool)
    return Verdict(reasons, nothing, nothing, order, draw)


PRESETS: dict[str, Callable[[Columns, ChooseConfig], Verdict]] = {
    "resolve": resolve,
    "perc": perc,
    "margin": margin,
    "topk": topk,
    "range": range_,
    "window": window,
}
