"""A `datasets.DatasetDict` on disk: train rows with their negatives, held-out questions with what answers them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.exports.notes import write_note
from factory.exports.run import Part, Run


def write(run: Run, folder: Path) -> dict[str, int]:
    """Splits train, and dev and test where questions were held out; the rows of each.

    All have the columns id, query, pos, neg, pos_scores, neg_scores. A held-out question has no negatives; where there
    is no score the lists of scores are empty.

    Raises:
        InputError: as `Run.examples` and `Run.questions`.
    """
    from datasets import Dataset, DatasetDict, Features, Sequence, Value
    from datasets.exceptions import DatasetGenerationError

    text, number = Sequence(Value("string")), Sequence(Value("float64"))
    features = Features(
        {"id": Value("string"), "query": Value("string"), "pos": text, "neg": text}
        | {"pos_scores": number, "neg_scores": number}
    )
    scratch = folder / ".cache"
    try:
        splits = {
            str(part): Dataset.from_generator(
                lambda part=part: rows(run, part), features=features, cache_dir=str(scratch), fingerprint=f"{part}"
            )
            for part in run.parts
        }
        DatasetDict(splits).save_to_disk(folder)
    except DatasetGenerationError as e:
        raise (e.__cause__ or e) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    write_note(run, folder, NOTE)
    return {part: len(split) for part, split in splits.items()}


def rows(run: Run, part: Part) -> Iterator[dict[str, Any]]:
    """The rows of one split."""
    if part == "train":
        for e in run.examples("train"):
            scores = {"pos_scores": e.pos_scores or [], "neg_scores": e.neg_scores or []}
            yield {"id": e.id or "", "query": e.query, "pos": e.pos, "neg": e.neg} | scores
        return
    asked = list(run.questions(part))
    wanted = {i for q in asked for i in q.relevant}
    text = {t.id: t.text for t in run.targets() if t.id in wanted}
    for q in asked:
        empty: dict[str, Any] = {"neg": [], "pos_scores": [], "neg_scores": []}
        yield {"id": q.id, "query": q.text, "pos": [text[i] for i in q.relevant]} | empty


NOTE = """
```python
from datasets import load_from_disk

train = load_from_disk("FOLDER")["train"]  # and test, and dev where there is one
```
"""
