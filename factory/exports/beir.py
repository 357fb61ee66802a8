"""BEIR's layout: one corpus, all questions, and the judgements of each split in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.exports.notes import write_note
from factory.exports.run import Part, Run
from factory.workspace import atomic_text, write_jsonl


def write(run: Run, folder: Path) -> dict[str, int]:
    """corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv as far as the run has them; rows of each."""
    counts = {"corpus.jsonl": write_corpus(run, folder), "queries.jsonl": 0}
    questions = ({"_id": q.id, "text": q.text} for part in run.parts for q in run.questions(part))
    counts["queries.jsonl"] = write_jsonl(folder / "queries.jsonl", questions)
    for part in run.parts:
        path = folder / "qrels" / f"{part}.tsv"
        rows = 0
        with atomic_text(path) as f:
            f.write("query-id\tcorpus-id\tscore\n")
            for row in judgements(run, part):
                f.write("\t".join(map(str, row.values())) + "\n")
                rows += 1
        counts[f"qrels/{part}.tsv"] = rows
    write_note(run, folder, NOTE)
    return counts


def write_corpus(run: Run, folder: Path) -> int:
    """corpus.jsonl with all passages (`_id`, `title`, `text`); how many."""
    return write_jsonl(folder / "corpus.jsonl", ({"_id": t.id, "title": "", "text": t.text} for t in run.targets()))


def judgements(run: Run, part: Part) -> Iterator[dict[str, Any]]:
    """query-id, corpus-id, score (always 1)."""
    for question in run.questions(part):
        for target in question.relevant:
            yield {"query-id": question.id, "corpus-id": target, "score": 1}


NOTE = """
```python
from beir.datasets.data_loader import GenericDataLoader

corpus, queries, qrels = GenericDataLoader("FOLDER").load(split="test")  # train, and dev where there is one
```

The corpus holds all passages, as a search has them: those of the test too. Train on qrels/train.tsv only.
"""
