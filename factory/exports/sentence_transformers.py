"""Parquet files for SentenceTransformerTrainer. The order of the columns counts there, not their names.

Every positive of a row makes rows of its own. A `label` comes last: a margin (MarginMSELoss), or the logits of
the positive and of each negative (MarginMSELoss, DistillKLDivLoss).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from factory.exports.notes import header, write_note
from factory.exports.run import Run
from factory.records import Example
from factory.tables import write_blocks

BLOCK = 2000  # rows of one row group
Rows = Callable[[Example, int], Iterator[dict[str, Any]]]


def write(run: Run, folder: Path) -> dict[str, int]:
    """triplets.parquet and n-tuples.parquet, and both with `-scored` where rows have scores; rows of each file."""
    n = run.shape.negatives
    wide = ["anchor", "positive", *(f"negative_{i}" for i in range(1, n + 1))]
    narrow = ["anchor", "positive", "negative"]
    files: dict[str, tuple[list[str], Rows, pa.DataType | None]] = {
        "triplets": (narrow, triplets, None),
        "n-tuples": (wide, tuples, None),
    }
    if run.shape.scored:
        files["triplets-scored"] = (narrow, scored_triplets, pa.float64())
        files["n-tuples-scored"] = (wide, scored_tuples, pa.list_(pa.float64()))
    counts = {}
    for name, (columns, rows, label) in files.items():
        schema = pa.schema([(c, pa.string()) for c in columns] + ([("label", label)] if label else []))
        made = (row for example in run.examples(name) for row in rows(example, n))
        counts[f"{name}.parquet"] = write_blocks(folder / f"{name}.parquet", _blocks(made, schema))
    write_note(
        run, folder, _note(run, list(files)), header({name: {"train": f"{name}.parquet"} for name in files}, "triplets")
    )
    return counts


def triplets(example: Example, _: int = 0) -> Iterator[dict[str, Any]]:
    """Each positive with each negative."""
    for positive, negative in itertools.product(example.pos, example.neg):
        yield {"anchor": example.query, "positive": positive, "negative": negative}


def scored_triplets(example: Example, _: int = 0) -> Iterator[dict[str, Any]]:
    """As `triplets`; the label is the positive's logit less the negative's. None of a row without scores."""
    if example.pos_scores is not None and example.neg_scores is not None:
        margins = (p - n for p, n in itertools.product(example.pos_scores, example.neg_scores))
        for row, margin in zip(triplets(example), margins, strict=True):
            yield row | {"label": margin}


def tuples(example: Example, n: int) -> Iterator[dict[str, Any]]:
    """Each positive with n negatives; a row that has fewer repeats its own, as FlagEmbedding's trainer does."""
    negatives = {f"negative_{i}": text for i, text in enumerate(_repeated(example.neg, n), 1)}
    for positive in example.pos:
        yield {"anchor": example.query, "positive": positive} | negatives


def scored_tuples(example: Example, n: int) -> Iterator[dict[str, Any]]:
    """As `tuples`; the label is a list of logits, the positive's first. None of a row without scores."""
    if example.pos_scores is not None and example.neg_scores is not None:
        for row, positive in zip(tuples(example, n), example.pos_scores, strict=True):
            yield row | {"label": [positive, *_repeated(example.neg_scores, n)]}


def _repeated(values: list[Any], n: int) -> list[Any]:
    return list(itertools.islice(itertools.cycle(values), n))


def _blocks(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    left = iter(rows)
    while block := list(itertools.islice(left, BLOCK)):
        yield pa.Table.from_pylist(block, schema)


def _note(run: Run, names: list[str]) -> str:
    scored = (
        f"""
`-scored` holds the rows whose texts all have a reranker's logit ({run.shape.scored:,} of {run.shape.rows:,} rows of
train.jsonl), with a `label` for `MarginMSELoss` (both) or `DistillKLDivLoss` (n-tuples).
"""
        if run.shape.scored
        else ""
    )
    query, passage = run.instruction("query"), run.instruction("passage")
    prompts = ""
    if query or passage:
        narrow = {"anchor": query, "positive": passage, "negative": passage}
        prompts = f"\n# in SentenceTransformerTrainingArguments: prompts={narrow!r}, and so on for negative_1, …"
    return f"""
```python
from datasets import load_dataset

train = load_dataset("FOLDER", "triplets", split="train")  # or {", ".join(n for n in names if n != "triplets")}{prompts}
```

A question with several positives has a row for each, and triplets repeat a question with each negative: take
`batch_sampler="no_duplicates"`, or a question's own positive becomes a negative in its batch. In n-tuples a question
with fewer than {run.shape.negatives} negatives repeats its own.
{scored}"""
