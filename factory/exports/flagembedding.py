"""FlagEmbedding's own trainers: train.jsonl divided by length, and rows for rerankers.

Both come twice where only some rows have scores to distil: all rows without, and those that have them with.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonlines
import orjson

from factory.exports.notes import write_note
from factory.exports.run import Run
from factory.records import Example, InputError
from factory.workspace import atomic_text, write_jsonl

BOUNDS = (0, 500, 1000, 2000, 3000, 4000, 5000, 6000, 7000)  # tokens, as in FlagEmbedding's split_data_by_length.py
BLOCK = 256  # rows whose texts are counted at once
Lengths = Callable[[Sequence[str]], list[int]]


def write_lengths(run: Run, folder: Path, model: Path | None) -> dict[str, int]:
    """train/train_len-0-500.jsonl and so on by the longest text of a row, in tokens with the special ones; rows of each.

    Args:
        model: the folder whose tokenizer counts; by default that of the run's model.
    """
    count = token_counter(model or Path(run.config.get("model", {}).get("path", "")))
    counts = _divide(run.examples("train by length"), folder / "train", count, scores=False)
    if run.shape.scored:
        scored = (e for e in run.examples("train-scored by length") if e.pos_scores is not None)
        counts |= _divide(scored, folder / "train-scored", count, scores=True)
    note = LENGTHS_NOTE.format(instruction=shlex.quote(run.instruction("query")))
    write_note(run, folder, note + (SCORED_NOTE if run.shape.scored else ""))
    return counts


def write_reranker(run: Run, folder: Path) -> dict[str, int]:
    """train.jsonl: query, pos, neg. An embedder's `prompt` stays out: a reranker's trainer would read it as its own."""
    counts = {"train.jsonl": write_jsonl(folder / "train.jsonl", (_row(e, False) for e in run.examples("train")))}
    if run.shape.scored:
        scored = (_row(e, True) for e in run.examples("train-scored") if e.pos_scores is not None)
        counts["train-scored.jsonl"] = write_jsonl(folder / "train-scored.jsonl", scored)
    write_note(run, folder, RERANKER_NOTE + (SCORED_NOTE if run.shape.scored else ""), embedder=False)
    return counts


def token_counter(model: Path) -> Lengths:
    """Tokens of texts under a model's tokenizer, with its special tokens; each text is counted once.

    Raises:
        InputError: no such folder, or no tokenizer in it.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if not model.is_dir():
        raise InputError(
            "no such model folder, and its tokenizer is needed to count lengths",
            where=model,
            fix="--model FOLDER, the model that will be trained",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as e:
        raise InputError(f"its tokenizer cannot be loaded: {e}", where=model, fix="--model FOLDER") from e
    logging.set_verbosity_error()  # that a text is longer than the model's limit is what is to be found out
    known: dict[int, int] = {}

    def count(texts: Sequence[str]) -> list[int]:
        if new := [t for t in dict.fromkeys(texts) if hash(t) not in known]:
            known.update(zip(map(hash, new), map(len, tokenizer(new, truncation=False)["input_ids"]), strict=True))
        return [known[hash(t)] for t in texts]

    return count


def name_of(tokens: int) -> str:
    """The file for rows of this length."""
    lower = max(b for b in BOUNDS if b <= tokens)
    upper = next((str(b) for b in BOUNDS if b > tokens), "inf")
    return f"train_len-{lower}-{upper}.jsonl"


def _divide(examples: Iterable[Example], folder: Path, count: Lengths, scores: bool) -> dict[str, int]:
    rows: Counter[str] = Counter()
    with ExitStack() as opened:
        writers: dict[str, jsonlines.Writer] = {}
        for name, example in _named(examples, count):
            if name not in writers:
                f = opened.enter_context(atomic_text(folder / name))
                writers[name] = jsonlines.Writer(f, dumps=lambda row: orjson.dumps(row).decode())
            writers[name].write(_row(example, scores, "prompt", "type"))
            rows[f"{folder.name}/{name}"] += 1
    return {name: rows[name] for name in sorted(rows, key=lambda n: int(n.split("-")[-2]))}


def _named(examples: Iterable[Example], count: Lengths) -> Iterator[tuple[str, Example]]:
    left = iter(examples)
    while block := list(itertools.islice(left, BLOCK)):
        texts = [[e.query, *e.pos, *e.neg] for e in block]
        lengths = iter(count([t for row in texts for t in row]))
        for example, row in zip(block, texts, strict=True):
            yield name_of(max(itertools.islice(lengths, len(row)))), example


def _row(example: Example, scores: bool, *more: str) -> dict[str, Any]:
    keys = {"query", "pos", "neg", *more} | ({"pos_scores", "neg_scores"} if scores else set())
    return example.model_dump(include=keys, exclude_none=True)


LENGTHS_NOTE = """
Each file holds the rows whose longest text has so many tokens. The trainer takes each batch from one file:

    --train_data FOLDER/train --same_dataset_within_batch True --query_instruction_for_retrieval {instruction}

The instruction is given even where it is empty: without it, this option trains on "None" + query.
Rows that do not fill a batch of their file are left out in an epoch; `--small_threshold` joins small files.
"""
RERANKER_NOTE = """
    --train_data FOLDER/train.jsonl

One of a row's positives is drawn in each epoch.
"""
SCORED_NOTE = """
`train-scored` holds the rows whose texts all have a reranker's logit: `--train_data FOLDER/train-scored` with
`--knowledge_distillation True`, instead of `train`.
"""
