"""ms-swift's rows: `messages` is the question, `positive_messages` and `negative_messages` are lists of dialogues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from factory.exports.notes import write_note
from factory.exports.run import Run
from factory.records import Example
from factory.workspace import write_jsonl


def write(run: Run, folder: Path) -> dict[str, int]:
    """embedding.jsonl and reranker.jsonl; rows of each."""
    both = {"embedding.jsonl": embedding_rows, "reranker.jsonl": reranker_rows}
    counts = {name: write_jsonl(folder / name, rows(run.examples(name))) for name, rows in both.items()}
    write_note(run, folder, NOTE)
    return counts


def embedding_rows(examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """For the InfoNCE loss. ms-swift takes exactly one positive in a row: each positive makes a row."""
    for example in examples:
        for positive in example.pos:
            yield _row(example, [positive], "user")


def reranker_rows(examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """For pointwise and listwise rerankers, which take several positives."""
    for example in examples:
        yield _row(example, example.pos, "assistant")


def _row(example: Example, positives: list[str], role: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": example.query}],
        "positive_messages": [[{"role": role, "content": text}] for text in positives],
        "negative_messages": [[{"role": role, "content": text}] for text in example.neg],
    }


NOTE = """
    swift sft --task_type embedding --loss_type infonce --dataset FOLDER/embedding.jsonl …
    swift sft --task_type reranker --dataset FOLDER/reranker.jsonl …

embedding.jsonl has a row for each positive of a question. `INFONCE_HARD_NEGATIVES` sets how many negatives are used;
for rerankers `MAX_POSITIVE_SAMPLES` (1) and `MAX_NEGATIVE_SAMPLES` (7) do.
"""
