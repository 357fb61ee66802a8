"""`bge-factory evaluate` beside figures that others published: all-MiniLM-L6-v2 on the English XQuAD, in MTEB's results.

    python -m benchmarks.published xquad.en.json --model minilm-en

xquad.en.json is the file of XQuAD's repository (github.com/google-deepmind/xquad). Queries, corpus and judgements are made of it as
MTEB's XQuADRetrieval does: each paragraph once, each question once, the paragraphs that it was asked about are relevant. The model reads
256 tokens, as its own files say. Exit code 1 if a figure differs in the fifth digit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from factory.evaluate import evaluate
from factory.settings import ModelConfig

# embeddings-benchmark/results, all-MiniLM-L6-v2 8b3219a, XQuADRetrieval.json, subset en
PUBLISHED = {
    "ndcg@1": 0.88523,
    "ndcg@3": 0.9352,
    "ndcg@5": 0.94083,
    "ndcg@10": 0.94357,
    "map@10": 0.92807,
    "mrr@10": 0.92807,
    "recall@3": 0.96793,
    "recall@5": 0.98143,
    "recall@10": 0.98987,
}
TOLERANCE = 0.00001


def write_set(source: Path, folder: Path) -> None:
    """corpus.jsonl, queries.jsonl and qrels.tsv of a SQuAD-like file."""
    articles = json.loads(source.read_text(encoding="utf-8"))["data"]
    asked = [
        (qa["question"].strip(), paragraph["context"].strip())  # as the dataset's own loader does
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    ids = [{text: i for i, text in enumerate(dict.fromkeys(side))} for side in zip(*asked, strict=True)]
    for name, of in zip(("queries", "corpus"), ids, strict=True):
        rows = (json.dumps({"_id": f"{name[0]}{i}", "text": text}) for text, i in of.items())
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    judged = dict.fromkeys(f"q{ids[0][question]}\tc{ids[1][context]}\t1" for question, context in asked)
    (folder / "qrels.tsv").write_text("\n".join(judged), encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path)
    p.add_argument("--model", type=Path, required=True)
    a = p.parse_args()
    config = ModelConfig(path=str(a.model.expanduser()), query_max_length=256, passage_max_length=256, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_set(a.source, Path(folder))
        done = evaluate(Path(folder), [("model", config)], cutoffs=(1, 3, 5, 10))
    ours = next(row.metrics for row in done.rows if row.mode == "dense")
    print(f"{done.passages} passages, {done.queries} queries\n{'metric':10} {'published':>9} {'ours':>9} difference")
    for metric, value in PUBLISHED.items():
        print(f"{metric:10} {value:9.5f} {ours[metric]:9.5f} {ours[metric] - value:+.5f}")
    if any(abs(ours[metric] - value) > TOLERANCE for metric, value in PUBLISHED.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
