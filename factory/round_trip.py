"""Does a search find a question's own passage? By the base model's search or by BM25, whose faults are not the same.

What neither finds fits many texts or none (原告和被告签订了什么合同？). What BM25 alone finds is about its passage, and is just what
the base model has to learn: leaving it out costs more than it saves (benchmarks/README.md, Questions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from factory.config import Config
from factory.indexes import BM25Index
from factory.records import Pair
from factory.retrieve import BLOCK, Target


def not_found(
    pairs: Sequence[Pair], targets: Sequence[Target], ranks: Mapping[str, int], config: Config, k: int
) -> dict[str, tuple[str, str]]:
    """By pair id (reason, detail) of the questions whose passage no search has among its first k; none with k 0.

    Args:
        targets: what is searched. ranks: by pair id the rank, from 1, that the base model's search gives the own passage.
    """
    searches = config.quality.round_trip_by
    far = [p for p in pairs if "dense" not in searches or ranks[p.id] > k] if k else []
    found = _found_by_bm25(far, targets, k, config.mine.segmenter) if "bm25" in searches and far else set()
    detail = f"not among the first {k} of {', '.join(searches)}; by the base model its own passage is number"
    return {p.id: ("round-trip", f"{detail} {ranks[p.id]}") for p in far if p.id not in found}


def _found_by_bm25(pairs: Sequence[Pair], targets: Sequence[Target], k: int, segmenter: str) -> set[str]:
    """The ids of the pairs whose passage, or a copy of it, is among BM25's first k."""
    index = BM25Index([t.text for t in targets], segmenter)
    groups = [t.duplicate_group for t in targets]
    found = set()
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        _, rows = index.search([p.query for p in block], k)
        found |= {
            p.id
            for p, row in zip(block, rows.tolist(), strict=True)
            if any(i >= 0 and groups[i] == p.duplicate_group for i in row)
        }
    return found
