"""Fine-tunes a model on rows and measures it on the human queries of a collection; what is done is not done again."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.common import collection_parser
from factory.evaluate import evaluate
from factory.metrics import compare
from factory.settings import ModelConfig
from factory.workspace import write_json, write_jsonl
from launch.base_model import read_json
from launch.manifest import finished


def training_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A collection's parser with what a training needs."""
    p = collection_parser(description)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--group-size", type=int, default=4)
    p.add_argument("--passage-max-length", type=int, default=256)
    p.add_argument("--learning-rate", type=float, default=3e-5)
    p.add_argument(
        "--temperature", type=float, default=0.02, help="FlagEmbedding's is 0.02; e5 models were trained with 0.01"
    )
    p.add_argument(
        "--bf16", action="store_true", help="train and measure in bfloat16: for processors with AVX-512 BF16 or AMX"
    )
    p.add_argument(
        "--keep", action="store_true", help="the models too, for bge-factory merge; else only what they measure"
    )
    p.add_argument("--out", type=Path, required=True)
    p.set_defaults(**defaults)
    return p


def train_and_measure(
    a: argparse.Namespace, folder: Path, rows: Iterable[Mapping[str, Any]], steps: int, seed: int
) -> np.ndarray:
    """nDCG@10 of each human query, (queries,). Without --keep the model's weights are deleted once they are measured."""
    done = folder / "ndcg.json"
    if done.is_file():
        return np.array(json.loads(done.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", rows)
    launch = {
        "recipe": "base",
        "model": str(a.model.expanduser()),
        "train_data": "train.jsonl",
        "output": "tuned",
        "query_instruction": a.query_instruction,
        "passage_instruction": a.passage_instruction,
        "epochs": 1,
        "learning_rate": a.learning_rate,
        "temperature": a.temperature,
        "batch_size": a.batch_size,
        "train_group_size": a.group_size,
        "passage_max_len": a.passage_max_length,
        "seed": seed,
        "arguments": {"max_steps": steps} | ({"bf16": True} if a.bf16 else {}),
    }
    (folder / "launch.yaml").write_text(yaml.safe_dump(launch), encoding="utf-8")
    if not finished(read_json(folder / "tuned" / "launch.json")):
        shutil.rmtree(folder / "tuned", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "launch.cli", "run", str(folder / "launch.yaml")], check=True)
    values = measure(a, folder / "tuned", done)
    if not a.keep:
        shutil.rmtree(folder / "tuned")
    return values


def measure(a: argparse.Namespace, model: Path, done: Path) -> np.ndarray:
    """nDCG@10 of each human query, from the file `done` if it is there."""
    if done.is_file():
        return np.array(json.loads(done.read_text()))
    described = ModelConfig(
        path=str(model.expanduser()),
        query_instruction=a.query_instruction,
        passage_instruction=a.passage_instruction,
        passage_max_length=a.passage_max_length,
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
        found = evaluate(a.collection, [("m", described)], cutoffs=(10,))
    values = found.per_query["m dense"]["ndcg@10"]
    write_json(done, values)
    return np.array(values)


def table(
    a: argparse.Namespace,
    values: Mapping[str, Sequence[np.ndarray]],
    reference: str,
    *,
    ours_first: bool,
    counted: slice | np.ndarray = slice(None),
) -> None:
    """Prints and writes (result.json) nDCG@10 of each arm, mean over the seeds, and its difference to the reference arm
    with a 95 % interval by paired bootstrap over the queries (each query's mean over the seeds).

    Args:
        ours_first: the difference is the reference's value minus the arm's; else the other way round.
        counted: which of the collection's queries `values` are of.
    """
    base = measure(a, a.model, a.out / "base.json")[counted]
    means = {name: np.mean(v, axis=0) for name, v in values.items()}
    head = f"{reference} − it" if ours_first else f"it − {reference}"
    print(f"\n{'':28} nDCG@10   each seed   {head}\n{'base':28} {100 * base.mean():7.2f}")
    result: dict[str, Any] = {"base": float(base.mean())}
    for name, mean in means.items():
        difference = (means[reference] - mean) * (1 if ours_first else -1)
        low, high = (0.0, 0.0) if name == reference else 100 * compare(difference[:, None])[0][0]
        seeds = [float(v.mean()) for v in values[name]]
        shown = " ".join(f"{100 * v:.1f}" for v in seeds)
        print(
            f"{name:28} {100 * mean.mean():7.2f}   {shown}   {100 * difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        )
        result[name] = {
            "mean": float(mean.mean()),
            "seeds": seeds,
            "difference": float(difference.mean()),
            "interval": [low, high],
        }
    write_json(a.out / "result.json", result)
