"""What each miner's negatives make of the same model: fine-tuned alike on the same pairs, measured on human queries.

    python -m benchmarks.downstream ../shared/data/cjrc --run RUN --model MODEL --out ~/bench/downstream-cjrc

    python -m benchmarks.downstream ../shared/data/cjrc --human 1000 --model MODEL --out ~/bench/downstream-human

RUN is the folder of a finished build on the collection (benchmarks/collection.py makes one); its kept questions are the
pairs. With --human so many of the collection's own queries are, about one half of its passages; only that half is mined, and only
queries about the other half are measured. Every miner gives each question the same number of negatives; every training has the same steps; --seeds is both
the draw's and the training's. The table is nDCG@10 over the human queries, mean over the seeds, and the difference of
ours to each with a 95 % interval by paired bootstrap over queries (each query's mean over the seeds). Resumable: a model
that is there is not trained again, one that is measured not measured again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parse
from benchmarks.miners import Negatives, Ours, Problem, others
from benchmarks.training import table, train_and_measure, training_parser
from factory.config import Config
from factory.duplicates import near_duplicate_groups
from factory.evalset import read_eval_set
from factory.models import CachedEncoder, load_encoder
from factory.negatives import Negatives as Stages
from factory.records import Pair, Passage, read_records
from factory.retrieve import Target

OURS = "ours, resolve"
Counted = slice | np.ndarray  # which of the collection's queries are measured


def main() -> None:
    p = training_parser(__doc__)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--run", type=Path)
    p.add_argument("--human", type=int, default=0, help="human queries to train on, instead of --run")
    p.add_argument(
        "--miners", type=int, default=5, help="the first so many: ours, random, hn_mine, sentence-transformers'"
    )
    p.add_argument("--negatives", type=int, default=7)
    p.add_argument("--epochs", type=float, default=1)
    a = parse(p)
    if (a.run is None) == (not a.human):
        sys.exit("one of --run and --human")
    problem, config, counted = halves(a) if a.human else read_run(a)
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
            values.setdefault(name, []).append(train_and_measure(a, folder, rows, steps, seed)[counted])
            print(f"{name:24} seed {seed}: {100 * values[name][-1].mean():.2f}", flush=True)
    table(a, values, OURS, ours_first=True, counted=counted)


def rows_of(problem: Problem, negatives: Negatives) -> list[dict[str, Any]]:
    """Training rows; a pair without negatives has none."""
    return [
        {"query": pair.query, "pos": [pair.target_text], "neg": [problem.targets[i].text for i in own]}
        for pair, own in zip(problem.pairs, negatives, strict=True)
        if own
    ]


def model(a: argparse.Namespace) -> dict[str, str]:
    instructions = {"query_instruction": a.query_instruction, "passage_instruction": a.passage_instruction}
    return {"path": str(a.model.expanduser()), **instructions}


def read_run(a: argparse.Namespace) -> tuple[Problem, Config, Counted]:
    """The run's training pairs and passages, encoded with the model that is to be trained; every human query counts."""
    stored = json.loads((a.run / "run.json").read_text(encoding="utf-8"))["config"]
    config = Config.model_validate(stored | {"model": model(a)})
    encoder = CachedEncoder(load_encoder(config.model), a.out / "cache")

    class Nothing:
        path = staticmethod(lambda name: a.out / name)

    passages, kept = read_records(a.run / "2-passages.jsonl", Passage), read_records(a.run / "4-kept.jsonl", Pair)
    stages = Stages(config, Nothing(), passages, kept, lambda: encoder, print)  # type: ignore[arg-type]
    return Problem(stages.pairs, stages.targets, *stages._vectors), config, slice(None)


def halves(a: argparse.Namespace) -> tuple[Problem, Config, Counted]:
    """`a.human` queries about one half of the passages, that half, and which queries are about the other half.

    Copies of a passage are in the same half; of a query's relevant passages the one that is judged best is its positive.
    """
    config = Config.model_validate({"input": {"path": str(a.collection)}, "model": model(a)})
    data = read_eval_set(a.collection)
    groups = near_duplicate_groups(data.passages, config.passages.near_duplicate)
    draw = random.Random(0)
    half = {g: draw.random() < 0.5 for g in sorted(set(groups))}
    train = [half[g] for g in groups]
    asked = [q for q, r in enumerate(data.relevant) if all(train[i] for i in r)]
    counted = np.array([not any(train[i] for i in r) for r in data.relevant])
    asked = sorted(draw.sample(asked, min(a.human, len(asked))))
    targets = [Target(f"t{i}", t, f"t{groups[i]}", "train", f"t{i}") for i, t in enumerate(data.passages) if train[i]]
    pairs = []
    for q in asked:
        best = min(data.relevant[q], key=lambda i: (-data.relevant[q][i], i))
        about = {"passage_id": f"t{best}", "target_id": f"t{best}", "duplicate_group": f"t{groups[best]}"}
        pairs.append(Pair(id=f"q{q}", query=data.queries[q], target_text=data.passages[best], split="train", **about))
    encoder = CachedEncoder(load_encoder(config.model), a.out / "cache")
    answers = encoder.encode([t.text for t in targets], "passage").dense
    queries = encoder.encode([p.query for p in pairs], "query").dense
    print(f"measured on {counted.sum():,} queries about the other half of the passages")
    return Problem(pairs, targets, queries, answers), config, counted


if __name__ == "__main__":
    main()
