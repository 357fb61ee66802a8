"""A run's folder for the review page, made without a model: questions, passages, scores and decisions of the real kinds."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from factory.choose import Chooser, choose
from factory.config import Config
from factory.hybrid import Scorer
from factory.records import Pair, Passage
from factory.settings import ChooseConfig
from factory.tables import write_blocks
from factory.workspace import write_json, write_jsonl
from tests.handmade import candidates, pair, target, unit

NEGATIVES = 3


def make_run(folder: Path, questions: int = 60, held_out: int = 2) -> Path:
    """`questions` training questions with three negatives each and `held_out` of the eval split."""
    draw = np.random.default_rng(0)
    n = questions + held_out
    targets = [target(i, f"第{i}号泵 (pump {i}) 的压力是{i}兆帕，<b>每{i + 2}周</b>检查阀门。") for i in range(n)]
    pairs = [pair(i, targets[i], f"第{i}号泵的阀门多久检查一次？", f"每{i + 2}周") for i in range(questions)]
    answers = unit(draw.normal(size=(questions, 8)) + 3)
    queries = unit(answers + draw.normal(size=(questions, 8)) * 0.3)
    mined = candidates(pairs, targets[:questions], queries, answers, 12)
    scores = Scorer(pairs, targets[:questions], queries, answers).table(mined)
    config = ChooseConfig(negatives=NEGATIVES, near_copy=1, ceiling=1)
    found = pa.concat_tables(choose([scores], Chooser(pairs, targets[:questions], config, 1), len(scores)))
    folder.mkdir(parents=True)
    write_blocks(folder / "6-scores.parquet", [scores])
    write_blocks(folder / "7-decisions.parquet", [found])
    write_jsonl(folder / "2-passages.jsonl", [_passage(t, i < questions) for i, t in enumerate(targets)])
    held = [_held(pair(i, targets[i], f"How often is pump {i} checked?"), i) for i in range(questions, n)]
    write_jsonl(folder / "4-kept.jsonl", [*pairs, *held])
    config_ = Config.model_validate({"input": {"path": "x"}, "model": {"path": "x"}, "choose": config.model_dump()})
    write_json(folder / "run.json", {"bge_factory": "0", "config": config_.model_dump(mode="json"), "stages": {}})
    return folder


def _held(p: Pair, rank: int) -> Pair:
    return p.model_copy(update={"split": "eval", "rank": rank})


def _passage(t, train: bool) -> Passage:
    return Passage(
        id=t.id, document_id=t.document_id, source="pumps.md", headings=("Pumps",), text=t.text, start=0, end=len(t.text),
        tokens=9, document_group="d", duplicate_group=t.duplicate_group, split="train" if train else "eval",
    )  # fmt: skip
