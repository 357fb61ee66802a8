"""Questions over the share of those that name their passage's title, asked without it: what LLM and rules made of them stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from factory.config import Config
from factory.models import Encoder
from factory.question_repeats import repeated
from factory.question_rules import rule_broken
from factory.question_titles import without_name
from factory.questions import Question
from factory.records import Pair, Passage
from factory.retrieve import Target, rank_of_target
from factory.round_trip import not_found

FOUND_AMONG = 5  # a search must have the passage among its first so many, also without the name


def without_titles(
    pairs: Sequence[Pair],
    others: Sequence[Pair],
    passages: Mapping[str, Passage],
    tests: Sequence[Question],
    targets: Sequence[Target],
    vectors: np.ndarray,
    config: Config,
    encoder: Encoder,
) -> dict[str, Pair]:
    """By id those of the pairs that can be asked without the title and still keep the rules, find their passage, and repeat no other.

    Args:
        others: the questions that stay; tests: those of the test, which must not be trained on.
        passages: by id. targets: what is searched; vectors: theirs, (targets, dimensions).
    """
    bare = []
    for pair in pairs:
        passage = passages[pair.passage_id]
        if query := without_name(pair.query, passage.title):
            asked = pair.model_copy(update={"query": query})
            if not rule_broken(asked, passage, config.quality):
                bare.append(asked)
    if not bare:
        return {}
    queries = encoder.encode([p.query for p in bare], "query").dense
    ranks = rank_of_target(bare, targets, queries, vectors)
    rank_of = {p.id: rank for p, rank in zip(bare, ranks, strict=True)}
    far = not_found(bare, targets, rank_of, config, FOUND_AMONG)
    again = repeated([*others, *bare], [t.query for t in tests], config.quality)
    return {p.id: p.model_copy(update={"rank": rank_of[p.id]}) for p in bare if p.id not in far and p.id not in again}
