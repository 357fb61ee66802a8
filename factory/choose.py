"""Stage 7, choose: features → negatives. Each candidate ends with one decision and one reason.

`decision` is negative, promoted (it answers the question, by a judge's or a reviewer's word: a further positive),
rejected, or unused (allowed, but not drawn). The reason of a negative tells an easy fill from a drawn one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from factory.presets import Verdict, columns_of, judge_by
from factory.progress import bar
from factory.records import Pair
from factory.retrieve import Exclusions, Target
from factory.review import REVIEW
from factory.settings import ChooseConfig

DRAWN, DEEPER, RANDOM = "drawn", "fill-from-deeper-ranks", "random-fill"
COLUMNS = ("pair_id", "candidate_id", "decision", "reason", "rerank_score", "probability")


class Chooser:
    """Draws the negatives of a block of pairs. The same seed gives the same draw, whatever the blocks.

    Args:
        probability: for a block of scores the probability that each candidate answers the question, and whether the
            judge read it; None where nothing was learnt.
        answering: by pair id the candidates that a reviewer said to answer: positives, whatever else holds. The other
            negatives that the reviewer saw stay, and others take the place of these.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        targets: Sequence[Target],
        config: ChooseConfig,
        seed: int,
        probability: Any = None,
        answering: Mapping[str, Sequence[str]] | None = None,
    ):
        self._answering = answering or {}
        self.pairs, self.config, self.seed, self._probability = pairs, config, seed, probability
        self._targets, self._place = targets, {p.id: i for i, p in enumerate(pairs)}
        codes = {g: i for i, g in enumerate(dict.fromkeys(t.duplicate_group for t in targets))}
        self._ids = [t.id for t in targets]
        self._group_of = {t.id: codes[t.duplicate_group] for t in targets}
        self._group = [codes[t.duplicate_group] for t in targets]
        self._own = {p.id: codes[p.duplicate_group] for p in pairs if p.duplicate_group in codes}

    @cached_property
    def _never(self) -> Exclusions:
        return Exclusions(self.pairs, self._targets)

    def block(self, scores: pa.Table) -> pa.Table:
        """The decisions of every candidate in `scores`, which holds whole pairs."""
        if not len(scores):
            return _Rows().table()
        columns = columns_of(scores)
        if self._probability is not None:
            columns |= self._probability(scores, columns)
        verdict = judge_by(columns, self.config, scores)
        pair_ids, candidates = scores["pair_id"].to_pylist(), scores["candidate_id"].to_pylist()
        groups = np.array([self._group_of[c] for c in candidates], np.int64)
        begins = [i for i, p in enumerate(pair_ids) if i == 0 or p != pair_ids[i - 1]]
        rows = _Rows()
        for begin, end in zip(begins, [*begins[1:], len(pair_ids)], strict=True):
            self._one(pair_ids[begin], slice(begin, end), candidates, groups, columns, verdict, rows)
        return rows.table()

    def _one(
        self,
        pair: str,
        at: slice,
        candidates: list[str],
        groups: np.ndarray,
        columns: dict[str, np.ndarray],
        verdict: Verdict,
        rows: _Rows,
    ) -> None:
        c = self.config
        draw = random.Random(f"{self.seed}:{pair}")
        order = at.start + np.argsort(columns[verdict.order][at], kind="stable")
        answering = self._answers(pair)
        rerank, probability = columns["rerank_score"], columns.get("probability")
        decisions: dict[int, tuple[str, str]] = {}
        used, allowed = {self._own[pair]}, []
        for i in order:
            if verdict.promoted[i] and groups[i] not in used:
                decisions[i] = ("promoted", verdict.reasons[i])
                used.add(groups[i])
        for i in order:
            if i in decisions:
                continue
            if verdict.reasons[i]:
                decisions[i] = ("rejected", verdict.reasons[i])
            elif groups[i] in used:
                decisions[i] = ("rejected", "copy-of-another-candidate")
            else:
                used.add(groups[i])
                allowed.append(i)
        first = [i for i in allowed if not verdict.fallback[i]]
        most = {"depth": c.depth, "all": len(first), "first": c.negatives}[verdict.draw]
        pool = first[:most]
        drawn = dict.fromkeys(draw.sample(pool, min(c.negatives, len(pool))), DRAWN)
        if answering:
            allowed, first = ([i for i in some if groups[i] not in answering] for some in (allowed, first))
            pool = first[:most]
            drawn = {i: DRAWN for i in drawn if groups[i] not in answering}
            rest = [i for i in pool if i not in drawn]
            drawn |= dict.fromkeys(draw.sample(rest, min(c.negatives - len(drawn), len(rest))), DRAWN)
        if c.too_few == "fill":  # what lies deeper, then what the preset falls back to: easier, in the order of rank
            for i in [*first[len(pool) :], *(i for i in allowed if verdict.fallback[i])]:
                if len(drawn) >= c.negatives:
                    break
                drawn[i] = DEEPER
        for place, i in enumerate(allowed):
            if i in drawn:
                decisions[i] = ("negative", drawn[i])
            else:
                decisions[i] = ("unused", "not-drawn" if place < len(pool) else "deeper-than-drawn-from")
        for i in order:
            if candidates[i] in answering.values():
                decisions[i] = ("promoted", REVIEW)
            elif groups[i] in answering:
                decisions[i] = ("rejected", "copy-of-another-candidate")
        for i in range(at.start, at.stop):
            rows.add(pair, candidates[i], *decisions[i], rerank[i], probability[i] if probability is not None else None)
        self._add_answers(pair, answering, {candidates[i] for i in order}, used, rows)
        if len(drawn) < c.negatives and c.too_few == "fill" and np.isnan(rerank).all():
            self._fill(pair, c.negatives - len(drawn), {candidates[i] for i in order}, used, draw, rows)

    def _answers(self, pair: str) -> dict[int, str]:
        """What a reviewer said to answer, by group: of copies, and of the positive's, the first will do."""
        found: dict[int, str] = {}
        for candidate in self._answering.get(pair, ()):
            group = self._group_of.get(candidate, self._own[pair])
            if group != self._own[pair]:
                found.setdefault(group, candidate)
        return found

    def _add_answers(
        self, pair: str, answering: dict[int, str], candidates: set[str], used: set[int], rows: _Rows
    ) -> None:
        """Those among them that no search found, such as a random fill."""
        used.update(answering)
        for candidate in answering.values():
            if candidate not in candidates:
                rows.add(pair, candidate, "promoted", REVIEW, None, None)

    def _fill(
        self, pair: str, wanted: int, candidates: set[str], used: set[int], draw: random.Random, rows: _Rows
    ) -> None:
        """Unrelated targets, drawn at random, none that `Exclusions` forbids. With a reranker there are none: a row would
        have texts without scores."""
        for i in _at_random(draw, len(self._ids)):
            if not wanted:
                return
            if self._ids[i] in candidates or self._group[i] in used:
                continue
            if self._never.allowed(self._place[pair], np.array([[i]]))[0, 0]:
                used.add(self._group[i])
                rows.add(pair, self._ids[i], "negative", RANDOM, None, None)
                wanted -= 1

    def without_candidates(self, seen: set[str]) -> pa.Table:
        """Decisions for the pairs that have no candidate at all: nothing but random ones."""
        rows = _Rows()
        for pair in self.pairs:
            if pair.id in seen:
                continue
            used = {self._own[pair.id]}
            self._add_answers(pair.id, self._answers(pair.id), set(), used, rows)
            if self.config.too_few == "fill":
                draw = random.Random(f"{self.seed}:{pair.id}")
                self._fill(pair.id, self.config.negatives, set(), used, draw, rows)
        return rows.table()


def _at_random(draw: random.Random, n: int) -> Iterator[int]:
    """Numbers below n; soon the wanted ones are among them, and if not, every number comes in the end."""
    for _ in range(min(n, 100)):
        yield draw.randrange(n)
    yield from draw.sample(range(n), n)


class _Rows:
    """Decisions as they are made, column by column."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(self, *values: Any) -> None:
        for name, value in zip(COLUMNS, values, strict=True):
            missing = isinstance(value, float | np.floating) and np.isnan(value)
            self._columns[name].append(None if missing else value)

    def table(self) -> pa.Table:
        kinds = dict.fromkeys(COLUMNS[:4], pa.string()) | dict.fromkeys(COLUMNS[4:], pa.float32())
        return pa.table({name: pa.array(self._columns[name], kinds[name]) for name in COLUMNS})


def choose(blocks: Iterable[pa.Table], chooser: Chooser, total: int) -> Iterator[pa.Table]:
    """The decisions of each block, then those of the pairs that no block names."""
    seen: set[str] = set()
    with bar("choose", "candidate", total) as shown:
        for block in blocks:
            seen.update(block["pair_id"].to_pylist())
            yield chooser.block(block)
            shown.update(len(block))
    yield chooser.without_candidates(seen)
