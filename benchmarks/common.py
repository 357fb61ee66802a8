"""What the benchmarks' command lines share: a collection, a model with its instructions, and skipping where it is not there."""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path


def collection_parser(description: str | None, *, model: bool = True) -> argparse.ArgumentParser:
    """A parser with the collection's folder, and with --model and its two instructions."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("collection", type=Path, help="folder with corpus.jsonl, queries.jsonl, qrels/test.tsv")
    if model:
        p.add_argument("--model", type=Path, required=True, help="the model's folder")
        p.add_argument("--query-instruction", default="")
        p.add_argument("--passage-instruction", default="")
    return p


def parse(p: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; ends with one line where the collection is not there, and makes the folder --out."""
    a = p.parse_args()
    if not (a.collection / "corpus.jsonl").is_file():
        sys.exit(f"skipped: no {a.collection}/corpus.jsonl")
    if "out" in a:
        a.out.mkdir(parents=True, exist_ok=True)
    return a


def peak() -> float:
    """GiB of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
