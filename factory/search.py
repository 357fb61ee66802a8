"""What a system finds for each query: BM25, dense, and m3's four ways. Exact, in blocks of queries.

A ranking is an array (queries, k) of passage indices, best first; -1 where nothing more was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.indexes import BM25Index, DenseIndex, SparseIndex
from factory.models import Encoder, Mode
from factory.progress import bar

DEPTH = 100  # results kept for a query, FlagEmbedding's evaluation does no more with them
POOL = (
    200  # m3: ColBERT and the sum rank the union of the dense and the sparse first 200 (pooling as in BGE-M3's paper)
)
SUM = (0.4, 0.2, 0.4)  # dense, sparse, ColBERT: weights_for_different_modes in the usage example of bge-m3's model card
QUERIES = 512  # queries searched at once, and whose token vectors are scored at once against a passage


def search_bm25(queries: Sequence[str], passages: Sequence[str], k: int = DEPTH) -> np.ndarray:
    """The ranking by `BM25Index`. A passage without any word of the query is not found, whatever its rank."""
    return _in_blocks(BM25Index(passages), queries, len(queries), k, "BM25")


def search_dense(queries: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
    """The exact ranking by cosine."""
    return _in_blocks(DenseIndex(passages, "flat"), queries, len(queries), k, "search")


def _in_blocks(index: Any, queries: Any, total: int, k: int, what: str) -> np.ndarray:
    ranking = np.full((total, min(k, index.size)), -1, np.int64)
    with bar(what, "query", total) as shown:
        for start in range(0, total, QUERIES):
            block = queries[start : start + QUERIES]
            ranking[start : start + QUERIES] = index.search(block, k)[1]
            shown.update(min(QUERIES, total - start))
    return ranking


def search(encoder: Encoder, queries: Sequence[str], passages: Sequence[str], k: int = DEPTH) -> dict[Mode, np.ndarray]:
    """A ranking for each mode of the encoder: dense; with m3 also sparse, ColBERT and their sum.

    ColBERT and the sum rank the union of the dense and the sparse first 200 only. Of ColBERT's vectors those
    of all queries are held (80 kB a query at d = 1024) and those of 256 passages at a time.
    """
    if "sparse" not in encoder.modes:
        q, p = encoder.encode(queries, "query"), encoder.encode(passages, "passage")
        return {"dense": search_dense(q.dense, p.dense, k)}
    q = encoder.encode(queries, "query", modes=("sparse", "colbert"))
    p = encoder.encode(passages, "passage", modes=("sparse",))
    assert q.sparse is not None and q.colbert is not None and p.sparse is not None
    dense = search_dense(q.dense, p.dense, max(k, POOL))
    sparse = _in_blocks(SparseIndex(p.sparse), q.sparse, len(queries), max(k, POOL), "sparse search")
    pools = [np.union1d(d[:POOL], s[:POOL]) for d, s in zip(dense, sparse, strict=True)]
    pools = [pool[pool >= 0] for pool in pools]
    late = _colbert_scores(encoder, q.colbert, passages, pools)
    lexical = p.sparse.tocsr()
    total = [
        SUM[0] * (p.dense[pool] @ q.dense[i]) + SUM[1] * (lexical[pool] @ q.sparse[i].T).toarray()[:, 0] + SUM[2] * c
        for i, (pool, c) in enumerate(zip(pools, late, strict=True))
    ]
    return {
        "dense": dense[:, :k],
        "sparse": sparse[:, :k],
        "colbert": _ranked(pools, late, k),
        "sum": _ranked(pools, total, k),
    }


def colbert_scores(queries: Sequence[np.ndarray], passage: np.ndarray) -> np.ndarray:
    """Late interaction of each query with one passage, (queries,): for each query token the best passage
    token's inner product, averaged over the query's tokens (`BGEM3FlagModel.colbert_score`).

    Args:
        queries: arrays (tokens, d), each with at least one token; passage: (tokens, d).
    """
    lengths = np.array([len(q) for q in queries])
    best = (np.concatenate(queries) @ passage.T).max(axis=1)
    return np.asarray(np.add.reduceat(best, np.cumsum(lengths) - lengths) / lengths)


def _colbert_scores(
    encoder: Encoder, queries: Sequence[np.ndarray], passages: Sequence[str], pools: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """For each query the scores of its pool. Each passage is encoded once, and forgotten."""
    from factory.models import BLOCK

    scores = [np.zeros(len(pool), np.float32) for pool in pools]
    query_of = np.repeat(np.arange(len(pools)), [len(pool) for pool in pools])
    place_of = np.concatenate([np.arange(len(pool)) for pool in pools])
    passage_of = np.concatenate(pools).astype(np.int64)
    order = np.argsort(passage_of, kind="stable")
    wanted, starts = np.unique(passage_of[order], return_index=True)
    groups = np.split(order, starts[1:])
    with bar("ColBERT", "passage", len(wanted)) as shown:
        for start in range(0, len(wanted), BLOCK):
            block = wanted[start : start + BLOCK]
            vectors = encoder.encode([passages[i] for i in block], "passage", modes=("colbert",)).colbert
            assert vectors is not None
            for pairs, vector in zip(groups[start : start + BLOCK], vectors, strict=True):
                for part in np.array_split(pairs, len(pairs) // QUERIES + 1):
                    if len(part) and len(vector):
                        values = colbert_scores([queries[query_of[j]] for j in part], vector)
                        for j, value in zip(part, values, strict=True):
                            scores[query_of[j]][place_of[j]] = value
            shown.update(len(block))
    return scores


def _ranked(pools: Sequence[np.ndarray], scores: Sequence[np.ndarray], k: int) -> np.ndarray:
    ranking = np.full((len(pools), k), -1, np.int64)
    for row, pool, score in zip(ranking, pools, scores, strict=True):
        best = pool[np.argsort(-score, kind="stable")][:k]
        row[: len(best)] = best
    return ranking
