"""What a system finds for each query: BM25, dense, and m3's four ways. Exact, in blocks of queries.

A ranking is an array (queries, k) of passage indices, best first; -1 where nothing more was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from factory.models import Encoder, Mode
from factory.progress import bar
from factory.tokens import tokens

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DEPTH = 100  # results kept for a query, FlagEmbedding's evaluation does no more with them
POOL = (
    200  # m3: ColBERT and the sum rank the union of the dense and the sparse first 200 (pooling as in BGE-M3's paper)
)
SUM = (0.4, 0.2, 0.4)  # dense, sparse, ColBERT: weights_for_different_modes in the usage example of bge-m3's model card
CELLS = 1 << 25  # scores held at once: 128 MB of float32
QUERIES = 512  # queries whose token vectors are scored at once against a passage


def search_bm25(queries: Sequence[str], passages: Sequence[str], k: int = DEPTH) -> np.ndarray:
    """BM25 (bm25s with its defaults: Lucene's formula, k1 1.5, b 0.75) over `tokens`.

    A passage without any word of the query is not found, whatever its rank.
    """
    import bm25s

    ranking = np.full((len(queries), min(k, len(passages))), -1, np.int64)
    words = [tokens(p) for p in passages]
    if not any(words):
        return ranking
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    with bar("BM25", "query", len(queries)) as shown:
        for start in range(0, len(queries), QUERIES):
            block = [tokens(q) for q in queries[start : start + QUERIES]]
            found, scores = index.retrieve(block, k=ranking.shape[1], show_progress=False)
            ranking[start : start + len(block)] = np.where(scores > 0, found, -1)
            shown.update(len(block))
    return ranking


def search(encoder: Encoder, queries: Sequence[str], passages: Sequence[str], k: int = DEPTH) -> dict[Mode, np.ndarray]:
    """A ranking for each mode of the encoder: dense; with m3 also sparse, ColBERT and their sum.

    ColBERT and the sum rank the union of the dense and the sparse first 200 only. Of ColBERT's vectors those
    of all queries are held (80 kB a query at d = 1024) and those of 256 passages at a time.
    """
    from factory.retrieve import dense_search

    if "sparse" not in encoder.modes:
        q, p = encoder.encode(queries, "query"), encoder.encode(passages, "passage")
        return {"dense": dense_search(q.dense, p.dense, k)[1].astype(np.int64)}
    q = encoder.encode(queries, "query", modes=("sparse", "colbert"))
    p = encoder.encode(passages, "passage", modes=("sparse",))
    assert q.sparse is not None and q.colbert is not None and p.sparse is not None
    dense = dense_search(q.dense, p.dense, max(k, POOL))[1].astype(np.int64)
    sparse = sparse_search(q.sparse, p.sparse, max(k, POOL))
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


def sparse_search(queries: csr_matrix, passages: csr_matrix, k: int) -> np.ndarray:
    """Ranking by the dot product of sparse rows; a passage that shares no token is not found."""
    n, k = passages.shape[0], min(k, passages.shape[0])
    ranking = np.full((queries.shape[0], k), -1, np.int64)
    inverted = passages.T.tocsr()
    step = max(1, min(QUERIES, CELLS // max(1, n)))
    with bar("sparse search", "query", queries.shape[0]) as shown:
        for start in range(0, queries.shape[0], step):
            scores = (queries[start : start + step] @ inverted).toarray()
            for i, row in enumerate(scores, start):
                found = np.flatnonzero(row > 0)
                if len(found) > k:  # drop what cannot be among the first k before sorting
                    found = found[row[found] >= np.partition(row[found], -k)[-k]]
                best = found[np.argsort(-row[found], kind="stable")][:k]
                ranking[i, : len(best)] = best
            shown.update(len(scores))
    return ranking


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
