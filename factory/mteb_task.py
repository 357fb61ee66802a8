"""An MTEB retrieval task on disk, read as mteb itself reads one: by Hugging Face `datasets`, without the network.

Two layouts: a hub's folder, as git or a download brings it, whose README.md names the configurations `corpus`,
`queries` and `default` or `qrels` (with several languages `zh-corpus`, `zh-queries`, `zh-qrels`); and the folders
`corpus`, `queries` and `qrels`, each written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.errors import InputError
from factory.evalset import Texts, grade_of, texts_of

SAVED = ("dataset_info.json", "dataset_dict.json")
NOT_READ = {
    "top_ranked": "a reranking task: its figures are of given candidates, ours would be of a search",
    "instruction": "a task with an instruction for each query, which are not read",
}


def is_task(folder: Path) -> bool:
    """Whether the folder has one of the two layouts."""
    readme = folder / "README.md"
    named = readme.is_file() and "config_name" in readme.read_text(encoding="utf-8", errors="replace")
    return named or any((folder / "corpus" / name).is_file() for name in SAVED)


def read_task(
    folder: Path, split: str, subset: str | None
) -> tuple[Texts, Texts, Iterator[tuple[str, str, str, int]], Path]:
    """Corpus, queries, judgements (where, query id, passage id, grade) and the folder.

    Of a part with several splits the one named `split` is taken, of a part with one split that one, as in mteb.

    Raises:
        InputError: a part is missing, does not have the split, or cannot be read; the task is not a plain retrieval one.
    """
    task = _Saved(folder) if any((folder / "corpus" / name).is_file() for name in SAVED) else _Hub(folder)
    prefix = f"{subset}-" if subset else ""
    for part, why in NOT_READ.items():
        if prefix + part in task.names:
            raise InputError(why, where=folder)
    corpus = task.part(folder, split, [prefix + "corpus"])
    asked = task.part(folder, split, [prefix + "queries", "query"])
    judged = task.part(folder, split, [prefix + "qrels"] if subset else ["default", "qrels"])
    missing = {"query-id", "corpus-id", "score"} - set(judged.column_names)
    if missing:
        raise InputError(f"the judgements have no column {sorted(missing)[0]}", where=folder)

    def judgements() -> Iterator[tuple[str, str, str, int]]:
        for i, row in enumerate(judged, 1):
            where = f"{folder}, judgement {i}"
            yield where, str(row["query-id"]), str(row["corpus-id"]), grade_of(row["score"], where)

    texts = [
        texts_of(((f"{folder}, {name} {i}", row) for i, row in enumerate(rows, 1)), folder)
        for name, rows in (("passage", corpus), ("query", asked))
    ]
    return texts[0], texts[1], judgements(), folder


class _Parts(ABC):
    """The parts of a task by name; each is read when it is asked for."""

    names: list[str]

    def part(self, folder: Path, split: str, names: list[str]) -> Any:
        name = next((n for n in names if n in self.names), None)
        if name is None:
            subsets = sorted({n.removesuffix("-corpus") for n in self.names if n.endswith("-corpus")})
            fix = f"--subset {subsets[0]} (there are {', '.join(subsets)})" if subsets else None
            raise InputError(f"the task has no {names[0]}, only {', '.join(self.names)}", where=folder, fix=fix)
        try:
            splits = self.read(name)
        except Exception as e:  # pyarrow, json, yaml and datasets each have errors of their own
            raise InputError(f"{name} cannot be read: {type(e).__name__}: {str(e)[:300]}", where=folder) from e
        if split not in splits and len(splits) > 1:
            raise InputError(
                f"{name} has no split {split!r}, only {', '.join(splits)}",
                where=folder,
                fix=f"--split {next(iter(splits))}",
            )
        return splits[split] if split in splits else next(iter(splits.values()))

    @abstractmethod
    def read(self, name: str) -> dict[str, Any]:
        """The splits of a part."""


class _Hub(_Parts):
    def __init__(self, folder: Path):
        import datasets

        self.folder = folder
        try:
            self.names = datasets.get_dataset_config_names(str(folder))
        except Exception as e:
            raise InputError(f"is not a data set: {type(e).__name__}: {str(e)[:300]}", where=folder) from e

    def read(self, name: str) -> dict[str, Any]:
        import tempfile

        import datasets

        datasets.disable_progress_bars()
        with tempfile.TemporaryDirectory(prefix="bge-factory-") as scratch:  # where it writes a copy as Arrow
            return dict(datasets.load_dataset(str(self.folder), name, cache_dir=scratch, keep_in_memory=True))


class _Saved(_Parts):
    def __init__(self, folder: Path):
        self.folder = folder
        self.names = sorted(p.name for p in folder.iterdir() if any((p / name).is_file() for name in SAVED))

    def read(self, name: str) -> dict[str, Any]:
        import datasets

        found = datasets.load_from_disk(str(self.folder / name))
        return dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
