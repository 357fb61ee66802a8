"""Groups of exact and near-duplicate texts: MinHash finds them, the true Jaccard confirms them. And of texts within texts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

from factory.languages import squeeze

SHINGLE = 5  # characters: about a word in English, two to three in Chinese
PERMUTATIONS = 64  # enough to find pairs; each find is confirmed on the true shingles
SENTENCE_END = re.compile(r"[。！？!?；;\n]|\.\s")
LONG = 12  # characters, without spaces, from which a sentence tells its text from others
COMMON = 5  # groups: a sentence that stands in more of them is boilerplate
LEAST = 5  # long sentences, without boilerplate, from which a text can be contained in others


def shingles(text: str) -> set[str]:
    """Character 5-grams of the squeezed text; a shorter text is its own single shingle."""
    s = squeeze(text)
    return {s[i : i + SHINGLE] for i in range(len(s) - SHINGLE + 1)} or {s}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def near_duplicate_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the index of the first text of its group.

    Two texts are joined when the Jaccard of their character 5-grams is at least `threshold`;
    groups are the connected components. Texts are compared after NFKC, lower case and removal of
    white space, so line breaks, full-width forms and indentation do not tell copies apart.
    """
    from datasketch import MinHash, MinHashLSH

    parents = list(range(len(texts)))

    # The search runs a little below the threshold, since MinHash estimates; the true value decides.
    lsh = MinHashLSH(threshold=max(0.1, threshold - 0.15), num_perm=PERMUTATIONS)
    first: dict[str, int] = {}
    sets: dict[int, set[str]] = {}
    for i, text in enumerate(texts):
        original = first.setdefault(squeeze(text), i)
        if original != i:
            parents[i] = _root(parents, original)
            continue
        sets[i] = shingles(text)
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([s.encode() for s in sets[i]])
        for j in lsh.query(sketch):
            a, b = _root(parents, i), _root(parents, j)
            if a != b and jaccard(sets[i], sets[j]) >= threshold:
                parents[max(a, b)] = min(a, b)
        lsh.insert(i, sketch)
    return [_root(parents, i) for i in range(len(texts))]


def join_contained(texts: Sequence[str], groups: Sequence[int], threshold: float) -> list[int]:
    """The groups of `near_duplicate_groups`, joined where one holds at least `threshold` of a text of the other.

    It is counted in long sentences that few groups have: small texts of boilerplate would join all that have it, too.
    """
    sentences = [{hash(s) for p in SENTENCE_END.split(t) if len(s := squeeze(p)) >= LONG} for t in texts]
    holders: dict[int, set[int]] = defaultdict(set)
    for own, group in zip(sentences, groups, strict=True):
        for sentence in own:
            holders[sentence].add(group)
    parents = list(range(len(texts)))
    for own, group in zip(sentences, groups, strict=True):
        rare = [holders[s] for s in own if len(holders[s]) <= COMMON]
        if len(rare) < LEAST:
            continue
        for other, shared in Counter(chain.from_iterable(rare)).items():
            if shared >= threshold * len(rare):
                a, b = _root(parents, group), _root(parents, other)
                parents[max(a, b)] = min(a, b)
    return [_root(parents, group) for group in groups]


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i
