"""The distinct words of many texts as sorted 64-bit hashes: `tokens.tokens`, compiled, for comparing millions of pairs.

Two of a million different words share a hash once in 40 million corpora, so that counting hashes is counting words.
"""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from factory.tokens import classes

KEPT = 50_000  # texts whose words are remembered between calls: 8 bytes a word, 120 MB at 300 words a text
BATCH = 4_000  # texts that are cut at once: bounds memory, 20 bytes a character


class WordSets:
    """Texts → their distinct words, sorted; the last `KEPT` texts are remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()

    def of(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(words, ends): the words of text i are words[ends[i]:ends[i + 1]], int64, ascending, each once."""
        found = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        for start in range(0, len(new), BATCH):
            found |= zip(new[start : start + BATCH], _cut(new[start : start + BATCH]), strict=True)
        self._known |= {text: found[text] for text in new}
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        sets = [found[text] for text in texts]
        return np.concatenate(sets), np.cumsum([0, *map(len, sets)], dtype=np.int64)


def _cut(texts: list[str]) -> list[np.ndarray]:
    joined = "\0".join(text.replace("\0", " ") for text in texts)  # neither is part of a word
    plain = unicodedata.normalize("NFKC", joined).lower()
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    words, begins, ends = _compiled()(codes, classes(), len(texts))
    return [words[b:e].copy() for b, e in zip(begins, ends, strict=True)]


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """The compiled cutter; the first call of an installation takes some seconds."""
    from numba import njit

    @njit(cache=True)
    def mixed(value):  # type: ignore[no-untyped-def]
        """splitmix64's last steps: neighbouring numbers come far apart."""
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))

    @njit(cache=True)
    def cut(codes, kinds, texts):  # type: ignore[no-untyped-def]
        starts = np.zeros(texts + 1, np.int64)
        text = 0
        for i in range(len(codes)):
            if codes[i] == 0:
                text += 1
                starts[text] = i + 1
        starts[texts] = len(codes) + 1
        words = np.empty(len(codes) + 1, np.int64)  # a word has at least one character
        ends = np.empty(texts, np.int64)
        for n in range(texts):
            at, i, last = starts[n], starts[n], starts[n + 1] - 1
            while i < last:
                kind = kinds[codes[i]]
                end = i + 1
                while end < last and kinds[codes[end]] == kind:
                    end += 1
                if kind == 2 and end - i > 1:
                    for j in range(i, end - 1):
                        pair = np.uint64(codes[j]) << np.uint64(32) | np.uint64(codes[j + 1])
                        words[at] = np.int64(mixed(pair))
                        at += 1
                elif kind:
                    word = np.uint64(end - i)
                    for j in range(i, end):
                        word = mixed(word * np.uint64(0x100000001B3) ^ np.uint64(codes[j]))
                    words[at] = np.int64(word)
                    at += 1
                i = end
            found = np.sort(words[starts[n] : at])
            kept = starts[n]
            for j in range(len(found)):
                if j == 0 or found[j] != found[j - 1]:
                    words[kept] = found[j]
                    kept += 1
            ends[n] = kept
        return words, starts[:texts], ends

    return cut
