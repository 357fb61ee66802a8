"""bge-m3's three heads on a small encoder that has none: trained by the recipe m3-unified on a build's data, beside BM25.

    python -m benchmarks.heads COLLECTION/cjrc --run RUN --model e5-small --out ~/bench/heads-cjrc \
      --query-instruction "query: " --passage-instruction "passage: "

RUN is a finished build on the collection (benchmarks/collection.py makes one). The heads do not start from random numbers: ColBERT's
is the identity, so that it compares the encoder's own tokens; the sparse head is a ridge regression from the encoder's vector of a
token to that token's BM25 idf in RUN's passages, scaled so that a training question and its own passage have OWN on average. Both
are measured as they start and after the training. Resumable: a model that is trained is not trained again.
The trainer's sparse head fills [passages of a step, tokens, words of the vocabulary]: with e5-small's 250,037 words 20 passages of
256 tokens take 15 GiB, 40 did not fit 24.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from benchmarks.collection import call
from benchmarks.common import parse
from benchmarks.training import training_parser
from factory.records import Passage, read_lines, read_records
from launch.base_model import read_json
from launch.manifest import finished

OWN = 0.25  # about what bge-m3's own sparse score of a question and its passage is
FITTED = 300  # passages, and their questions, that the regression sees


def main() -> None:
    p = training_parser(__doc__, passage_max_length=512, group_size=8, batch_size=4)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--weights", nargs="+", default=["0.4,0.2,0.4"], help="of dense, sparse and ColBERT, for each sum")
    a = parse(p)
    start = a.out.resolve() / "start"
    if not start.is_dir():
        rows = [row for _, row in read_lines(a.run / "train.jsonl")]
        corpus = [p.text for p in read_records(a.run / "2-passages.jsonl", Passage)]
        with_heads(a.model.expanduser(), start, corpus, rows, (a.query_instruction, a.passage_instruction))
    launch = {
        "recipe": "m3-unified",
        "model": str(start),
        "train_data": str((a.run / "train.jsonl").resolve()),
        "output": "tuned",
        "query_instruction": a.query_instruction,
        "passage_instruction": a.passage_instruction,
        "epochs": a.epochs,
        "learning_rate": a.learning_rate,
        "temperature": a.temperature,
        "batch_size": a.batch_size,
        "train_group_size": a.group_size,
        "passage_max_len": a.passage_max_length,
        "arguments": {"bf16": True} if a.bf16 else {},
    }
    (a.out / "launch.yaml").write_text(yaml.safe_dump(launch), encoding="utf-8")
    if not finished(read_json(a.out / "tuned" / "launch.json")):
        call("launch.cli", "run", a.out / "launch.yaml")
    models = ["--model", f"start={start}", "--model", f"tuned={a.out / 'tuned'}"]
    options = [f"--query-instruction={a.query_instruction}", f"--passage-instruction={a.passage_instruction}"]
    options += [f"--weights={w}" for w in a.weights]
    call("factory.cli", "evaluate", a.collection, *models, *options, "--out", a.out)


def with_heads(
    model: Path, folder: Path, corpus: list[str], rows: list[dict[str, Any]], instructions: tuple[str, str]
) -> None:
    """A copy of a model's folder with both heads; rows are FlagEmbedding's, with texts of the corpus as "pos"."""
    if (model / "colbert_linear.pt").exists():
        sys.exit(f"{model} has heads already")
    width = read_json(model / "config.json")["hidden_size"]
    part = shutil.copytree(model, folder.with_name(f".{folder.name}.part"), dirs_exist_ok=True)
    torch.save({"weight": torch.eye(width), "bias": torch.zeros(width)}, part / "colbert_linear.pt")
    torch.save(sparse_head(model, corpus, rows, instructions), part / "sparse_linear.pt")
    part.rename(folder)


def sparse_head(
    model: Path, corpus: list[str], rows: list[dict[str, Any]], instructions: tuple[str, str]
) -> dict[str, torch.Tensor]:
    """{"weight": (1, width), "bias": (1,)} of the regression to the tokens' idf; questions and passages weigh the same."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = AutoModel.from_pretrained(model).eval()
    found = Counter(token for text in corpus for token in set(tokenizer(text)["input_ids"]))
    n = len(corpus)
    idf = torch.tensor([math.log(1 + (n - found[t] + 0.5) / (found[t] + 0.5)) for t in range(len(tokenizer))])
    idf[tokenizer.all_special_ids] = 0
    drawn = random.Random(0).sample(rows, min(FITTED, len(rows)))
    sides = ([r["query"] for r in drawn], [r["pos"][0] for r in drawn])
    read = [
        [one(tokenizer, encoder, instruction + text) for text in texts]
        for instruction, texts in zip(instructions, sides, strict=True)
    ]
    gram, target = 0.0, 0.0
    for side in read:
        ids, vectors = (torch.cat(part) for part in zip(*side, strict=True))
        gram = gram + vectors.T @ vectors / len(ids)
        target = target + vectors.T @ idf[ids] / len(ids)
    solved = torch.linalg.solve(gram + 1e-4 * torch.eye(len(gram)), target)
    own = sum(shared(q, p, solved) for q, p in zip(*read, strict=True)) / len(drawn)
    solved = solved * math.sqrt(OWN / own)
    return {"weight": solved[None, :-1].contiguous(), "bias": solved[-1:].clone()}


def one(tokenizer: Any, encoder: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (tokens,) and vectors (tokens, width + 1) with a last column of ones."""
    words = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        vectors = encoder(**words).last_hidden_state[0]
    return words["input_ids"][0], torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1)


def shared(query: Any, passage: Any, head: torch.Tensor) -> float:
    """bge-m3's sparse score: the products of the weights of shared tokens, each token's largest."""
    weights = []
    for ids, vectors in (query, passage):
        best: dict[int, float] = {}
        for token, weight in zip(ids.tolist(), torch.relu(vectors @ head).tolist(), strict=True):
            best[token] = max(weight, best.get(token, 0))
        weights.append(best)
    return sum(weight * weights[1].get(token, 0) for token, weight in weights[0].items())


if __name__ == "__main__":
    main()
