"""Stage 8, export: train.jsonl for FlagEmbedding, eval/ and dev/ in BEIR layout."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from factory.config import Config
from factory.evalset import SET_FILES
from factory.languages import question_key
from factory.negatives import DECISIONS, SCORES, Negatives
from factory.questions import Question, passages_of
from factory.records import Dropped, Example, InputError, Pair, Passage, Split
from factory.retrieve import Target
from factory.review import GONE, Decision, Review
from factory.tables import row_groups
from factory.workspace import Outcome, Workspace, atomic_text, write_jsonl

TRAIN = "train.jsonl"
SETS: tuple[Literal["eval", "dev"], ...] = ("eval", "dev")
Scored = tuple[str, float | None]  # a text and its reranker logit
Logits = Callable[[Sequence[tuple[str, str]]], np.ndarray]


def by_review(pairs: Sequence[Pair], decisions: Mapping[str, Decision]) -> tuple[list[Pair], list[Dropped]]:
    """The pairs less those that a reviewer took out."""
    kept, dropped = [], []
    for pair in pairs:
        decision = decisions.get(pair.id)
        if decision and decision.decision in GONE:
            detail = f"{decision.reviewer or 'somebody'}, {decision.time}"
            reason = GONE[decision.decision]
            dropped.append(Dropped(stage="export", id=pair.id, reason=reason, detail=detail, text=pair.query))
        else:
            kept.append(pair)
    return kept, dropped


def training_rows(
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    decisions: Iterable[Mapping[str, Any]],
    positive_scores: Mapping[str, float],
    fewest: int = 1,
    rerank: Logits | None = None,
) -> tuple[list[Example], list[Dropped]]:
    """One example for each training pair with at least `fewest` negatives; further passages that answer it follow its
    positive: those of `Pair.also`, and promoted candidates.

    Args:
        rerank: raw logits of (question, text) pairs, (n,). With it every row has scores, since the trainer takes them only
            where all have; it is asked for those that are not in `decisions` and `positive_scores`. Without it no row has.
    """
    text = {t.id: t.text for t in targets}
    chosen: dict[str, dict[str, list[Scored]]] = defaultdict(lambda: defaultdict(list))
    for row in decisions:
        if row["decision"] in ("negative", "promoted"):
            chosen[row["pair_id"]][row["decision"]].append((text[row["candidate_id"]], row["rerank_score"]))
    rows: list[tuple[Pair, list[Scored], list[Scored]]] = []
    dropped = []
    for pair in pairs:
        negatives, promoted = chosen[pair.id]["negative"], chosen[pair.id]["promoted"]
        if len(negatives) < fewest:
            reason = "too-few-negatives" if negatives else "no-negative"
            detail = f"{len(negatives)} candidates were allowed, {fewest} are needed"
            dropped.append(Dropped(stage="export", id=pair.id, reason=reason, detail=detail, text=pair.query))
            continue
        others = dict.fromkeys(text[i] for i in pair.also if i in text)
        also: list[Scored] = [(t, None) for t in others if t != pair.target_text]
        rows.append((pair, [(pair.target_text, positive_scores.get(pair.id)), *also, *promoted], negatives))
    missing = [(p.query, t) for p, pos, neg in rows for t, score in (*pos, *neg) if score is None] if rerank else []
    known = dict(zip(missing, rerank(missing).tolist(), strict=True)) if rerank and missing else {}

    def scores(query: str, texts: Sequence[Scored]) -> list[float] | None:
        return [float(known[query, t] if score is None else score) for t, score in texts] if rerank else None

    examples = [
        Example(
            query=pair.query,
            pos=[t for t, _ in positives],
            neg=[t for t, _ in negatives],
            pos_scores=scores(pair.query, positives),
            neg_scores=scores(pair.query, negatives),
            id=pair.id,
        )
        for pair, positives, negatives in rows
    ]
    return examples, dropped


def write_eval_set(
    folder: Path, targets: Sequence[Target], queries: Sequence[dict[str, Any]], relevant: Mapping[str, Sequence[str]]
) -> None:
    """corpus.jsonl (`_id`, `title`, `text`, `document`), queries.jsonl (`_id`, `text`, …) and qrels.tsv (query-id,
    corpus-id, score)."""
    rows = ({"_id": t.id, "title": "", "text": t.text, "document": t.document_id} for t in targets)
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "queries.jsonl", queries)
    with atomic_text(folder / "qrels.tsv") as f:
        f.write("query-id\tcorpus-id\tscore\n")
        for query in queries:
            for target in relevant[query["_id"]]:
                f.write(f"{query['_id']}\t{target}\t1\n")


def _why_none(decisions: Path) -> str:
    """What to change where every candidate was refused."""
    reasons = Counter(
        row["reason"]
        for block in row_groups(decisions, ["decision", "reason"])
        for row in block.to_pylist()
        if row["decision"] == "rejected"
    )
    said = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common(3))
    return f"candidates were refused as: {said}; loosen that under choose:" if said else "add documents"


def forget_eval_set(folder: Path) -> None:
    """Take away what an earlier build held out: this one may train on it."""
    for name in SET_FILES:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def held_out(
    pairs: Sequence[Pair], targets: Sequence[Target], split: Split, reviewed: Collection[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Queries and relevant target ids of a held-out split; copies of the target, and what `Pair.also` names, count too.

    A question that several pairs ask, as in a FAQ with several answers, is one query; all their targets are relevant to it.

    Args:
        reviewed: ids of pairs; where there are some, each query says whether it is one of them.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    group = {t.id: t.duplicate_group for t in targets}
    for target in targets:
        groups[target.duplicate_group].append(target.id)
    answering: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        answering[question_key(pair.query)] += [pair.duplicate_group, *(group[i] for i in pair.also if i in group)]
    chosen: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.split == split:
            chosen[question_key(pair.query)].append(pair)
    queries: list[dict[str, Any]] = []
    relevant = {}
    for text, alike in chosen.items():
        first = alike[0]
        queries.append({"_id": first.id, "text": first.query, "type": first.type, "origin": first.origin})
        if reviewed:
            queries[-1]["reviewed"] = any(p.id in reviewed for p in alike)
        relevant[first.id] = [t for g in dict.fromkeys(answering[text]) for t in groups[g]]
    return queries, relevant


def test_questions(
    questions: Sequence[Question], passages: Sequence[Passage]
) -> tuple[list[dict[str, Any]], dict[str, list[str]], list[Dropped]]:
    """The user's own questions as queries, their passages as relevant, and those whose passage was dropped."""
    group = {p.id: p.duplicate_group for p in passages}
    copies: dict[str, list[str]] = defaultdict(list)
    for p in passages:
        copies[p.duplicate_group].append(p.id)
    queries, relevant, dropped = [], {}, []
    for question in questions:
        found = passages_of(question, list(passages))
        if not found:
            detail = "the passages that hold its quotes were dropped when splitting"
            dropped.append(
                Dropped(stage="export", id=question.id, reason="no-passage", detail=detail, text=question.query)
            )
            continue
        queries.append({"_id": question.id, "text": question.query, "type": "", "origin": "test"})
        relevant[question.id] = list(dict.fromkeys(c for i in found for c in copies[group[i]]))
    return queries, relevant, dropped


def assert_no_leak(examples: Sequence[Example], targets: Sequence[Target]) -> None:
    """No text of a held-out target, to the letter, is in the training rows. A failure is our own error."""
    held = {t.text for t in targets if t.split != "train"} - {t.text for t in targets if t.split == "train"}
    for example in examples:
        leaked = held.intersection(example.pos, example.neg)
        assert not leaked, f"held-out text in training row {example.id}: {sorted(leaked)[0][:80]!r}"


def held_out_sets(kept: Sequence[Pair], tests: Sequence[Question]) -> list[Literal["eval", "dev"]]:
    """`eval` and `dev`, as far as there are questions for them."""
    splits = {p.split for p in kept} | ({"eval"} if tests else set())
    return [name for name in SETS if name in splits]


def export_stage(
    config: Config,
    ws: Workspace,
    negatives: Negatives,
    passages: Sequence[Passage],
    kept: Sequence[Pair],
    tests: Sequence[Question],
    review: Review,
    sets: Sequence[Literal["eval", "dev"]],
) -> Outcome:
    """train.jsonl and the held-out `sets` from the decisions, less what a reviewer took out.

    Raises:
        InputError: no question has a negative.
    """
    positive: dict[str, float] = {}
    for block in row_groups(ws.path(SCORES), ["pair_id", "positive_rerank_score"]):
        both = zip(block["pair_id"].to_pylist(), block["positive_rerank_score"].to_pylist(), strict=True)
        positive |= {pair: score for pair, score in both if score is not None}
    decisions = (row for block in row_groups(ws.path(DECISIONS)) for row in block.to_pylist())
    everything = negatives.everything
    reviewed = review.holding(kept, {t.id: t.text for t in everything})
    left, gone = by_review(kept, reviewed)
    ids = {p.id for p in left}

    def rerank(texts: Sequence[tuple[str, str]]) -> np.ndarray:
        with negatives.reranker() as reranker:
            assert reranker is not None
            return reranker.score(texts)

    examples, dropped = training_rows(
        [p for p in negatives.pairs if p.id in ids],
        negatives.targets,
        decisions,
        positive,
        config.choose.negatives if config.choose.too_few == "drop" else 1,
        rerank if config.score.reranker else None,
    )
    if not examples:
        raise InputError("no training row has a negative", where=ws.path(DECISIONS), fix=_why_none(ws.path(DECISIONS)))
    dropped += gone
    if not tests or config.test.hold_out:
        assert_no_leak(examples, everything)
    write_jsonl(ws.path(TRAIN), (e.to_json() for e in examples))
    counts = {"examples": len(examples), "negatives": sum(len(e.neg) for e in examples)}
    if promoted := sum(len(e.pos) - 1 for e in examples):
        counts["promoted positives"] = promoted
    for name in (n for n in SETS if n not in sets):
        forget_eval_set(ws.path(name))
    for name in sets:
        if name == "eval" and tests:
            queries, relevant, lost = test_questions(tests, passages)
            dropped += lost
        else:
            queries, relevant = held_out(left, everything, name, reviewed)
        write_eval_set(ws.path(name), everything, queries, relevant)
        counts[f"{name} questions"] = len(queries)
    if review:
        counts["reviewed"] = len(reviewed)
        if stale := len(review) - len(reviewed):
            counts["reviews of what is no longer here"] = stale
    return Outcome(len(examples) + len(dropped), len(examples), dropped, counts)
