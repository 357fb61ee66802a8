"""Stage 5, mine: for each training question the passages that a search confuses with its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from factory.indexes import cosines
from factory.languages import question_key, squeeze
from factory.progress import bar
from factory.records import Pair, Passage, Split

BLOCK = 1024  # questions worked on at once: bounds memory, and is one row group of the Parquet files
MOST_HIDDEN = 1000  # deeper than top_k by so much at most, where one question has so many answers
Search = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]
STRICTEST = ("eval", "dev", "train")
SOURCES = ("dense", "bm25", "sparse")
RANKED = 300  # ranks are told down to here; deeper ones say nothing more of a candidate
FUSION = 60  # reciprocal rank fusion's constant (Cormack, Clarke, Büttcher, SIGIR 2009)


@dataclass(frozen=True)
class Target:
    """What a search can return: a passage, or under other pairings an answer or a question."""

    id: str
    text: str
    duplicate_group: str
    split: Split
    document_id: str
    start: int = 0
    end: int = 0


def targets_of(passages: Sequence[Passage], pairs: Sequence[Pair]) -> list[Target]:
    """Every passage when pairs point at passages; else each distinct text that a pair points at."""
    by_id = {p.id: p for p in passages}
    if all(pair.target_id in by_id for pair in pairs):
        return [Target(p.id, p.text, p.duplicate_group, p.split, p.document_id, p.start, p.end) for p in passages]
    of: dict[str, Pair] = {}
    for pair in pairs:  # of like texts the one that is held out decides
        before = of.get(pair.target_text)
        if before is None or STRICTEST.index(pair.split) < STRICTEST.index(before.split):
            of[pair.target_text] = pair
    return [Target(p.target_id, t, p.duplicate_group, p.split, by_id[p.passage_id].document_id) for t, p in of.items()]


def rank_of_target(
    pairs: Sequence[Pair], targets: Sequence[Target], queries: np.ndarray, vectors: np.ndarray
) -> list[int]:
    """For each pair the rank (from 1) of the first target in its duplicate group, among all targets.

    Args:
        queries: (pairs, d), vectors: (targets, d), both float32 with rows of length 1.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, target in enumerate(targets):
        groups[target.duplicate_group].append(i)
    ranks = []
    for start in range(0, len(pairs), BLOCK):
        scores = queries[start : start + BLOCK] @ vectors.T
        for pair, row in zip(pairs[start : start + BLOCK], scores, strict=True):
            best = row[groups[pair.duplicate_group]].max()
            ranks.append(1 + int((row > best).sum()))
    return ranks


class Exclusions:
    """What must never be a candidate for a question: its positive and what is known to answer it as well.

    That is: the positive's duplicates, a target that overlaps it in the same document, what `Pair.also` names, and the
    positives of other pairs with the same question, or with the same answer on the same passage; all with their duplicates.
    """

    def __init__(self, pairs: Sequence[Pair], targets: Sequence[Target]):
        codes = {g: i for i, g in enumerate(dict.fromkeys(t.duplicate_group for t in targets))}
        documents = {d: i for i, d in enumerate(dict.fromkeys(t.document_id for t in targets))}
        by_id = {t.id: i for i, t in enumerate(targets)}
        self.group = np.array([codes[t.duplicate_group] for t in targets], np.int64)
        self.document = np.array([documents[t.document_id] for t in targets], np.int64)
        self.start = np.array([t.start for t in targets], np.int64)
        self.end = np.array([t.end for t in targets], np.int64)
        self.positive = np.array([by_id[p.target_id] for p in pairs], np.int64)
        together: dict[tuple[str, ...], set[int]] = defaultdict(set)
        also = [{int(self.group[by_id[i]]) for i in pair.also if i in by_id} for pair in pairs]
        for pair, others in zip(pairs, also, strict=True):
            for key in _kinship(pair):
                together[key] |= {codes[pair.duplicate_group]} | (others if key[0] == "question" else set())
        own = self.group[self.positive]
        self.kin: list[np.ndarray] = []  # further groups that answer the question, mostly none
        for pair, code in zip(pairs, own, strict=True):
            groups = set().union(*(together[key] for key in _kinship(pair))) - {int(code)}
            self.kin.append(np.array(sorted(groups), np.int64))
        sizes = np.bincount(self.group, minlength=len(codes))
        hidden = [sizes[c] + sizes[k].sum() for c, k in zip(own, self.kin, strict=True)]
        self.most = min(MOST_HIDDEN, int(max(hidden, default=0)) + self._most_overlaps())

    def _most_overlaps(self) -> int:
        """How many targets can at most overlap one: those that begin before it ends, within a document."""
        most, order = 0, np.lexsort((self.start, self.document))
        for at, i in enumerate(order):
            reach = at + 1
            while reach < len(order):
                j = order[reach]
                if self.document[j] != self.document[i] or self.start[j] >= self.end[i]:
                    break
                reach += 1
            most = max(most, reach - at - 1)
        return 2 * most

    def allowed(self, first: int, rows: np.ndarray) -> np.ndarray:
        """Which of the found targets may be candidates, (questions, k) bool.

        Args:
            first: index of the block's first pair; rows: (questions, k) target indices, -1 where nothing was found.
        """
        own = self.positive[first : first + len(rows), None]
        safe = np.where(rows >= 0, rows, 0)
        overlap = (self.document[safe] == self.document[own]) & (self.end[safe] > 0)
        overlap &= (self.start[safe] < self.end[own]) & (self.start[own] < self.end[safe])
        good = (rows >= 0) & (self.group[safe] != self.group[own]) & ~overlap
        for i, kin in enumerate(self.kin[first : first + len(rows)]):
            if len(kin):
                good[i] &= ~np.isin(self.group[safe[i]], kin)
        return good

    def rank_of_own(self, first: int, rows: np.ndarray) -> np.ndarray:
        """At which rank (from 1) each question's own target, or a copy of it, was found; 0 where it was not. Arguments
        as in `allowed`."""
        group = self.group[self.positive[first : first + len(rows), None]]
        same = (rows >= 0) & (self.group[np.where(rows >= 0, rows, 0)] == group)
        return np.where(same.any(axis=1), same.argmax(axis=1) + 1, 0).astype(np.int32)


def _kinship(pair: Pair) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [("question", question_key(pair.query))]
    if pair.answer.strip():
        keys.append(("answer", pair.passage_id, squeeze(pair.answer)))
    return keys


def mine(
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    queries: np.ndarray,
    vectors: np.ndarray,
    searches: Mapping[str, Search],
    top_k: int,
) -> Iterator[pa.Table]:
    """The candidates of `BLOCK` pairs after the other, pair by pair, best first by reciprocal rank fusion.

    A pair's candidates are the first `top_k` of each source that `Exclusions` allows. Columns: `pair_id`,
    `candidate_id`, `rank` (from 1, in the fused order), `score` (cosine of question and candidate, whatever found
    it), and for each source `<source>_rank` and `<source>_score`, null where it did not find the candidate. Each source
    looks on to rank `RANKED` for what others found: `<source>_deep_rank`, and `positive_<source>_rank` of the question's
    own target, null beyond.

    Args:
        queries: (pairs, d), vectors: (targets, d), both float32 with rows of length 1.
        searches: by source, what gives (scores, rows) for the pairs [start, end) and a depth; `dense` among them.
    """
    if not len(pairs):
        return
    never = Exclusions(pairs, targets)
    with bar("mine", "question", len(pairs)) as shown:
        for start in range(0, len(pairs), BLOCK):
            block = range(start, min(start + BLOCK, len(pairs)))
            yield mine_block(block, pairs, targets, queries, vectors, searches, top_k, never)
            shown.update(len(block))


def mine_block(
    block: range,
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    queries: np.ndarray,
    vectors: np.ndarray,
    searches: Mapping[str, Search],
    top_k: int,
    never: Exclusions,
) -> pa.Table:
    """`mine` for the pairs at `block`."""
    found, own = {}, {}
    for source, search in searches.items():
        scores, rows = search(block.start, block.stop, max(top_k + never.most, RANKED))
        good = never.allowed(block.start, rows)
        own[source] = never.rank_of_own(block.start, rows)
        ranks = np.where(good, np.cumsum(good, axis=1), 0)
        kept = np.nonzero(good)
        found[source] = (kept[0] * len(targets) + rows[kept], ranks[kept], scores[kept])
    keys = np.unique(np.concatenate([key[rank <= top_k] for key, rank, _ in found.values()]))
    question, target = keys // len(targets), keys % len(targets)
    fused = np.zeros(len(keys))
    columns: dict[str, pa.Array] = {}
    for source, (key, rank, score) in found.items():
        known = np.isin(key, keys)
        at, rank, score = np.searchsorted(keys, key[known]), rank[known], score[known]
        columns[f"{source}_deep_rank"] = _placed(at, rank, len(keys), np.int32)
        near = rank <= top_k
        fused[at[near]] += 1 / (FUSION + rank[near])
        columns[f"{source}_rank"] = _placed(at[near], rank[near], len(keys), np.int32)
        columns[f"{source}_score"] = _placed(at[near], score[near], len(keys), np.float32)
        columns[f"positive_{source}_rank"] = pa.array(own[source][question], mask=own[source][question] == 0)
    order = np.lexsort((target, -fused, question))
    question, target = question[order], target[order]
    firsts = np.searchsorted(question, question)
    table = {
        "pair_id": pa.array([pairs[block[i]].id for i in question], pa.string()),
        "candidate_id": pa.array([targets[i].id for i in target], pa.string()),
        "rank": pa.array(np.arange(len(order)) - firsts + 1, pa.int32()),
        "score": pa.array(cosines(queries, block.start + question, vectors, target)),
    }
    return pa.table(table | {name: column.take(pa.array(order)) for name, column in columns.items()})


def _placed(at: np.ndarray, values: np.ndarray, length: int, kind: Any) -> pa.Array:
    full: np.ndarray
    full, missing = np.zeros(length, kind), np.ones(length, bool)
    full[at], missing[at] = values, False
    return pa.array(full, mask=missing)
