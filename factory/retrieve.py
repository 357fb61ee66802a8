"""Stage 5, mine: for each training question the passages that a search confuses with its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.progress import bar
from factory.records import Pair, Passage, Split

BLOCK = 1024  # queries searched at once: bounds memory to BLOCK × k results


@dataclass(frozen=True)
class Target:
    """What a search can return: a passage, or under other pairings an answer or a question."""

    id: str
    text: str
    duplicate_group: str
    split: Split
    document_id: str
    start: int = 0
    end: int = 0


def targets_of(passages: Sequence[Passage], pairs: Sequence[Pair]) -> list[Target]:
    """Every passage when pairs point at passages; else each distinct text that a pair points at."""
    by_id = {p.id: p for p in passages}
    if all(pair.target_id in by_id for pair in pairs):
        return [Target(p.id, p.text, p.duplicate_group, p.split, p.document_id, p.start, p.end) for p in passages]
    targets: dict[str, Target] = {}
    for pair in pairs:
        document = by_id[pair.passage_id].document_id
        targets.setdefault(
            pair.target_text, Target(pair.target_id, pair.target_text, pair.duplicate_group, pair.split, document)
        )
    return list(targets.values())


def dense_search(queries: np.ndarray, targets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, indices), each (queries, k), best first, by inner product; exact (FAISS IndexFlatIP).

    Args:
        queries, targets: float32, (n, d), rows of length 1, so that the inner product is the cosine.
    """
    import faiss

    index = faiss.IndexFlatIP(targets.shape[1])
    index.add(targets)
    k = min(k, len(targets))
    blocks = []
    with bar("search", "question", len(queries)) as shown:
        for start in range(0, len(queries), BLOCK):
            blocks.append(index.search(queries[start : start + BLOCK], k))
            shown.update(len(queries[start : start + BLOCK]))
    return np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])


def rank_of_target(
    pairs: Sequence[Pair], targets: Sequence[Target], queries: np.ndarray, vectors: np.ndarray
) -> list[int]:
    """For each pair the rank (from 1) of the first target in its duplicate group, among all targets.

    Args:
        queries: (pairs, d), vectors: (targets, d), both float32 with rows of length 1.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, target in enumerate(targets):
        groups[target.duplicate_group].append(i)
    ranks = []
    for start in range(0, len(pairs), BLOCK):
        scores = queries[start : start + BLOCK] @ vectors.T
        for pair, row in zip(pairs[start : start + BLOCK], scores, strict=True):
            best = row[groups[pair.duplicate_group]].max()
            ranks.append(1 + int((row > best).sum()))
    return ranks


def mine(
    pairs: Sequence[Pair], targets: Sequence[Target], queries: np.ndarray, vectors: np.ndarray, top_k: int
) -> dict[str, list[Any]]:
    """Candidates as columns `pair_id, candidate_id, source, rank, score`, best first within a pair.

    Never among them: the positive, its duplicates, a target that overlaps it in the same document,
    and whatever answers the same question text (a sibling pair's positive).
    """
    by_id = {t.id: t for t in targets}
    same_question: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        same_question[pair.query.strip().lower()].add(pair.duplicate_group)
        same_question[f"answer:{pair.passage_id}:{pair.answer.strip().lower()}"].add(pair.duplicate_group)
    largest = max((len(s) for s in same_question.values()), default=1) + max(_sizes(targets), default=1)
    scores, indices = dense_search(queries, vectors, top_k + 4 * largest)
    columns: dict[str, list[Any]] = {name: [] for name in ("pair_id", "candidate_id", "source", "rank", "score")}
    for pair, row_scores, row in zip(pairs, scores, indices, strict=True):
        own = by_id.get(pair.target_id)
        never = {pair.duplicate_group} | same_question[pair.query.strip().lower()]
        never |= (
            same_question[f"answer:{pair.passage_id}:{pair.answer.strip().lower()}"] if pair.answer.strip() else set()
        )
        rank = 0
        for score, i in zip(row_scores, row, strict=True):
            target = targets[i]
            if target.duplicate_group in never or (own and _overlap(own, target)):
                continue
            rank += 1
            for name, value in zip(columns, (pair.id, target.id, "dense", rank, float(score)), strict=True):
                columns[name].append(value)
            if rank == top_k:
                break
    return columns


def _sizes(targets: Sequence[Target]) -> list[int]:
    sizes: dict[str, int] = defaultdict(int)
    for target in targets:
        sizes[target.duplicate_group] += 1
    return list(sizes.values())


def _overlap(a: Target, b: Target) -> bool:
    return a.document_id == b.document_id and a.start < b.end and b.start < a.end and a.end > 0
