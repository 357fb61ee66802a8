"""What `bge-factory evaluate` takes on top of encoding and one matrix product, and its peak memory.

    python -m benchmarks.evaluation --model minilm-en
    python -m benchmarks.evaluation --model minilm-en --collection COLLECTION/cran

5,000 passages × 7,000 queries by default; of a collection, texts are repeated, with a number behind them, until there are
as many. Plain is FlagEmbedding's own encode of both, their matrix product and the first 100 of each row. Ours is all that
`evaluate` does with one model: BM25, dense, their fusion, 24 metrics, intervals and tests. Each runs in a process of
its own, which counts its imports, too; rounds alternate, medians are printed. Goal: ours / plain at most 1.1.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import peak

WORDS = "the of a model water heat pressure flow wing steel weld current plate coffee roast bean engine bridge".split()  # noqa: SIM905


def texts(n: int, length: int, source: list[str], rng: random.Random) -> list[str]:
    """n texts, none twice: of the source, or random words."""
    if source:
        return [f"{source[i % len(source)]} {i // len(source)}" for i in range(n)]
    return [" ".join(rng.choices(WORDS, k=length)) + f" {i}" for i in range(n)]


def write_set(folder: Path, a: argparse.Namespace) -> None:
    """corpus.jsonl, queries.jsonl and qrels.tsv with one relevant passage drawn at random for each query."""
    rng = random.Random(1)
    for name, n, length in (("corpus", a.passages, 80), ("queries", a.queries, 10)):
        source = []
        if a.collection:
            lines = (a.collection / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            source = [json.loads(line)["text"] for line in lines if line.strip()]
        rows = [{"_id": f"{name[0]}{i}", "text": t} for i, t in enumerate(texts(n, length, source, rng))]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judged = (f"q{i}\tc{rng.randrange(a.passages)}\t1" for i in range(a.queries))
    (folder / "qrels.tsv").write_text("\n".join(judged), encoding="utf-8")


def plain(folder: Path, model: str) -> None:
    """Encode both, multiply, and take the first 100 of each row."""
    import numpy as np
    from FlagEmbedding import FlagModel

    from factory.evalset import read_eval_set
    from factory.modelfiles import pooling_of

    data = read_eval_set(folder)
    encoder = FlagModel(model, pooling_method=pooling_of(Path(model)) or "cls", use_fp16=False, devices=["cpu"])
    p = encoder.encode(data.passages, batch_size=32, max_length=512)
    q = encoder.encode(data.queries, batch_size=32, max_length=128)
    scores = q @ p.T
    first = np.argpartition(-scores, min(100, scores.shape[1] - 1), axis=1)[:, :100]
    np.take_along_axis(first, np.argsort(-np.take_along_axis(scores, first, 1), axis=1), 1)


def ours(folder: Path, model: str) -> None:
    """One model, everything else as it comes."""
    from factory.evaluate import Options, evaluate_sets
    from factory.settings import ModelConfig

    evaluate_sets([("set", folder)], [("model", ModelConfig(path=model, device="cpu"))], Options())


def run(part: str, folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.evaluation",
        "--part",
        part,
        "--folder",
        str(folder),
        "--model",
        a.model,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="the model's folder")
    p.add_argument("--collection", type=Path, help="BEIR folder whose texts are used; default: random words")
    p.add_argument("--passages", type=int, default=5000)
    p.add_argument("--queries", type=int, default=7000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--part", choices=("plain", "ours"), help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.model = str(Path(a.model).expanduser())
    if not Path(a.model).is_dir():
        sys.exit(f"skipped: no {a.model}")
    if a.part:
        started = time.monotonic()
        {"plain": plain, "ours": ours}[a.part](a.folder, a.model)
        print(json.dumps({"seconds": time.monotonic() - started, "peak": peak()}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_set(Path(scratch), a)
        rounds = []
        for i in range(a.rounds):
            rounds.append({part: run(part, Path(scratch), a) for part in ("plain", "ours")})
            seconds = {part: r["seconds"] for part, r in rounds[-1].items()}
            print(f"round {i + 1}: plain {seconds['plain']:.1f} s, ours {seconds['ours']:.1f} s", flush=True)
    print(f"\n{a.passages:,} passages × {a.queries:,} queries, {Path(a.model).name}\n{'':8} seconds  peak GiB")
    for part in ("plain", "ours"):
        seconds = statistics.median(r[part]["seconds"] for r in rounds)
        print(f"{part:8} {seconds:7.1f}  {max(r[part]['peak'] for r in rounds):8.2f}")
    ratios = [r["ours"]["seconds"] / r["plain"]["seconds"] for r in rounds]
    print(f"ours / plain: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; goal 1.1)")


if __name__ == "__main__":
    main()
