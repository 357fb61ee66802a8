"""Which words a question and a passage share, for reading: what the review page highlights."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from factory.languages import HAN

_WORD = re.compile(rf"(?P<han>(?:{HAN.pattern})+)|(?:(?!{HAN.pattern})[^\W_])+")


def pieces(text: str, other: str) -> list[tuple[str, bool]]:
    """`text` cut into (piece, shared): joined they are `text` again, and a shared piece occurs in `other`, too.

    Of Chinese whatever two or more characters both have in a row; of the rest whole words, whatever their case and
    width. Function words (bm25s' lists) and single letters and digits do not count.
    """
    words, bigrams = _parts(other)
    shared = [False] * len(text)
    for match in _WORD.finditer(text):
        begin, end = match.span()
        if not match["han"]:
            shared[begin:end] = [_plain(match.group()) in words] * (end - begin)
            continue
        for i in range(begin, end - 1):
            if text[i : i + 2] in bigrams:
                shared[i : i + 2] = [True, True]
    ends = [i for i in range(1, len(text) + 1) if i == len(text) or shared[i] != shared[i - 1]]
    return [(text[b:e], shared[b]) for b, e in zip([0, *ends], ends, strict=False)]


def _parts(text: str) -> tuple[set[str], set[str]]:
    """Words, and bigrams of Chinese characters, without function words."""
    words: set[str] = set()
    bigrams: set[str] = set()
    for match in _WORD.finditer(text):
        run = match.group()
        if match["han"]:
            bigrams.update(run[i : i + 2] for i in range(len(run) - 1))
        else:
            words.add(_plain(run))
    words = {w for w in words if len(w) > 1}
    return words - _function_words(), bigrams - _function_words()


def _plain(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()


@lru_cache(maxsize=1)
def _function_words() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_CHINESE, STOPWORDS_EN_PLUS

    return frozenset([*STOPWORDS_CHINESE, *STOPWORDS_EN_PLUS])
