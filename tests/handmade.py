"""Pairs, targets and vectors made by hand, where every right answer is known."""

import numpy as np
import pyarrow as pa

from factory.hybrid import Scorer
from factory.indexes import BM25Index, DenseIndex
from factory.records import Pair
from factory.retrieve import Target, mine


def target(
    i: int, text: str | None = None, group: str | None = None, split="train", span=(0, 0), document="d"
) -> Target:
    return Target(f"t{i}", text or f"第{i}段：{chr(0x4E00 + i * 37) * 12}", group or f"t{i}", split, document, *span)


def pair(i: int, t: Target, query: str | None = None, answer: str = "") -> Pair:
    return Pair(
        id=f"q{i}", passage_id=t.id, query=query or f"问题{i}？", answer=answer, target_id=t.id, target_text=t.text,
        duplicate_group=t.duplicate_group, split=t.split,
    )  # fmt: skip


def unit(rows) -> np.ndarray:
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def circle(degrees) -> np.ndarray:
    """Unit vectors in the plane: the cosine of two is the cosine of the angle between them."""
    radians = np.radians(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def searches(pairs, targets, queries, vectors, *more: str):
    dense = DenseIndex(vectors, "flat")
    found = {"dense": lambda start, end, k: dense.search(queries[start:end], k)}
    if "bm25" in more:
        words = BM25Index([t.text for t in targets])
        found["bm25"] = lambda start, end, k: words.search([p.query for p in pairs[start:end]], k)
    return found


def candidates(pairs, targets, queries, vectors, top_k: int, *more: str) -> pa.Table:
    found = searches(pairs, targets, queries, vectors, *more)
    return pa.concat_tables(mine(pairs, targets, queries, vectors, found, top_k))


def scored(n: int = 30, top_k: int = 20) -> tuple[pa.Table, list[Pair], list[Target]]:
    """Scores of 5 questions over n targets, in a cone of vectors as e5's: every cosine is high."""
    draw = np.random.default_rng(0)
    targets = [target(i) for i in range(n)]
    pairs = [pair(i, targets[i]) for i in range(5)]
    answers = unit(draw.normal(size=(n, 8)) + 3)
    queries = unit(answers[:5] + draw.normal(size=(5, 8)) * 0.2)
    block = candidates(pairs, targets, queries, answers, top_k)
    return Scorer(pairs, targets, queries, answers).table(block), pairs, targets
