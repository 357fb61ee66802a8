"""What each test of the stage filter, and other prompts, make of the same model: fine-tuned alike, measured on human queries.

    python -m benchmarks.questions COLLECTION --model e5-small --out ~/bench/questions-cjrc \
      --arm raw=RUN@raw --arm rules=RUN@rules --arm judge=RUN@judge --arm typed=OTHER --questions 400 --steps 60

RUN is a finished build on the collection (benchmarks/collection.py makes one). NAME=RUN@TEST takes the training questions
of the run that pass its tests up to TEST (`raw`: none, then rules, repeats, round trip, judge, difficulty); NAME=RUN those
that passed all; NAME=RUN@train its train.jsonl as it is, with the negatives that were chosen there. Every arm is drawn
from to the same number of questions and is trained for the same number of steps; but for @train each question has one
negative, at random from ranks 5 to 40 of the base model's search, as in a plain recipe. The differences are to the first arm.
Resumable: a model that is measured is not trained again.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parse
from benchmarks.training import table, train_and_measure, training_parser
from factory.models import CachedEncoder, Encoder, load_encoder
from factory.records import Dropped, Pair, Passage, read_lines, read_records
from factory.settings import ModelConfig
from launch.base_model import read_json

RANKS = (5, 40)


def main() -> None:
    p = training_parser(__doc__, batch_size=32, group_size=2, passage_max_length=512)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument(
        "--arm", action="append", required=True, help="NAME=RUN[@TEST]; the first is what others are set beside"
    )
    p.add_argument("--questions", type=int, default=0, help="drawn from each arm; default: as many as the smallest has")
    p.add_argument("--steps", type=int, default=0, help="default: two epochs")
    a = parse(p)
    arms = {name: of for name, _, of in (arm.partition("=") for arm in a.arm)}
    settings = {"query_instruction": a.query_instruction, "passage_instruction": a.passage_instruction}
    described = ModelConfig(path=str(a.model.expanduser()), passage_max_length=a.passage_max_length, **settings)
    encoder = CachedEncoder(load_encoder(described), a.out / "cache")
    rows = {name: arm_rows(of, encoder) for name, of in arms.items()}
    for name, found in rows.items():
        print(f"{name:28} {len(found):6,} questions on {len({r['pos'][0] for r in found}):,} passages")
    n = min(a.questions or sys.maxsize, *map(len, rows.values()))
    steps = a.steps or 2 * -(-n // a.batch_size)
    print(f"each drawn to {n:,} questions, {steps} steps of {a.batch_size}", flush=True)
    values: dict[str, list[np.ndarray]] = {}
    for seed in range(1, a.seeds + 1):
        for name, found in rows.items():
            drawn = random.Random(f"{seed}:{name}").sample(found, n)
            trained = train_and_measure(
                a, a.out / f"{name}-{seed}", [with_negative(r, seed) for r in drawn], steps, seed
            )
            values.setdefault(name, []).append(trained)
            print(f"{name:28} seed {seed}: {100 * trained.mean():.2f}", flush=True)
    table(a, values, next(iter(arms)), ours_first=False)


def arm_rows(of: str, encoder: Encoder) -> list[dict[str, Any]]:
    """{"query", "pos", and "neg" or "from"}: `from` holds what the negative is drawn from."""
    folder, _, test = of.partition("@")
    run = Path(folder).expanduser()
    if test == "train":
        return [{k: row[k] for k in ("query", "pos", "neg")} for _, row in read_lines(run / "train.jsonl")]
    pairs = [p for p in passing(run, test) if p.split == "train"]
    passages = read_records(run / "2-passages.jsonl", Passage)
    queries = encoder.encode([p.query for p in pairs], "query").dense
    vectors = encoder.encode([p.text for p in passages], "passage").dense
    rows = []
    for pair, query in zip(pairs, queries, strict=True):
        best = np.argsort(-(vectors @ query), kind="stable")[: RANKS[1]]
        others = [passages[i].text for i in best[RANKS[0] - 1 :] if passages[i].duplicate_group != pair.duplicate_group]
        rows.append({"query": pair.query, "pos": [pair.target_text], "from": others})
    return rows


def passing(run: Path, test: str) -> list[Pair]:
    """The pairs of a run that pass its tests up to `test`; "" all of them."""
    pairs = read_records(run / "3-pairs.jsonl", Pair)
    reasons = {d.id: d.reason for d in read_records(run / "dropped" / "filter.jsonl", Dropped)}
    tests = read_json(run / "questions.json")["tests"]
    names = [t["test"] for t in tests]
    if test and test != "raw" and test not in names:
        sys.exit(f"{run} has no test {test!r}; it has {', '.join(names)}")
    upto = tests if not test else [] if test == "raw" else tests[: names.index(test) + 1]
    against = {reason for t in upto for reason in t["dropped"]}
    return [p for p in pairs if reasons.get(p.id) not in against]


def with_negative(row: dict[str, Any], seed: int) -> dict[str, Any]:
    if "neg" in row:
        return row
    drawn = random.Random(f"{seed}:{row['query']}").choice(row["from"])
    return {"query": row["query"], "pos": row["pos"], "neg": [drawn]}


if __name__ == "__main__":
    main()
