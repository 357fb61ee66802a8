"""Words for BM25 and Jaccard, the same for Chinese and English; without a dictionary unless jieba is asked for."""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import lru_cache

import numpy as np

# Scripts written without spaces (Han, kana, Hangul) are one run; of the rest, letters and digits are.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_RUN = re.compile(rf"([{_CJK}]+)|[^\W_{_CJK}]+")


def tokens(text: str) -> list[str]:
    """Character bigrams of Chinese (a lone character stays as it is); lower-cased words and numbers of the rest.

    Full-width letters and digits count as the usual ones (NFKC). Bigrams are the usual dictionary-free
    indexing of Chinese, as in Lucene's CJKAnalyzer.

    >>> tokens("更换E4303焊条 2 根")
    ['更换', 'e4303', '焊条', '2', '根']
    """
    found: list[str] = []
    for match in _RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
        run = match.group()
        if match.group(1) and len(run) > 1:
            found.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            found.append(run)
    return found


@lru_cache(maxsize=1)
def classes() -> np.ndarray:
    """What each code point is in `tokens`: 0 no part of a word, 1 of a word or number, 2 of a run without spaces."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = np.zeros(len(every), np.uint8)
    for match in _RUN.finditer(every):
        kinds[match.start() : match.end()] = 2 if match.group(1) else 1
    return kinds


def words_of(segmenter: str) -> Callable[[str], list[str]]:
    """`bigrams`: `tokens`. `jieba`: the same, but Chinese cut into jieba's words."""
    return _jieba() if segmenter == "jieba" else tokens


@lru_cache(maxsize=1)
def _jieba() -> Callable[[str], list[str]]:
    import jieba

    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()

    def words(text: str) -> list[str]:
        found: list[str] = []
        for match in _RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
            found.extend(jieba.lcut(match.group(), HMM=False) if match.group(1) else [match.group()])
        return found

    return words
