"""Surface likeness of text pairs, fast: LCS, edit distance and Jaccard, each 0 to 1.

    lcs_score(["焊接裂纹"], ["焊接气孔"])      # [0.5]

Every function takes two lists of equal length and compares them pair by pair, on all cores. LCS and edit
distance count characters (Unicode code points); Jaccard counts words of `tokens.tokens`, so that it means the same
for Chinese, English and a mixture. Two empty texts are equal: LCS 1, edit distance 0, Jaccard 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from factory.word_sets import WordSets

_WORDS = WordSets()


def lcs_score(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """(n,) float32: length of the longest common subsequence of characters over the longer text's length.

    rapidfuzz' `LCSseq.normalized_similarity`; 1 for equal texts, symmetric.
    """
    from rapidfuzz.distance import LCSseq

    return _compare(left, right, LCSseq.normalized_similarity)


def edit_dist(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """(n,) float32: Levenshtein distance of characters over the longer text's length.

    rapidfuzz' `Levenshtein.normalized_distance`; 0 for equal texts, symmetric.
    """
    from rapidfuzz.distance import Levenshtein

    return _compare(left, right, Levenshtein.normalized_distance)


def _compare(left: Sequence[str], right: Sequence[str], scorer: Any) -> np.ndarray:
    from rapidfuzz import process

    if not len(left):
        return np.zeros(0, np.float32)
    return np.asarray(process.cpdist(left, right, scorer=scorer, workers=-1, dtype=np.float32))


def token_jaccard(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """(n,) float32: distinct words that both have over distinct words that either has; symmetric, 1 for equal texts."""
    if not len(left):
        return np.zeros(0, np.float32)
    texts = {text: i for i, text in enumerate(dict.fromkeys([*left, *right]))}
    words, ends = _WORDS.of(list(texts))
    a = np.fromiter((texts[t] for t in left), np.int64, len(left))
    b = np.fromiter((texts[t] for t in right), np.int64, len(right))
    return np.asarray(_jaccard_of_sorted()(words, ends, a, b))


@lru_cache(maxsize=1)
def _jaccard_of_sorted() -> Any:
    """The compiled comparison; the first call of an installation takes some seconds."""
    from numba import njit, prange

    @njit(parallel=True, cache=True)
    def compare(words, ends, a, b):  # type: ignore[no-untyped-def]
        values = np.empty(len(a), np.float32)
        for n in prange(len(a)):
            i, i_end = ends[a[n]], ends[a[n] + 1]
            j, j_end = ends[b[n]], ends[b[n] + 1]
            union = (i_end - i) + (j_end - j)
            shared = 0
            while i < i_end and j < j_end:
                if words[i] == words[j]:
                    shared += 1
                    i += 1
                    j += 1
                elif words[i] < words[j]:
                    i += 1
                else:
                    j += 1
            values[n] = shared / (union - shared) if union else 1.0
        return values

    return compare
