"""LlamaIndex' EmbeddingQAFinetuneDataset: one JSON object with queries, corpus and relevant_docs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from factory.exports.notes import write_note
from factory.exports.run import Part, Run
from factory.workspace import atomic_text


def write(run: Run, folder: Path) -> dict[str, int]:
    """train.json, and dev.json and test.json where questions were held out; the questions of each.

    train.json has only passages that may be trained on, the others all, as a search has them.
    """
    counts = {f"{part}.json": _write(run, folder, part) for part in run.parts}
    write_note(run, folder, NOTE)
    return counts


def _write(run: Run, folder: Path, part: Part) -> int:
    asked = [(q.id, q.text, q.relevant) for q in run.questions(part) if q.relevant]
    targets = run.trainable() if part == "train" else run.targets()
    with atomic_text(folder / f"{part}.json") as f:
        f.write("{")
        _member(f, "queries", ((key, text) for key, text, _ in asked))
        f.write(",\n")
        _member(f, "corpus", ((t.id, t.text) for t in targets))
        f.write(",\n")
        _member(f, "relevant_docs", ((key, list(ids)) for key, _, ids in asked))
        f.write(',\n"mode": "text"}\n')
    return len(asked)


def _member(f: TextIO, name: str, items: Iterable[tuple[str, Any]]) -> None:
    """`"name": {…}`, item by item; in ASCII, for llama-index opens the file in whatever encoding the system has."""
    f.write(f"{json.dumps(name)}: {{")
    for number, (key, value) in enumerate(items):
        f.write(f"{',' if number else ''}\n{json.dumps(key)}: {json.dumps(value)}")
    f.write("}")


NOTE = """
```python
from llama_index.core.evaluation import EmbeddingQAFinetuneDataset  # llama-index-core up to 0.14.20

train = EmbeddingQAFinetuneDataset.from_json("FOLDER/train.json")
```

llama-index-core 0.14.21 and later are without this class; llama-index-finetuning, no longer maintained, has it.

It holds questions and what answers them; hard negatives have no place in it.
"""
