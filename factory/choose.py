"""Stage 7, choose: features → negatives. Each candidate ends with one decision and one reason."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from factory.config import ChooseConfig
from factory.languages import squeeze
from factory.records import Pair
from factory.retrieve import Target


def rejection(row: Mapping[str, Any], config: ChooseConfig) -> str | None:
    """Why a candidate must not be a negative; None if it may be.

    The ceiling is `chance + ceiling × (positive − chance)`: NV-Retriever's share of the positive's score
    (TopK-PercPos, arXiv 2407.15831) counted from the score of an unrelated pair, so that it means the
    same for an encoder whose cosines all lie near 0.8 and for one with negative scores.
    """
    chance, positive = row["chance_score"], row["positive_score"]
    if row["answer_tgt_answer_jaccard"] >= config.near_copy:
        return "near-copy-of-the-positive"
    if row["score"] > chance + config.ceiling * (positive - chance):
        return "above-the-ceiling"
    if row["rerank_score"] is not None and row["rerank_score"] >= row["positive_rerank_score"]:
        return "reranker-prefers-it"
    return None


def choose(
    scores: pa.Table, pairs: Sequence[Pair], targets: Sequence[Target], config: ChooseConfig, seed: int
) -> dict[str, list[Any]]:
    """Decisions as columns `pair_id, candidate_id, decision, reason, rerank_score`.

    `decision` is negative, rejected or unused. `negatives` are drawn at random from the first `depth`
    allowed ones; where fewer are allowed, unrelated targets are drawn to fill up (reason `random-fill`).
    """
    of_pair: dict[str, list[dict[str, Any]]] = defaultdict(list)
    wanted = ["pair_id", "candidate_id", "score", "positive_score", "chance_score", "answer_tgt_answer_jaccard"]
    for row in scores.select([*wanted, "rerank_score", "positive_rerank_score"]).to_pylist():
        of_pair[row["pair_id"]].append(row)
    text = {t.id: squeeze(t.text) for t in targets}
    columns: dict[str, list[Any]] = {
        name: [] for name in ("pair_id", "candidate_id", "decision", "reason", "rerank_score")
    }

    def decide(pair: Pair, candidate: str, decision: str, reason: str, rerank: float | None) -> None:
        for name, value in zip(columns, (pair.id, candidate, decision, reason, rerank), strict=True):
            columns[name].append(value)

    for pair in pairs:
        draw = random.Random(f"{seed}:{pair.id}")
        allowed, used = [], {squeeze(pair.target_text)}
        for row in of_pair[pair.id]:
            reason = rejection(row, config)
            if reason is None and text[row["candidate_id"]] in used:
                reason = "copy-of-another-candidate"
            if reason:
                decide(pair, row["candidate_id"], "rejected", reason, row["rerank_score"])
            else:
                used.add(text[row["candidate_id"]])
                allowed.append(row)
        pool = allowed[: config.depth]
        drawn = {r["candidate_id"] for r in draw.sample(pool, min(config.negatives, len(pool)))}
        for rank, row in enumerate(allowed):
            taken = row["candidate_id"] in drawn
            reason = "drawn-below-the-ceiling" if taken else "not-drawn" if rank < config.depth else "deeper-than-depth"
            decide(pair, row["candidate_id"], "negative" if taken else "unused", reason, row["rerank_score"])
        if len(drawn) < config.negatives and scores["rerank_score"].null_count == len(scores):
            candidates = {row["candidate_id"] for row in of_pair[pair.id]}
            others = [t for t in targets if t.id not in candidates and t.duplicate_group != pair.duplicate_group]
            draw.shuffle(others)
            for target in others:
                if len(drawn) == config.negatives:
                    break
                if text[target.id] not in used:
                    used.add(text[target.id])
                    drawn.add(target.id)
                    decide(pair, target.id, "negative", "random-fill", None)
    return columns
