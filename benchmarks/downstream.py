"""What each miner's negatives make of the same model: fine-tuned alike on the same pairs, measured on human queries.

    python -m benchmarks.downstream ../shared/data/cjrc --run RUN --model MODEL --out ~/bench/downstream-cjrc

RUN is the folder of a finished build on the collection (benchmarks/collection.py makes one); its kept questions are the
pairs. Every miner gives each question the same number of negatives; every training has the same steps; --seeds is both
the draw's and the training's. The table is nDCG@10 over the human queries, mean over the seeds, and the difference of
ours to each with a 95 % interval by paired bootstrap over queries (each query's mean over the seeds). Resumable: a model
that is there is not trained again, one that is measured not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parse
from benchmarks.miners import Negatives, Ours, Problem, others
from benchmarks.training import table, train_and_measure, training_parser
from factory.config import Config
from factory.models import CachedEncoder, load_encoder
from factory.negatives import Negatives as Stages
from factory.records import Pair, Passage, read_records

OURS = "ours, resolve"


def main() -> None:
    p = training_parser(__doc__)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument(
        "--miners", type=int, default=5, help="the first so many: ours, random, hn_mine, sentence-transformers'"
    )
    p.add_argument("--negatives", type=int, default=7)
    p.add_argument("--epochs", type=float, default=1)
    a = parse(p)
    problem, config = read_run(a)
    ours = Ours(problem, config, a.out, None, print)
    n = a.negatives
    every = {OURS: lambda s: ours.choose(n, s)} | others(problem, n)
    miners = dict(list(every.items())[: a.miners])
    print(f"{len(problem.pairs)} pairs, {len(problem.targets)} passages")
    # a miner that finds nothing for some questions has fewer rows, but as many steps as the others
    steps = round(a.epochs * len(problem.pairs) / a.batch_size)
    values: dict[str, list[np.ndarray]] = {}
    for seed in range(1, a.seeds + 1):
        for name, miner in miners.items():
            folder = a.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            rows = rows_of(problem, miner(seed)) if not (folder / "ndcg.json").is_file() else []
            values.setdefault(name, []).append(train_and_measure(a, folder, rows, steps, seed))
            print(f"{name:24} seed {seed}: {100 * values[name][-1].mean():.2f}", flush=True)
    table(a, values, OURS, ours_first=True)


def rows_of(problem: Problem, negatives: Negatives) -> list[dict[str, Any]]:
    """Training rows; a pair without negatives has none."""
    return [
        {"query": pair.query, "pos": [pair.target_text], "neg": [problem.targets[i].text for i in own]}
        for pair, own in zip(problem.pairs, negatives, strict=True)
        if own
    ]


def read_run(a: argparse.Namespace) -> tuple[Problem, Config]:
    """The run's training pairs and passages, encoded with the model that is to be trained."""
    stored = json.loads((a.run / "run.json").read_text(encoding="utf-8"))["config"]
    instructions = {"query_instruction": a.query_instruction, "passage_instruction": a.passage_instruction}
    stored["model"] = {"path": str(a.model.expanduser()), **instructions}
    config = Config.model_validate(stored)
    encoder = CachedEncoder(load_encoder(config.model), a.out / "cache")

    class Nothing:
        path = staticmethod(lambda name: a.out / name)

    passages, kept = read_records(a.run / "2-passages.jsonl", Passage), read_records(a.run / "4-kept.jsonl", Pair)
    stages = Stages(config, Nothing(), passages, kept, lambda: encoder, print)  # type: ignore[arg-type]
    return Problem(stages.pairs, stages.targets, *stages._vectors), config


if __name__ == "__main__":
    main()
