"""Searches that give scores: dense (FAISS), BM25 (bm25s), m3's sparse weights. The caller gives blocks of queries.

Each index answers `search(block, k)` with (scores, rows), both (queries, k), best first; a place that nothing
fills holds row -1 and score -inf, whatever the library under it puts there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from factory.tokens import words_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

IndexKind = Literal["auto", "flat", "hnsw", "ivf"]
FLAT_UP_TO = 100_000  # rows searched exactly on a CPU: a millisecond a query at d = 1024 on 16 cores
HNSW_UP_TO = 1_000_000  # rows; beyond, HNSW's links (512 bytes a row) and its build time grow unpleasant
GPU_FLAT_UP_TO = 5_000_000  # rows; 20 GB of float32 at d = 1024
GPU_DEPTH = 2048  # faiss' GPU indexes find no more
LINKS = 64  # HNSW64
CELLS = 1 << 25  # sparse scores held at once: 128 MB of float32


def cosines(left: np.ndarray, li: np.ndarray, right: np.ndarray, ri: np.ndarray) -> np.ndarray:
    """Inner products of left[li] and right[ri], pair by pair, (n,) float32; 8,192 pairs are held at once."""
    values = np.empty(len(li), np.float32)
    for start in range(0, len(li), 8192):
        part = slice(start, start + 8192)
        values[part] = np.einsum("ij,ij->i", left[li[part]], right[ri[part]])
    return values


class DenseIndex:
    """Inner products of unit vectors, so cosines. Exact up to 100,000 rows, then HNSW64, then IVF.

    Args:
        rows: (n, d) float32 of unit length.
        kind: `auto` decides by n; a GPU is used where the installed faiss has one (flat and IVF).
    """

    def __init__(self, rows: np.ndarray, kind: IndexKind = "auto"):
        import faiss

        n, width = rows.shape
        gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        self._index: Any
        self.kind = kind if kind != "auto" else choose_kind(n, gpus)
        if self.kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = 200
        elif self.kind == "ivf":
            lists = max(1, min(int(4 * math.sqrt(n)), n // 39))  # k-means wants 39 points a centroid
            quantizer = faiss.IndexFlatIP(width)
            self._index = faiss.IndexIVFFlat(quantizer, width, lists, faiss.METRIC_INNER_PRODUCT)
            self._index.train(rows)
            self._index.nprobe = min(lists, 64)
        else:
            self._index = faiss.IndexFlatIP(width)
        self._on_gpu = gpus > 0 and self.kind != "hnsw"
        if self._on_gpu:
            self._index = faiss.index_cpu_to_all_gpus(self._index)
        self._index.add(rows)
        self.size = n

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`queries`: (q, d) float32 of unit length."""
        k = min(k, self.size, GPU_DEPTH) if self._on_gpu else min(k, self.size)
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(2 * k, 128)  # below k it would leave places empty
        scores, rows = self._index.search(np.ascontiguousarray(queries), k)
        return np.where(rows >= 0, scores, -np.inf).astype(np.float32), rows


def choose_kind(n: int, gpus: int) -> Literal["flat", "hnsw", "ivf"]:
    """What `auto` means for n rows."""
    if n <= (GPU_FLAT_UP_TO if gpus else FLAT_UP_TO):
        return "flat"
    return "hnsw" if n <= HNSW_UP_TO and not gpus else "ivf"


class BM25Index:
    """bm25s with its defaults: Lucene's formula, k1 1.5, b 0.75. A text without a word of the query is not found.

    Args:
        segmenter: `bigrams` of Chinese characters, or `jieba`'s words.
    """

    def __init__(self, texts: Sequence[str], segmenter: str = "bigrams"):
        import bm25s

        self._words = words_of(segmenter)
        self.size = len(texts)
        words = [self._words(t) for t in texts]
        self._index: Any = None
        if any(words):
            self._index = bm25s.BM25()
            self._index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.size)
        if self._index is None:
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        rows, scores = self._index.retrieve([self._words(q) for q in queries], k=k, show_progress=False)
        return np.where(scores > 0, scores, -np.inf).astype(np.float32), np.where(scores > 0, rows, -1).astype(np.int64)


class SparseIndex:
    """Dot products of m3's lexical weights. A text that shares no token is not found."""

    def __init__(self, rows: csr_matrix):
        self.size = rows.shape[0]
        self._inverted = rows.T.tocsr()

    def search(self, queries: csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.size)
        scores = np.full((queries.shape[0], k), -np.inf, np.float32)
        rows = np.full((queries.shape[0], k), -1, np.int64)
        step = max(1, CELLS // max(1, self.size))
        for start in range(0, queries.shape[0], step):
            for i, row in enumerate((queries[start : start + step] @ self._inverted).toarray(), start):
                found = np.flatnonzero(row > 0)
                if len(found) > k:  # drop what cannot be among the first k before sorting
                    found = found[row[found] >= np.partition(row[found], -k)[-k]]
                best = found[np.argsort(-row[found], kind="stable")][:k]
                rows[i, : len(best)], scores[i, : len(best)] = best, row[best]
        return scores, rows
