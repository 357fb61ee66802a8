"""The held-out questions as an mteb retrieval task: data that `datasets` reads from the folder, and task.py."""

from __future__ import annotations

import re
import string
from pathlib import Path

from factory.exports.beir import judgements, write_corpus
from factory.exports.notes import header, write_note
from factory.exports.run import Run
from factory.languages import language
from factory.records import InputError
from factory.workspace import atomic_text, fingerprint, write_jsonl

LANGUAGES = {"zh": "zho-Hans", "en": "eng-Latn"}


def write(run: Run, folder: Path) -> dict[str, int]:
    """corpus.jsonl, queries.jsonl, qrels/test.jsonl, task.py; rows of each.

    Raises:
        InputError: nothing is held out in the run.
    """
    if "test" not in run.parts:
        raise InputError(
            "the run has no held-out questions, and an mteb task is made of nothing else",
            where=run.folder,
            fix="build with split.eval above 0, or with test.questions",
        )
    asked = list(run.questions("test"))
    counts = {
        "corpus.jsonl": write_corpus(run, folder),
        "queries.jsonl": write_jsonl(folder / "queries.jsonl", ({"_id": q.id, "text": q.text} for q in asked)),
        "qrels/test.jsonl": write_jsonl(folder / "qrels" / "test.jsonl", judgements(run, "test")),
    }
    languages = sorted({LANGUAGES[language(q.text)] for q in asked})
    with atomic_text(folder / "task.py") as f:
        name = re.sub(r"\W+", "-", run.name).strip("-") or "run"
        revision = fingerprint([(q.id, q.text, q.relevant) for q in asked])[:40]
        f.write(TASK.substitute(name=repr(name), revision=repr(revision), languages=repr(languages)))
    files = {
        "corpus": {"corpus": "corpus.jsonl"},
        "queries": {"queries": "queries.jsonl"},
        "qrels": {"test": "qrels/test.jsonl"},
    }
    write_note(run, folder, NOTE, header(files))
    return counts


TASK = string.Template('''"""A retrieval task for mteb (2.x), on the files beside this one. Written by bge-factory."""

from pathlib import Path

from mteb import TaskMetadata
from mteb.abstasks import AbsTaskRetrieval


class Task(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name=$name,
        description="Held-out questions of a bge-factory run",
        type="Retrieval",
        category="t2t",
        dataset={"path": str(Path(__file__).parent), "revision": $revision},
        eval_splits=["test"],
        eval_langs=$languages,
        main_score="ndcg_at_10",
        is_public=False,
    )
''')
NOTE = """
```python
import sys; sys.path.insert(0, "FOLDER")
import mteb
from sentence_transformers import SentenceTransformer
from task import Task

model = SentenceTransformer("MODEL")  # prompts={"query": …, "document": …} if it wants some
print(mteb.evaluate(model, Task(), cache=None).task_results[0].get_score())
```

The task is no part of mteb's own list: it is loaded from this folder only. Chinese is declared as zho-Hans.
"""
