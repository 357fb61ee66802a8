"""Stage 3, generate: passages → pairs. The LLM is asked once for each passage, in the passage's language."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from factory.answers import Answer
from factory.askers import propose
from factory.config import Config
from factory.duplicates import near_duplicate_groups
from factory.given import GIVEN, given_pairs
from factory.languages import language, squeeze
from factory.llm import LLM, Request, Usage
from factory.models import model_fingerprint
from factory.parsing import parse_answer, readable
from factory.passages import trainable
from factory.prompting import asker_of, requests_for, size
from factory.question_rules import rule_broken
from factory.question_types import schedule
from factory.questions import Question
from factory.records import Dropped, InputError, Pair, Passage
from factory.settings_questions import QualityConfig
from factory.workspace import fingerprint


def to_ask(passages: list[Passage], config: Config) -> tuple[list[Passage], list[Dropped]]:
    """The passages that get questions: no copies, none that copies a held-out one, none of a given test's documents.

    `max_passages` are drawn round the documents in turn, so that each document is asked about.
    """
    dropped, chosen, seen = [], [], set()
    leaking = {p.id for p in trainable(passages)[1]}
    for passage in passages:
        if config.test.questions and passage.split == "eval":
            dropped.append(Dropped(stage="generate", id=passage.id, reason="held-out-for-test"))
        elif passage.source.startswith(GIVEN):
            dropped.append(Dropped(stage="generate", id=passage.id, reason="given-with-its-question"))
        elif passage.id in leaking:
            dropped.append(
                Dropped(stage="generate", id=passage.id, reason="copies-a-held-out-passage", text=passage.text)
            )
        elif passage.duplicate_group in seen:
            dropped.append(
                Dropped(stage="generate", id=passage.id, reason="copy-of-another-passage", text=passage.text)
            )
        else:
            seen.add(passage.duplicate_group)
            chosen.append(passage)
    limit = config.generate.max_passages
    if limit and len(chosen) > limit:
        chosen, left = draw_evenly(chosen, limit, config.seed)
        dropped += [Dropped(stage="generate", id=p.id, reason="over-max_passages") for p in left]
    return chosen, dropped


def draw_evenly(passages: list[Passage], limit: int, seed: int) -> tuple[list[Passage], list[Passage]]:
    """`limit` passages drawn at random, one of each document in turn; and the others. Both in their old order."""
    shuffled = passages[:]
    random.Random(seed).shuffle(shuffled)
    turn: dict[str, int] = {}
    ranked = []
    for p in shuffled:
        turn[p.document_id] = turn.get(p.document_id, -1) + 1
        ranked.append((turn[p.document_id], p.id))
    taken = {identity for _, identity in sorted(ranked, key=lambda r: r[0])[:limit]}
    return [p for p in passages if p.id in taken], [p for p in passages if p.id not in taken]


def pairs_of(
    passage: Passage, types: Sequence[str], answer: Answer, config: Config, asker: str = ""
) -> tuple[list[Pair], list[Dropped]]:
    """The pairs in one answer, and what of it could not be used.

    Args:
        types: the kinds of question that it was asked for, in order.
    """

    def lost(identity: str, reason: str, detail: str, text: str) -> Dropped:
        return Dropped(stage="generate", id=identity, reason=reason, detail=detail, text=text)

    if answer.failure:
        return [], [lost(passage.id, "no-answer", answer.failure, passage.text)]
    try:
        items = parse_answer(answer.text)
    except ValueError as e:
        return [], [lost(passage.id, "unparsable", f"{e}; finish: {answer.finish}", answer.text)]
    pairing = config.generate.pairing
    needed = {"question-document": "question", "question-answer": "answer", "question-question": "rephrased"}[pairing]
    in_place = len(items) >= len(types) or answer.finish == "length"  # else one was left out, and nobody knows which
    pairs, dropped = [], []
    for i, item in enumerate(items):
        identity = fingerprint([passage.id, i, item])[:16]
        query = item.get("rephrased", "") if pairing == "question-question" else item["question"]
        target = {
            "question-document": passage.text,
            "question-answer": item.get("answer", ""),
            "question-question": item["question"],
        }[pairing]
        if not item.get(needed) or not query or not target:
            dropped.append(lost(identity, "incomplete", f"no {needed}", json.dumps(item, ensure_ascii=False)))
            continue
        if squeeze(query) == squeeze(target):
            dropped.append(lost(identity, "incomplete", f"{needed} is the query", json.dumps(item, ensure_ascii=False)))
            continue
        pairs.append(
            Pair(
                id=identity,
                passage_id=passage.id,
                query=query,
                answer=item.get("answer", ""),
                type=types[i] if in_place and i < len(types) else "",
                asker=asker,
                language=language(query),
                target_id=passage.id if pairing == "question-document" else identity,
                target_text=target,
                duplicate_group=passage.duplicate_group if pairing == "question-document" else identity,
                split=passage.split,
            )
        )
    return pairs, dropped


@dataclass(frozen=True)
class Made:
    """What `generate` made. `askers`: by language, those that the LLM proposed."""

    pairs: list[Pair]
    dropped: list[Dropped]
    usage: Usage
    askers: dict[str, list[str]]


def generate(
    passages: list[Passage],
    config: Config,
    llm: LLM,
    say: Callable[[str], None],
    tests: Sequence[Question] = (),
    examples: Sequence[str] = (),
) -> Made:
    """Pairs for the passages that `to_ask` chooses, from the LLM or, where finished before, from disk; and given ones.

    Args:
        examples: questions that users asked, none of them a test question.
    """
    given, not_given = given_pairs(passages, config.given.path) if config.given.path else ([], [])
    asked, dropped = to_ask(passages, config)
    if not asked:
        raise InputError(
            "no passage is left to ask about", fix="see dropped/generate.jsonl; loosen test.hold_out or split"
        )
    askers = propose(asked, config, llm) if config.generate.propose_askers else {}
    for lang, names in askers.items():
        say(f"askers that the LLM proposes ({lang}): {'; '.join(names) or 'none that could be read'}")
    requests = requests_for(asked, config, corpus=passages, askers=askers, examples=examples)
    turns = schedule(config.generate, len(asked))
    who = [asker_of(i, language(p.text), config, askers) for i, p in enumerate(asked)]
    if len(set(who)) == 1:
        who = [""] * len(asked)

    def made_of(i: int, answer: Answer) -> tuple[list[Pair], list[Dropped]]:
        return pairs_of(asked[i], turns[i], answer, config, who[i])

    answers, usage = ask(llm, requests, Tally(asked, made_of, config.quality))
    pairs: list[Pair] = []
    for i, answer in enumerate(answers):
        good, bad = made_of(i, answer)
        pairs += good
        dropped += bad
    return Made([*regroup(pairs, config, given), *given], [*dropped, *not_given], usage, askers)


def ask(llm: LLM, requests: Sequence[Request], watch: Callable[[int, Answer], str]) -> tuple[list[Answer], Usage]:
    """The answers in the order of the requests; what cannot be read is asked for once more.

    Requests that differ in their last part alone follow one another: a server reuses a prefix that it has just seen.
    """
    order = sorted(range(len(requests)), key=lambda i: requests[i].messages[:-1])
    ordered, usage = llm.complete([requests[i] for i in order], "ask the LLM", lambda n, a: watch(order[n], a))
    answers = [a for _, a in sorted(zip(order, ordered, strict=True), key=lambda both: both[0])]
    unreadable = [i for i, a in enumerate(answers) if not a.failure and not readable(a.text)]
    if unreadable:
        again = [once_more(requests[i], answers[i], llm.config.context) for i in unreadable]
        second, more = llm.complete(again, "ask again", fresh=False)
        usage += more
        for i, answer in zip(unreadable, second, strict=True):
            answers[i] = answer if readable(answer.text) else both(answers[i], answer)
    return answers, usage


class Tally:
    """While answers come: questions a second, and the share of them that keeps the rules."""

    def __init__(
        self,
        asked: Sequence[Passage],
        made_of: Callable[[int, Answer], tuple[list[Pair], list[Dropped]]],
        quality: QualityConfig,
    ):
        self._asked, self._made_of, self._quality = asked, made_of, quality
        self._started, self.questions, self.good = time.monotonic(), 0, 0

    def __call__(self, number: int, answer: Answer) -> str:
        pairs, _ = self._made_of(number, answer)
        self.questions += len(pairs)
        self.good += sum(rule_broken(p, self._asked[number], self._quality) is None for p in pairs)
        rate = self.questions / max(time.monotonic() - self._started, 1e-6)
        share = 100 * self.good / max(self.questions, 1)
        return f"{rate:.1f} questions/s, {share:.0f} % keep the rules"


def once_more(request: Request, answer: Answer, context: int) -> Request:
    """The request with another seed, and if the answer was cut off half as much room again, as far as `context` has it."""
    room = request.max_tokens
    if answer.finish == "length":
        left = context - (answer.prompt_tokens or size(request.messages))
        room = max(room, min(room * 3 // 2, left))
    return replace(request, seed=request.seed + 1, max_tokens=room)


def both(first: Answer, second: Answer) -> Answer:
    """Two answers that cannot be read, for the person who looks why."""
    return replace(second, text=f"{first.text}\n\n--- asked again ---\n{second.text}{second.failure}", failure="")


def llm_identity(config: Config) -> str:
    """What an answer depends on beside its request: the model's bytes, or its name at the (first) endpoint."""
    if config.llm.serve == "batch":
        return f"batch {config.llm.model}"
    if config.llm.serve == "endpoint":
        url = config.llm.url if isinstance(config.llm.url, str) else config.llm.url[0]
        return f"{url} {config.llm.model}"
    return model_fingerprint(Path(config.llm.model))


def regroup(pairs: list[Pair], config: Config, given: Sequence[Pair] = ()) -> list[Pair]:
    """Under pairings whose target is not the passage: put like targets into one duplicate group.

    Given pairs keep theirs, which is their passage's, and what is like one of them gets it.
    """
    if config.generate.pairing == "question-document" or not pairs:
        return pairs
    everything = [*given, *pairs]
    groups = near_duplicate_groups([p.target_text for p in everything], config.passages.near_duplicate)
    names = [everything[g].duplicate_group for g in groups[len(given) :]]
    same = {p.target_text: p.duplicate_group for p in given}
    return [
        p.model_copy(update={"duplicate_group": same.get(p.target_text, name)})
        for p, name in zip(pairs, names, strict=True)
    ]
