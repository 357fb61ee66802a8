"""Stage 8, export: train.jsonl for FlagEmbedding, eval/ and dev/ in BEIR layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.questions import Question, passages_of
from factory.records import Dropped, Example, Pair, Passage, Split
from factory.retrieve import Target
from factory.workspace import atomic_text, write_jsonl


def training_rows(
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    decisions: Iterable[Mapping[str, Any]],
    positive_scores: Mapping[str, float],
    fewest: int = 1,
) -> tuple[list[Example], list[Dropped]]:
    """One example for each training pair with at least `fewest` negatives; further passages that answer it follow its
    positive: those of `Pair.also`, and promoted candidates.

    Reranker logits stand beside the texts where every text of the row has one.
    """
    text = {t.id: t.text for t in targets}
    chosen: dict[str, dict[str, list[tuple[str, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for row in decisions:
        if row["decision"] in ("negative", "promoted"):
            chosen[row["pair_id"]][row["decision"]].append((text[row["candidate_id"]], row["rerank_score"]))
    examples, dropped = [], []
    for pair in pairs:
        negatives, promoted = chosen[pair.id]["negative"], chosen[pair.id]["promoted"]
        if len(negatives) < fewest:
            reason = "too-few-negatives" if negatives else "no-negative"
            detail = f"{len(negatives)} candidates were allowed, {fewest} are needed"
            dropped.append(Dropped(stage="export", id=pair.id, reason=reason, detail=detail, text=pair.query))
            continue
        also = [(text[i], None) for i in pair.also if i in text and text[i] != pair.target_text]
        positives = [(pair.target_text, positive_scores.get(pair.id)), *also, *promoted]
        scored = all(score is not None for _, score in [*positives, *negatives])
        examples.append(
            Example(
                query=pair.query,
                pos=[positive for positive, _ in positives],
                neg=[negative for negative, _ in negatives],
                pos_scores=[float(s) for _, s in positives if s is not None] if scored else None,
                neg_scores=[float(s) for _, s in negatives if s is not None] if scored else None,
                id=pair.id,
            )
        )
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


def held_out(
    pairs: Sequence[Pair], targets: Sequence[Target], split: Split
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Queries and relevant target ids of a held-out split; copies of the target, and what `Pair.also` names, count too."""
    groups: dict[str, list[str]] = defaultdict(list)
    group = {t.id: t.duplicate_group for t in targets}
    for target in targets:
        groups[target.duplicate_group].append(target.id)
    chosen = [p for p in pairs if p.split == split]
    queries = [{"_id": p.id, "text": p.query, "type": p.type, "origin": p.origin} for p in chosen]
    answering = {p.id: [p.duplicate_group, *(group[i] for i in p.also if i in group)] for p in chosen}
    return queries, {pair: [t for g in dict.fromkeys(found) for t in groups[g]] for pair, found in answering.items()}


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
