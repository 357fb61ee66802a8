"""The whole line on a collection with human queries (BEIR layout): build, train, compare BM25, base and tuned.

    python -m benchmarks.collection COLLECTION --model FOLDER --llm FILE.gguf --out runs/cjrc --passages 500

The passages alone are the input; the human queries and judgements are used for nothing but the last table.
Each step is resumable: give the same command again. Prints the counts and seconds of each stage, then the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.common import collection_parser, parse


def main() -> None:
    p = collection_parser(__doc__)
    p.add_argument("--llm", required=True, help="a GGUF file, or the URL of a server that runs")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--passages", type=int, default=500, help="how many passages are asked about")
    p.add_argument("--epochs", type=float, default=2)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--group-size", type=int, default=2)
    a = parse(p)
    instructions = {"query_instruction": a.query_instruction, "passage_instruction": a.passage_instruction}
    llm = {"serve": "endpoint", "url": a.llm} if a.llm.startswith("http") else {"serve": "llamacpp", "model": a.llm}
    factory = {
        "input": {"path": str((a.collection / "corpus.jsonl").resolve()), "kind": "passages"},
        "model": {"path": str(a.model.expanduser().resolve()), **instructions},
        "split": {"eval": 0},
        "llm": {**llm, "context": 2048},
        "generate": {"max_passages": a.passages, "questions_per_passage": 3},
    }
    launch = {
        "recipe": "base",
        "model": str(a.model.expanduser().resolve()),
        "train_data": "run/train.jsonl",
        "output": "run/tuned",
        **instructions,
        "epochs": a.epochs,
        "learning_rate": 3e-5,
        "batch_size": a.batch_size,
        "train_group_size": a.group_size,
    }
    (a.out / "factory.yaml").write_text(yaml.safe_dump(factory, allow_unicode=True), encoding="utf-8")
    (a.out / "launch.yaml").write_text(yaml.safe_dump(launch, allow_unicode=True), encoding="utf-8")
    run = a.out / "run"
    call("factory.cli", "build", a.out / "factory.yaml", "--out", run)
    if not (run / "tuned" / "launch.json").is_file():
        call("launch.cli", "run", a.out / "launch.yaml")
    for name, stage in json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"].items():
        print(f"{name:10} {stage['seconds']:8.1f} s  {stage['counts']}  dropped {stage['dropped']}")
    models = ["--model", f"base={a.model}", "--model", f"tuned={run / 'tuned'}"]
    options = [f"--query-instruction={a.query_instruction}", f"--passage-instruction={a.passage_instruction}"]
    call("factory.cli", "evaluate", a.collection, *models, *options)


def call(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
