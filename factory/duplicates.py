"""Groups of exact and near-duplicate texts: MinHash finds them, the true Jaccard confirms them."""

from __future__ import annotations

from collections.abc import Sequence

from factory.languages import squeeze

SHINGLE = 5  # characters: about a word in English, two to three in Chinese
PERMUTATIONS = 64  # enough to find pairs; each find is confirmed on the true shingles


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

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    # The search runs a little below the threshold, since MinHash estimates; the true value decides.
    lsh = MinHashLSH(threshold=max(0.1, threshold - 0.15), num_perm=PERMUTATIONS)
    first: dict[str, int] = {}
    sets: dict[int, set[str]] = {}
    for i, text in enumerate(texts):
        original = first.setdefault(squeeze(text), i)
        if original != i:
            parents[i] = root(original)
            continue
        sets[i] = shingles(text)
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([s.encode() for s in sets[i]])
        for j in lsh.query(sketch):
            a, b = root(i), root(j)
            if a != b and jaccard(sets[i], sets[j]) >= threshold:
                parents[max(a, b)] = min(a, b)
        lsh.insert(i, sketch)
    return [root(i) for i in range(len(texts))]
