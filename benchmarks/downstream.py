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
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from benchmarks.common import collection_parser, parse
from benchmarks.miners import Negatives, Ours, Problem, others
from factory.config import Config
from factory.evaluate import evaluate
from factory.metrics import bootstrap
from factory.models import CachedEncoder, load_encoder
from factory.negatives import Negatives as Stages
from factory.records import Pair, Passage, read_records
from factory.settings import ModelConfig
from factory.workspace import write_json, write_jsonl
from launch.base_model import read_json
from launch.manifest import finished

OURS = "ours, resolve"


def main() -> None:
    p = collection_parser(__doc__)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--negatives", type=int, default=7)
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--group-size", type=int, default=4)
    p.add_argument("--passage-max-length", type=int, default=256)
    p.add_argument("--learning-rate", type=float, default=3e-5)
    p.add_argument("--out", type=Path, required=True)
    a = parse(p)
    problem, config = read_run(a)
    ours = Ours(problem, config, a.out, None, print)
    n = a.negatives
    miners = {OURS: lambda s: ours.choose(n, s)} | others(problem, n)
    print(f"{len(problem.pairs)} pairs, {len(problem.targets)} passages")
    values: dict[str, list[np.ndarray]] = {}
    for seed in range(1, a.seeds + 1):
        for name, miner in miners.items():
            folder = a.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            values.setdefault(name, []).append(train_and_measure(a, folder, problem, miner, seed))
            print(f"{name:24} seed {seed}: {100 * values[name][-1].mean():.2f}", flush=True)
    base = measure(a, a.model, a.out / "base.json")
    means = {name: np.mean(v, axis=0) for name, v in values.items()}
    print(f"\n{'':24} nDCG@10   ours − it\n{'base':24} {100 * base.mean():7.2f}")
    result = {"base": float(base.mean())}
    for name, mean in means.items():
        difference = means[OURS] - mean
        low, high = 100 * bootstrap(difference[:, None])[0] if name != OURS else (0, 0)
        print(f"{name:24} {100 * mean.mean():7.2f}   {100 * difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
        result[name] = {
            "mean": float(mean.mean()),
            "seeds": [float(v.mean()) for v in values[name]],
            "interval": [low, high],
        }
    write_json(a.out / "result.json", result)


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


def train_and_measure(
    a: argparse.Namespace, folder: Path, problem: Problem, miner: Callable[[int], Negatives], seed: int
) -> np.ndarray:
    """nDCG@10 of each human query. The model's weights are deleted once they are measured."""
    done = folder / "ndcg.json"
    if done.is_file():
        return np.array(json.loads(done.read_text()))
    folder.mkdir(exist_ok=True)
    rows = [
        {"query": pair.query, "pos": [pair.target_text], "neg": [problem.targets[i].text for i in negatives]}
        for pair, negatives in zip(problem.pairs, miner(seed), strict=True)
        if negatives
    ]
    write_jsonl(folder / "train.jsonl", rows)
    launch = {
        "recipe": "base",
        "model": str(a.model.expanduser()),
        "train_data": "train.jsonl",
        "output": "tuned",
        "query_instruction": a.query_instruction,
        "passage_instruction": a.passage_instruction,
        "epochs": a.epochs,
        "learning_rate": a.learning_rate,
        "batch_size": a.batch_size,
        "train_group_size": a.group_size,
        "passage_max_len": a.passage_max_length,
        "seed": seed,
        # a miner that finds nothing for some questions has fewer rows, but as many steps as the others
        "arguments": {"max_steps": round(a.epochs * len(problem.pairs) / a.batch_size)},
    }
    (folder / "launch.yaml").write_text(yaml.safe_dump(launch), encoding="utf-8")
    if not finished(read_json(folder / "tuned" / "launch.json")):
        shutil.rmtree(folder / "tuned", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "launch.cli", "run", str(folder / "launch.yaml")], check=True)
    values = measure(a, folder / "tuned", done)
    shutil.rmtree(folder / "tuned")
    return values


def measure(a: argparse.Namespace, model: Path, done: Path) -> np.ndarray:
    if done.is_file():
        return np.array(json.loads(done.read_text()))
    described = ModelConfig(
        path=str(model.expanduser()),
        query_instruction=a.query_instruction,
        passage_instruction=a.passage_instruction,
        passage_max_length=a.passage_max_length,
    )
    found = evaluate(a.collection, [("m", described)], cutoffs=(10,))
    values = found.per_query["m dense"]["ndcg@10"]
    write_json(done, values)
    return np.array(values)


if __name__ == "__main__":
    main()
