"""Stage 4, filter: pairs → kept, or dropped with a reason. Cheap rules first, the round trip last."""

from __future__ import annotations

import re
from collections import defaultdict
from difflib import SequenceMatcher

from factory.languages import language, squeeze
from factory.models import Encoder
from factory.questions import Question
from factory.records import Dropped, Pair, Passage
from factory.retrieve import rank_of_target, targets_of
from factory.settings import QualityConfig

# Words that point at a text which the asker of a real search has never seen.
DANGLING = {
    "zh": re.compile(
        r"本文|本研究|本章|本节|本段|本手册|本规程|本案例|上文|上述|前述|下文|下述|该文|文中|文章|这段|此段|这篇|此文|"
        r"资料中|材料中|资料里|资料提|段落|(根据|依据|按照)(资料|材料|文本|原文|描述|以上|所给)|提到的|所述|(手册|规程|指南|指导书|报告|书)(中|里|上)?(指出|提到|说|写|规定|给出)|该(方法|研究|案例|章节|部分|表格)|下表|上表|如图"
    ),
    "en": re.compile(
        r"\b(this|that|above|following|given|provided) (paper|study|section|report|material|chapter|table|figure)s?\b"
        r"|\b(this|the|that|above|following|given|provided) (article|passage|text|document|paragraph|excerpt|author)s?\b"
        r"|\b(mentioned|described|stated|discussed|listed|outlined|given) (above|below|here|in the)\b|\baccording to (it|this|the above)\b",
        re.I,
    ),
}
# Characters, without spaces, from which a piece in common is a clause and no longer a term.
LONG_RUN = {"zh": 10, "en": 30}


def rule_broken(pair: Pair, passage: Passage, config: QualityConfig) -> tuple[str, str] | None:
    """(reason, detail) of the first rule that the question breaks; None if it keeps them all."""
    from rapidfuzz import fuzz

    query = pair.query
    lang = language(passage.text)
    if not config.min_characters <= len(query) <= config.max_characters:
        return "length", f"{len(query)} characters, expected {config.min_characters} to {config.max_characters}"
    if language(query) != lang:
        return "wrong-language", f"{language(query)}, expected {lang}"
    if found := DANGLING[lang].search(query):
        return "dangling-reference", found.group(0)
    # Longest aligned window of the passage, character by character: 100 means the question stands in it word for word.
    copied = fuzz.partial_ratio(squeeze(query).rstrip("?？"), squeeze(passage.text)) / 100
    if len(squeeze(query)) <= len(squeeze(passage.text)) and copied > config.max_copy:
        return "copied", f"partial_ratio {copied:.2f}, at most {config.max_copy}"
    run = longest_run(squeeze(query), squeeze(passage.text))
    if len(run) >= LONG_RUN[lang] and len(run) > config.max_run * len(squeeze(query)):
        return "copied", f"{len(run)} of {len(squeeze(query))} characters in one piece: {run[:60]}"
    return None


def longest_run(query: str, passage: str) -> str:
    """The longest piece of the query that stands in the passage as it is."""
    match = SequenceMatcher(None, query, passage, autojunk=False).find_longest_match()
    return query[match.a : match.a + match.size]


def filter_pairs(
    pairs: list[Pair], passages: list[Passage], tests: list[Question], config: QualityConfig, encoder: Encoder
) -> tuple[list[Pair], list[Dropped]]:
    """Pairs that keep every rule, and the others with reason and detail.

    Given pairs are judged by language-neutral rules alone (duplicates): the user wrote them.
    Held-out questions are looked at first, so that a training question equal to one of them is the one that goes.
    """
    by_id = {p.id: p for p in passages}
    dropped: dict[str, Dropped] = {}
    test_queries = {squeeze(q.query) for q in tests}
    seen: dict[str, str] = {}
    on_passage: dict[str, list[str]] = defaultdict(list)
    survivors: list[Pair] = []
    for pair in sorted(pairs, key=lambda p: p.split == "train"):
        broken = rule_broken(pair, by_id[pair.passage_id], config) if pair.origin == "generated" else None
        broken = broken or _repeats(pair, test_queries, seen, on_passage, config)
        if broken:
            dropped[pair.id] = Dropped(stage="filter", id=pair.id, reason=broken[0], detail=broken[1], text=pair.query)
        else:
            seen[squeeze(pair.query)] = pair.id
            on_passage[pair.passage_id].append(squeeze(pair.query))
            survivors.append(pair)
    generated = [p for p in survivors if p.origin == "generated"]
    if config.round_trip_k and generated:
        targets = targets_of(passages, pairs)
        queries = encoder.encode([p.query for p in generated], "query").dense
        vectors = encoder.encode([t.text for t in targets], "passage").dense
        ranks = rank_of_target(generated, targets, queries, vectors)
        for pair, rank in zip(generated, ranks, strict=True):
            if rank > config.round_trip_k:
                detail = f"its own passage ranks {rank}, expected at most {config.round_trip_k}"
                dropped[pair.id] = Dropped(
                    stage="filter", id=pair.id, reason="round-trip", detail=detail, text=pair.query
                )
    return [p for p in pairs if p.id not in dropped], [dropped[p.id] for p in pairs if p.id in dropped]


def _repeats(
    pair: Pair, tests: set[str], seen: dict[str, str], on_passage: dict[str, list[str]], config: QualityConfig
) -> tuple[str, str] | None:
    from rapidfuzz import fuzz

    query = squeeze(pair.query)
    if query in tests:
        return "equals-a-test-question", ""
    if query in seen:
        return "duplicate-question", f"the same as {seen[query]}"
    close = [other for other in on_passage[pair.passage_id] if fuzz.ratio(query, other) / 100 >= config.duplicate]
    return ("duplicate-question", f"nearly {close[0][:60]!r}") if close else None
