"""A run's folder as the exporters read it: row by row, and with a look out for leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.export import TRAIN
from factory.modelfiles import read_json
from factory.pipeline import KEPT, PASSAGES
from factory.progress import bar
from factory.records import Example, InputError, Pair, Passage, Split, parse, read_lines, read_records
from factory.workspace import MANIFEST

if TYPE_CHECKING:
    from factory.retrieve import Target

Part = Literal["train", "dev", "test"]
FOLDERS: dict[Part, str] = {"dev": "dev", "test": "eval"}  # where the held-out questions lie


@dataclass(frozen=True)
class Asked:
    """A question and the ids of the targets that answer it."""

    id: str
    text: str
    relevant: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """Of train.jsonl: rows, rows with a reranker score beside each text, and the most negatives that a row has."""

    rows: int
    scored: int
    negatives: int


@dataclass(frozen=True)
class HeldOut:
    """All ids of targets, and of those that no training row may hold the duplicate groups and the hashes of the texts.

    The latter two are empty where `test.hold_out` is off. A text that is in the train split as well is not held out.
    """

    ids: set[str]
    groups: set[str]
    texts: set[int]


class Run:
    """A finished run. Texts are read when they are asked for; of a million passages only hashes and ids are kept.

    Raises:
        InputError: the folder is not that of a finished run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        for name in (MANIFEST, TRAIN, PASSAGES, KEPT):
            if not (folder / name).is_file():
                raise InputError(
                    f"{name} is not there, so this is not the folder of a finished run",
                    where=folder,
                    fix="give the --out of a `bge-factory build` that has ended",
                )
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)
        self.config: dict[str, Any] = self.manifest.get("config", {})

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def parts(self) -> list[Part]:
        """train, and dev and test as far as questions were held out for them, and reviewers left some."""
        files: dict[Part, Path] = {part: self.folder / name / "queries.jsonl" for part, name in FOLDERS.items()}
        return ["train", *(part for part, file in files.items() if file.is_file() and file.stat().st_size)]

    def instruction(self, kind: Literal["query", "passage"]) -> str:
        """What the model to be trained wants before each text. It is in no exported text."""
        return str(self.config.get("model", {}).get(f"{kind}_instruction", ""))

    def examples(self, what: str = "rows") -> Iterator[Example]:
        """The rows of train.jsonl, one at a time, with a progress bar.

        Raises:
            InputError: a bad line, or one that holds a held-out question or passage; names file:line.
        """
        path = self.folder / TRAIN
        with bar(what, "rows", self._count("export", "examples")) as b:
            for number, row in read_lines(path):
                where = f"{path}:{number}"
                example = parse(Example, row, where)
                self._no_leak(example, where)
                yield example
                b.update()

    @cached_property
    def shape(self) -> Shape:
        rows = scored = negatives = 0
        for example in self.examples("counting"):
            rows, negatives = rows + 1, max(negatives, len(example.neg))
            scored += example.pos_scores is not None
        if not rows:
            raise InputError("holds no row", where=self.folder / TRAIN)
        return Shape(rows, scored, negatives)

    def targets(self) -> Iterator[Target]:
        """All that a search can return, as in `factory.retrieve.targets_of`, one at a time."""
        from factory.retrieve import Target, targets_of

        if self._pairs_point_at_passages:
            for p in self._passages():
                yield Target(p.id, p.text, p.duplicate_group, p.split, p.document_id, p.start, p.end)
        else:
            yield from targets_of(list(self._passages()), read_records(self.folder / KEPT, Pair))

    def trainable(self) -> Iterator[Target]:
        """The targets that are not held out, nor copies of one that is."""
        return (t for t in self.targets() if t.duplicate_group not in self._held_out.groups)

    def questions(self, part: Part) -> Iterator[Asked]:
        """The questions of one part, in file order. A training question's positives count with all their copies.

        Raises:
            InputError: a positive is no passage of the run, or a judgement names none.
        """
        if part == "train":
            groups, ids = self._copies
            for number, example in enumerate(self.examples("questions"), 1):
                if strange := [text for text in example.pos if hash(text) not in groups]:
                    raise InputError(
                        f"the positive {strange[0][:60]!r} is none of the run's passages, and this format needs its id",
                        where=f"{self.folder / TRAIN}, row {number}",
                        fix="train.jsonl was changed since the build: build again",
                    )
                found = (i for text in example.pos for i in ids[groups[hash(text)]])
                yield Asked(example.id or f"train-{number}", example.query, tuple(dict.fromkeys(found)))
        else:
            for key, text in self._held_out_queries(part).items():
                yield Asked(key, text, tuple(self._judged(part)[key]))

    def _passages(self) -> Iterator[Passage]:
        path = self.folder / PASSAGES
        with bar("passages", "passages", self._count("split", "passages")) as b:
            for number, row in read_lines(path):
                yield parse(Passage, row, f"{path}:{number}")
                b.update()

    def _count(self, stage: str, what: str) -> int | None:
        """What run.json says of a stage's rows, for a progress bar."""
        counts = self.manifest.get("stages", {}).get(stage, {}).get("counts", {})
        return counts.get(what)

    @cached_property
    def _pairs_point_at_passages(self) -> bool:
        ids = {row["id"] for _, row in read_lines(self.folder / PASSAGES)}
        return all(row["target_id"] in ids for _, row in read_lines(self.folder / KEPT))

    @cached_property
    def _copies(self) -> tuple[dict[int, str], dict[str, list[str]]]:
        """The duplicate group of each text that may be trained on (by its hash), and the ids of each group."""
        groups: dict[int, str] = {}
        ids: dict[str, list[str]] = defaultdict(list)
        for target in self.trainable():
            groups[hash(target.text)] = target.duplicate_group
            ids[target.duplicate_group].append(target.id)
        return groups, ids

    @cached_property
    def _held_out(self) -> HeldOut:
        ids: set[str] = set()
        groups: set[str] = set()
        seen: dict[Split, set[int]] = defaultdict(set)
        for target in self.targets():
            ids.add(target.id)
            seen[target.split].add(hash(target.text))
            if target.split != "train":
                groups.add(target.duplicate_group)
        test = self.config.get("test", {})
        if test.get("questions") and not test.get("hold_out", True):
            return HeldOut(ids, set(), set())
        return HeldOut(ids, groups, (seen["dev"] | seen["eval"]) - seen["train"])

    @cached_property
    def _held_out_questions(self) -> set[str]:
        return {text for part in self.parts if part != "train" for text in self._held_out_queries(part).values()}

    def _no_leak(self, example: Example, where: str) -> None:
        held = [t for t in (*example.pos, *example.neg) if hash(t) in self._held_out.texts]
        held += [example.query] if example.query in self._held_out_questions else []
        if held:
            raise InputError(
                f"a training row holds what is held out for the test: {held[0][:60]!r}",
                where=where,
                fix="train.jsonl was changed since the build, or another run's eval/ lies beside it: build again",
            )

    def _held_out_queries(self, part: Part) -> dict[str, str]:
        path = self.folder / FOLDERS[part] / "queries.jsonl"
        return {str(row["_id"]): str(row["text"]) for _, row in read_lines(path)}

    def _judged(self, part: Part) -> dict[str, list[str]]:
        return self._all_judged[part]

    @cached_property
    def _all_judged(self) -> dict[Part, dict[str, list[str]]]:
        found: dict[Part, dict[str, list[str]]] = {}
        for part in self.parts:
            if part == "train":
                continue
            path = self.folder / FOLDERS[part] / "qrels.tsv"
            relevant: dict[str, list[str]] = defaultdict(list)
            if not path.is_file():
                raise InputError("is not there, though queries.jsonl is", where=path, fix="build again")
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            for number, line in enumerate(lines[1:], 2):
                fields = line.split("\t")
                if len(fields) != 3:
                    raise InputError("expected query-id, corpus-id and score", where=f"{path}:{number}")
                if fields[1] not in self._held_out.ids:
                    raise InputError(f"passage {fields[1]!r} is none of the run's", where=f"{path}:{number}")
                relevant[fields[0]].append(fields[1])
            found[part] = relevant
        return found
