"""What a system finds for each query: BM25, dense, and m3's four ways. Exact.

Passages are encoded and searched block by block, and of each only the best are kept: memory grows with the queries
and with k, never with passages × queries, and no passage's vector outlives its block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from factory.errors import InputError
from factory.indexes import BM25Index, DenseIndex, SparseIndex, cosines
from factory.models import BLOCK, Encoded, Encoder, Mode
from factory.progress import bar

DEPTH = 100  # results kept for a query
# m3: ColBERT and the sum rank the union of the dense and the sparse first 200. FlagEmbedding's evaluation of bge-m3 on
# MLDR ranks the dense first 200 only; where a corpus has no more, the two are the same.
POOL = 200
Weights = tuple[float, float, float]  # of dense, sparse and ColBERT in a sum
SUM = (0.4, 0.2, 0.4)  # dense, sparse, ColBERT: weights_for_different_modes in the usage example of bge-m3's model card
QUERIES = 512  # queries whose words are searched at once, and whose token vectors are scored at once against a passage
PASSAGES = 32 * BLOCK  # passages encoded and searched at once: 32 MB of vectors at d = 1024


@dataclass(frozen=True)
class Found:
    """A ranking: passage indices, best first, -1 where nothing more was found, and their scores, -inf there.

    Attributes:
        rows: (queries, k) int64; scores: (queries, k) float.
    """

    rows: np.ndarray
    scores: np.ndarray

    def of(self, queries: slice) -> Found:
        """The ranking of some of the queries."""
        return Found(self.rows[queries], self.scores[queries])


class Best:
    """The best k of each query among all blocks that were added. Of equal scores the earlier passage is first."""

    def __init__(self, queries: int, k: int):
        self.found = Found(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """Each (queries, any); row -1 holds nothing."""
        k = self.found.rows.shape[1]
        rows = np.concatenate([self.found.rows, rows], axis=1)
        scores = np.concatenate([self.found.scores, scores], axis=1)
        best = np.lexsort((rows, -scores), axis=1)[:, :k]
        self.found = Found(np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1))


def search_bm25(queries: Sequence[str], passages: Sequence[str], k: int = DEPTH) -> Found:
    """The ranking by `BM25Index`. A passage without any word of the query is not found, whatever its rank."""
    index = BM25Index(passages)
    rows = np.full((len(queries), min(k, index.size)), -1, np.int64)
    scores = np.full(rows.shape, -np.inf, np.float32)
    with bar("BM25", "query", len(queries)) as shown:
        for start in range(0, len(queries), QUERIES):
            part = slice(start, start + QUERIES)
            scores[part], rows[part] = index.search(queries[part], k)
            shown.update(len(rows[part]))
    return Found(rows, scores)


def shortened(vectors: np.ndarray, width: int) -> np.ndarray:
    """The first `width` numbers of each row, at unit length again (Kusupati et al. 2022, Matryoshka)."""
    cut = vectors[:, :width]
    return np.ascontiguousarray(cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12))


def query_modes(encoder: Encoder, modes: Collection[str]) -> tuple[Mode, ...]:
    """What queries must be encoded with, for `search` to rank by `modes`."""
    if not {"sparse", "colbert", "sum"} & set(encoder.modes) & set(modes):
        return ("dense",)
    return ("sum",) if {"colbert", "sum"} & set(modes) else ("dense", "sparse")


def sum_names(weights: Sequence[Weights]) -> list[str]:
    """The modes that the weights make.

    >>> sum_names([(0.4, 0.2, 0.4), (0.2, 0.6, 0.2)])
    ['sum', 'sum@0.2,0.6,0.2']
    """
    return ["sum" if i == 0 else "sum@" + ",".join(f"{w:g}" for w in of) for i, of in enumerate(weights)]


def search(
    encoder: Encoder,
    queries: Encoded,
    passages: Sequence[str],
    k: int = DEPTH,
    *,
    modes: Collection[str] = ("dense", "sparse", "colbert", "sum"),
    dims: Sequence[int] = (),
    weights: Sequence[Weights] = (SUM,),
) -> dict[str, Found]:
    """A ranking for each of `modes` that the encoder has; `dense` always, and `dense@64` for each of `dims`.

    ColBERT and the sum rank the union of the dense and the sparse first 200 only. Of ColBERT's vectors those
    of all queries are held (80 kB a query at d = 1024) and those of 256 passages at a time.

    Args:
        queries: encoded with `query_modes`.
        dims: lengths to which the dense vectors are cut.
        weights: of dense, sparse and ColBERT in the sum; further ones give sum@0.2,0.6,0.2 and so on.

    Raises:
        InputError: a length in `dims` is not below that of the model's vectors.
    """
    n, width = queries.dense.shape
    if wrong := [d for d in dims if not 0 < d < width]:
        raise InputError(
            f"the vectors have {width} numbers and cannot be cut to {wrong[0]}", where="--dim", fix=f"1 to {width - 1}"
        )
    pooled = [m for m in ("colbert", "sum") if m in modes and m in encoder.modes]
    with_sparse = "sparse" in encoder.modes and ("sparse" in modes or bool(pooled))
    depth = min(max(k, POOL) if pooled else k, len(passages))
    widths = {"dense": width} | {f"dense@{d}": d for d in dims}
    asked = {name: queries.dense if d == width else shortened(queries.dense, d) for name, d in widths.items()}
    best = {name: Best(n, depth) for name in [*widths, *(["sparse"] if with_sparse else [])]}
    with bar("encode and search", "passage", len(passages), disable=len(passages) <= PASSAGES) as shown:
        for start in range(0, len(passages), PASSAGES):
            block = passages[start : start + PASSAGES]
            encoded = encoder.encode(block, "passage", modes=("dense", "sparse") if with_sparse else ("dense",))
            for name, d in widths.items():
                vectors = encoded.dense if d == width else shortened(encoded.dense, d)
                scores, rows = DenseIndex(vectors, "flat").search(asked[name], depth)
                best[name].add(scores, np.where(rows >= 0, rows + start, -1))
            if with_sparse:
                assert encoded.sparse is not None and queries.sparse is not None
                scores, rows = SparseIndex(encoded.sparse).search(queries.sparse, depth)
                best["sparse"].add(scores, np.where(rows >= 0, rows + start, -1))
            shown.update(len(block))
    first = slice(None), slice(0, k)
    found = {
        name: Found(b.found.rows[first], b.found.scores[first])
        for name, b in best.items()
        if name != "sparse" or "sparse" in modes
    }
    if pooled:
        pairs = zip(best["dense"].found.rows[:, :POOL], best["sparse"].found.rows[:, :POOL], strict=True)
        pools = [pool[pool >= 0] for pool in (np.union1d(d, s) for d, s in pairs)]
        scores_of = _pool_scores(encoder, queries, passages, pools, weights)
        kept = [m for m in scores_of if m.partition("@")[0] in pooled]
        found |= {mode: _ranked(pools, scores_of[mode], k) for mode in kept}
    return found


def colbert_scores(queries: Sequence[np.ndarray], passage: np.ndarray) -> np.ndarray:
    """Late interaction of each query with one passage, (queries,): for each query token the best passage
    token's inner product, averaged over the query's tokens (`BGEM3FlagModel.colbert_score`).

    Args:
        queries: arrays (tokens, d), each with at least one token; passage: (tokens, d).
    """
    lengths = np.array([len(q) for q in queries])
    best = (np.concatenate(queries) @ passage.T).max(axis=1)
    return np.asarray(np.add.reduceat(best, np.cumsum(lengths) - lengths) / lengths)


def _pool_scores(
    encoder: Encoder,
    queries: Encoded,
    passages: Sequence[str],
    pools: Sequence[np.ndarray],
    weights: Sequence[Weights],
) -> dict[str, list[np.ndarray]]:
    """For each query ColBERT's scores of its pool, and each weighted sum. Each passage is encoded once, and forgotten."""
    assert queries.colbert is not None and queries.sparse is not None
    sizes = [len(pool) for pool in pools]
    query_of = np.repeat(np.arange(len(pools)), sizes)
    passage_of = np.concatenate(pools).astype(np.int64)
    dense, shared, late = (np.zeros(len(query_of), np.float32) for _ in range(3))
    order = np.argsort(passage_of, kind="stable")
    wanted, starts = np.unique(passage_of[order], return_index=True)
    ends = [*starts[1:], len(order)]
    with bar("ColBERT", "passage", len(wanted)) as shown:
        for at in range(0, len(wanted), BLOCK):
            block = wanted[at : at + BLOCK]
            encoded = encoder.encode([passages[i] for i in block], "passage", modes=("sum",))
            assert encoded.colbert is not None and encoded.sparse is not None
            for vectors, start, end in zip(encoded.colbert, starts[at:], ends[at:], strict=False):
                pairs = order[start:end]
                for part in np.array_split(pairs, len(pairs) // QUERIES + 1):
                    if len(part) and len(vectors):
                        late[part] = colbert_scores([queries.colbert[query_of[j]] for j in part], vectors)
            pairs = order[starts[at] : ends[at + len(block) - 1]]
            place = np.searchsorted(block, passage_of[pairs])
            dense[pairs] = cosines(queries.dense, query_of[pairs], encoded.dense, place)
            for start in range(0, len(pairs), 8192):
                some = pairs[start : start + 8192]
                words = queries.sparse[query_of[some]].multiply(encoded.sparse[place[start : start + 8192]])
                shared[some] = np.asarray(words.sum(axis=1)).ravel()
            shown.update(len(block))
    cuts = np.cumsum(sizes)[:-1]
    sums = {
        name: a * dense + b * shared + c * late for name, (a, b, c) in zip(sum_names(weights), weights, strict=True)
    }
    return {name: np.split(scores, cuts) for name, scores in {"colbert": late, **sums}.items()}


def _ranked(pools: Sequence[np.ndarray], scores: Sequence[np.ndarray], k: int) -> Found:
    width = min(k, max((len(pool) for pool in pools), default=0))
    found = Found(np.full((len(pools), width), -1, np.int64), np.full((len(pools), width), -np.inf, np.float32))
    for i, (pool, score) in enumerate(zip(pools, scores, strict=True)):
        best = np.argsort(-score, kind="stable")[:k]
        found.rows[i, : len(best)], found.scores[i, : len(best)] = pool[best], score[best]
    return found
