"""Stage 3, generate: passages → pairs. The LLM is asked once for each passage, in the passage's language."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from factory.answers import Answer
from factory.config import Config
from factory.documents import read_table
from factory.duplicates import near_duplicate_groups
from factory.languages import language
from factory.llm import LLM, Request, Usage
from factory.models import model_fingerprint
from factory.parsing import parse_answer, readable
from factory.passages import trainable
from factory.prompting import requests_for, types_of
from factory.records import Dropped, InputError, Pair, Passage
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


def pairs_of(passage: Passage, number: int, answer: Answer, config: Config) -> tuple[list[Pair], list[Dropped]]:
    """The pairs in one answer, and what of it could not be used."""
    pairing, types = config.generate.pairing, types_of(number, config.generate)
    stage = "generate"
    if answer.failure:
        return [], [Dropped(stage=stage, id=passage.id, reason="no-answer", detail=answer.failure, text=passage.text)]
    try:
        items = parse_answer(answer.text)
    except ValueError as e:
        return [], [
            Dropped(
                stage=stage,
                id=passage.id,
                reason="unparsable",
                detail=f"{e}; finish: {answer.finish}",
                text=answer.text,
            )
        ]
    pairs, dropped = [], []
    for i, item in enumerate(items):
        identity = fingerprint([passage.id, i, item])[:16]
        needed = {"question-document": "question", "question-answer": "answer", "question-question": "rephrased"}[
            pairing
        ]
        query = item.get("rephrased", "") if pairing == "question-question" else item["question"]
        target = {
            "question-document": passage.text,
            "question-answer": item.get("answer", ""),
            "question-question": item["question"],
        }[pairing]
        if not item.get(needed) or not query or not target:
            dropped.append(
                Dropped(
                    stage=stage,
                    id=identity,
                    reason="incomplete",
                    detail=f"no {needed}",
                    text=json.dumps(item, ensure_ascii=False),
                )
            )
            continue
        pairs.append(
            Pair(
                id=identity,
                passage_id=passage.id,
                query=query,
                answer=item.get("answer", ""),
                type=types[i] if i < len(types) else "",
                language=language(query),
                target_id=passage.id if pairing == "question-document" else identity,
                target_text=target,
                duplicate_group=passage.duplicate_group if pairing == "question-document" else identity,
                split=passage.split,
            )
        )
    return pairs, dropped


def generate(
    passages: list[Passage], config: Config, cache: Path, log: Path, say: Callable[[str], None]
) -> tuple[list[Pair], list[Dropped], Usage]:
    """Pairs for the passages that `to_ask` chooses, from the LLM or, where finished before, from disk."""
    asked, dropped = to_ask(passages, config)
    if not asked:
        raise InputError(
            "no passage is left to ask about", fix="see dropped/generate.jsonl; loosen test.hold_out or split"
        )
    with LLM(config.llm, llm_identity(config), cache / "llm.sqlite", log, say) as llm:
        requests = requests_for(asked, config)
        answers, usage = llm.complete(requests)
        unreadable = [i for i, a in enumerate(answers) if not a.failure and not readable(a.text)]
        if unreadable:
            second, more = llm.complete([once_more(requests[i], answers[i]) for i in unreadable], "ask again")
            usage += more
            for i, answer in zip(unreadable, second, strict=True):
                answers[i] = answer if readable(answer.text) else both(answers[i], answer)
    pairs: list[Pair] = []
    for number, (passage, answer) in enumerate(zip(asked, answers, strict=True)):
        good, bad = pairs_of(passage, number, answer, config)
        pairs += good
        dropped += bad
    return regroup(pairs, config), dropped, usage


def once_more(request: Request, answer: Answer) -> Request:
    """The request with another seed, and half as much room again if the answer was cut off."""
    room = request.max_tokens * 3 // 2 if answer.finish == "length" else request.max_tokens
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


def regroup(pairs: list[Pair], config: Config) -> list[Pair]:
    """Under pairings whose target is not the passage: put like targets into one duplicate group."""
    if config.generate.pairing == "question-document" or not pairs:
        return pairs
    groups = near_duplicate_groups([p.target_text for p in pairs], config.passages.near_duplicate)
    return [p.model_copy(update={"duplicate_group": pairs[g].id}) for p, g in zip(pairs, groups, strict=True)]


def given_pairs(passages: list[Passage], config: Config) -> tuple[list[Pair], list[Dropped]]:
    """`input.kind: pairs`: the user's own query/text rows, each joined to the passage that its text became.

    Raises:
        InputError: a row without `query` or `text`; names file:line.
    """
    from factory.documents import find_files

    by_text: dict[str, Passage] = {}
    for passage in passages:
        by_text.setdefault(passage.text, passage)
    leaking = {p.id for p in trainable(passages)[1]}
    pairs, dropped = [], []
    for path, name in find_files(config.input):
        for number, row in read_table(path):
            query, text = str(row.get("query") or "").strip(), str(row.get("text") or "")
            identity = fingerprint([name, number, query, text])[:16]
            owner = by_text.get(text)
            if not query or owner is None:
                reason = "no-query" if not query else "no-passage"
                dropped.append(Dropped(stage="generate", id=f"{name}#{number}", reason=reason, text=query or text))
            elif owner.id in leaking:
                dropped.append(
                    Dropped(stage="generate", id=f"{name}#{number}", reason="copies-a-held-out-passage", text=query)
                )
            else:
                pairs.append(
                    Pair(
                        id=identity,
                        passage_id=owner.id,
                        query=query,
                        answer=str(row.get("answer") or ""),
                        language=language(query),
                        target_id=owner.id,
                        target_text=owner.text,
                        duplicate_group=owner.duplicate_group,
                        split=owner.split,
                        origin="given",
                    )
                )
    return pairs, dropped
