"""Questions that were asked before: in the test, on the same passage, on other passages of the corpus."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from factory.languages import question_key
from factory.progress import progress
from factory.records import Pair
from factory.settings_questions import QualityConfig

GRAM = 3  # characters: questions are too short for the five of passages
PERMUTATIONS = 64
FOUND_FROM = 0.4  # Jaccard from which MinHash proposes two questions; their edit ratio then decides
NUMBER = re.compile(r"\d+")


def repeated(pairs: Sequence[Pair], tests: Iterable[str], config: QualityConfig) -> dict[str, tuple[str, str]]:
    """(reason, detail) of each pair that repeats another one, by its id. Of two alike the first stays, held-out ones
    before training ones, given ones before generated ones; of those that were written for many passages none stays.

    Args:
        tests: questions of a given test; a pair that asks one of them goes.
    """
    found: dict[str, tuple[str, str]] = {}
    asked = {question_key(q) for q in tests}
    ordered = sorted(pairs, key=lambda p: (p.split == "train", p.origin != "given"))
    text = {p.id: question_key(p.query) for p in ordered}
    for pair in ordered:
        if text[pair.id] in asked:
            found[pair.id] = ("equals-a-test-question", "")
    left = [p for p in ordered if p.id not in found]
    found |= _on_one_passage(left, text, config.duplicate)
    left = [p for p in left if p.id not in found]
    found |= _held_out_already(left, text)
    left = [p for p in left if p.id not in found]
    for alike in _across(left, text, config.duplicate_across):
        targets = {p.duplicate_group for p in alike}
        free = [p for p in alike if p.origin == "generated"]
        if len(targets) >= config.asked_of_many and len(free) == len(alike):
            found |= {p.id: ("asked-of-many-passages", f"{len(targets)} passages have this question") for p in alike}
            continue
        first = next((p for p in alike if p.origin == "given"), alike[0])
        others = [p for p in free if p is not first]
        found |= {p.id: ("duplicate-question", f"{_like(p, first, text)} (passage {first.passage_id})") for p in others}
    return found


def _held_out_already(pairs: Sequence[Pair], text: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Given pairs whose question is held out with another answer: a question that is trained on tests nothing."""
    asked: dict[str, set[str]] = {s: {text[p.id] for p in pairs if p.split == s} for s in ("eval", "dev")}
    before = {"eval": set(), "dev": asked["eval"], "train": asked["eval"] | asked["dev"]}
    return {
        p.id: ("equals-a-held-out-question", "") for p in pairs if p.origin == "given" and text[p.id] in before[p.split]
    }


def _on_one_passage(pairs: Sequence[Pair], text: dict[str, str], ratio: float) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    before: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        same = before[pair.passage_id]
        close = next((p for p in same if _alike(text[pair.id], text[p.id], ratio)), None)
        if close is None:
            same.append(pair)
        else:
            found[pair.id] = ("duplicate-question", _like(pair, close, text))
    return found


def _like(pair: Pair, other: Pair, text: dict[str, str]) -> str:
    return f"{'the same as' if text[pair.id] == text[other.id] else 'nearly'} {other.query[:60]!r}"


def _alike(a: str, b: str, ratio: float) -> bool:
    from rapidfuzz import fuzz

    return NUMBER.findall(a) == NUMBER.findall(b) and fuzz.ratio(a, b) / 100 >= ratio


def _across(pairs: Sequence[Pair], text: dict[str, str], ratio: float) -> list[list[Pair]]:
    """Groups of two and more questions that are nearly the same."""
    from datasketch import MinHash, MinHashLSH

    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[text[pair.id]].append(pair)
    lsh = MinHashLSH(threshold=FOUND_FROM, num_perm=PERMUTATIONS)
    head: dict[str, str] = {}
    for query in progress(list(groups), "near-duplicates", "question"):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([query[i : i + GRAM].encode() for i in range(max(1, len(query) - GRAM + 1))])
        for other in sorted(lsh.query(sketch)):
            if _alike(query, other, ratio):
                head[query] = other
                break
        else:  # only heads are found again, so that a group is what is near its first question
            head[query] = query
            lsh.insert(query, sketch)
    joined: dict[str, list[Pair]] = defaultdict(list)
    for query, first in head.items():
        joined[first] += groups[query]
    return [alike for alike in joined.values() if len(alike) > 1]
