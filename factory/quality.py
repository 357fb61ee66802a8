"""Stage 4, filter: pairs → kept, or dropped with a reason. Tests in order of cost: rules, repeats, round trip, judge, shares."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.config import Config
from factory.judge import LLMJudge
from factory.models import Encoder
from factory.question_judge import judge_questions, nearest_others
from factory.question_repeats import repeated
from factory.question_rewording import without_titles
from factory.question_rules import rule_broken
from factory.question_titles import over_share
from factory.question_types import difficulty
from factory.questions import Question
from factory.records import Dropped, Pair, Passage
from factory.retrieve import rank_of_target, targets_of
from factory.round_trip import not_found
from factory.settings_questions import Difficulty


def uses_judge(config: Config) -> bool:
    """Whether the LLM judges questions."""
    q = config.quality
    if config.input.kind == "pairs":
        return False
    return q.judge == "on" or (q.judge == "auto" and config.llm.serve in ("vllm", "endpoint"))


def needs_llm(config: Config) -> bool:
    return uses_judge(config) or (config.quality.unreachable == "judge" and config.input.kind != "pairs")


@dataclass
class Filtered:
    """`tests`: for each test how many questions it saw and what it dropped, in order; `judge`: its errors on controls."""

    kept: list[Pair] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    judge: dict[str, Any] = field(default_factory=dict)


def filter_pairs(
    pairs: Sequence[Pair],
    passages: Sequence[Passage],
    tests: Sequence[Question],
    config: Config,
    encoder: Encoder,
    judge: LLMJudge | None = None,
    say: Callable[[str], None] = print,
) -> Filtered:
    """Pairs that pass every test, and the others with reason and detail.

    Given pairs are tested for repeats alone, and drawn from to keep `given.share`: the user wrote them.

    Args:
        judge: needed where `needs_llm`.
    """
    q = config.quality
    result = Filtered()
    broken: dict[str, tuple[str, str]] = {}
    left = list(pairs)

    def test(name: str, found: dict[str, tuple[str, str]]) -> None:
        nonlocal left
        result.tests.append({"test": name, "asked": len(left), "dropped": dict(Counter(r for r, _ in found.values()))})
        broken.update(found)
        left = [p for p in left if p.id not in broken]

    by_id = {p.id: p for p in passages}
    ruled = {p.id: rule_broken(p, by_id[p.passage_id], q) for p in left if p.origin == "generated"}
    test("rules", {i: why for i, why in ruled.items() if why})
    test("repeats", repeated(left, [t.query for t in tests], q))

    generated = [p for p in left if p.origin == "generated"]
    if generated and (q.round_trip_k or judge or q.at_most or q.names_title < 1):
        targets = targets_of(list(passages), list(pairs))
        vectors = encoder.encode([t.text for t in targets], "passage").dense
        queries = encoder.encode([p.query for p in generated], "query").dense
        ranks = rank_of_target(generated, targets, queries, vectors)
        rank_of = {p.id: rank for p, rank in zip(generated, ranks, strict=True)}
        left = [p.model_copy(update={"rank": rank_of.get(p.id)}) for p in left]
        far = not_found(generated, targets, rank_of, config, q.round_trip_k)
        if q.unreachable == "drop" or not judge:
            test("round trip", far)
        if judge:
            nearest = nearest_others(targets, {p.id: v for p, v in zip(generated, queries, strict=True)}, vectors)
            known = [p for p in left if p.id in rank_of and p.id not in far]
            asked = [p for p in left if p.id in rank_of and (uses_judge(config) or p.id in far)]
            said = judge_questions(
                asked, known, targets, nearest, judge, q, config.seed, say, answered_only=not uses_judge(config)
            )
            if not said.controls["answerable"].usable:
                said.broken = far | said.broken
            test("judge", said.broken)
            left = [p.model_copy(update={"also": said.also.get(p.id, ())}) for p in left]
            result.judge = {task: error.model_dump() for task, error in said.controls.items()}
    if q.names_title < 1:
        over = over_share(left, passages, q.names_title, config.seed)
        named, others = [p for p in left if p.id in over], [p for p in left if p.id not in over]
        instead = without_titles(named, others, by_id, tests, targets, vectors, config, encoder) if named else {}
        test("titles", {i: why for i, why in over.items() if i not in instead})
        result.tests[-1] |= {"reworded": len(instead)}
        left = [instead.get(p.id, p) for p in left]
    if q.at_most:
        test("difficulty", too_many(left, q.at_most, config.seed))
    if config.given.path:
        test("share of given pairs", beyond_share(left, config.given.share, config.seed))
    kept = {p.id: p for p in left}
    result.kept = [kept[p.id] for p in pairs if p.id in kept]
    result.dropped = [
        Dropped(stage="filter", id=p.id, reason=broken[p.id][0], detail=broken[p.id][1], text=p.query)
        for p in pairs
        if p.id in broken
    ]
    return result


def too_many(pairs: Sequence[Pair], at_most: Mapping[Difficulty, float], seed: int) -> dict[str, tuple[str, str]]:
    """Training questions that go, drawn at random, so that no difficulty has more than its share of those that are left.

    A difficulty without a limit is never drawn from.
    """
    draw = random.Random(f"{seed}:difficulty")
    of: dict[Difficulty, list[Pair]] = {"easy": [], "medium": [], "hard": []}
    for pair in pairs:
        if pair.split == "train" and (level := difficulty(pair.rank)):
            of[level].append(pair)
    room = {level: float(len(group)) for level, group in of.items()}
    for _ in range(100):  # taking from one raises the others' shares: until nothing moves
        before = dict(room)
        for level, share in at_most.items():
            others = sum(n for other, n in room.items() if other != level)
            room[level] = min(room[level], others * share / (1 - share) if share < 1 else room[level])
        if room == before:
            break
    found = {}
    for level, group in of.items():
        for pair in draw.sample(group, len(group) - int(room[level])):
            found[pair.id] = (f"too-many-{level}", f"quality.at_most {level}: {at_most[level]}; rank {pair.rank}")
    return found


def beyond_share(pairs: Sequence[Pair], share: float, seed: int) -> dict[str, tuple[str, str]]:
    """Given training pairs that go, drawn at random, so that they make up at most `share` of the training questions."""
    given = [p for p in pairs if p.split == "train" and p.origin == "given"]
    others = sum(p.split == "train" and p.origin == "generated" for p in pairs)
    room = len(given) if share == 1 else int(others * share / (1 - share))
    over = random.Random(f"{seed}:given").sample(given, max(0, len(given) - room))
    return {p.id: ("over-given-share", f"given.share {share}") for p in over}
