"""bge-m3's three heads on a small encoder that has none: trained by the recipe m3-unified on a build's data, beside BM25.

    python -m benchmarks.heads COLLECTION/cjrc --run RUN --model e5-small --out ~/bench/heads-cjrc \
      --query-instruction "query: " --passage-instruction "passage: "

RUN is a finished build on the collection (benchmarks/collection.py makes one). The heads do not start from random numbers: ColBERT's
is the identity, so that it compares the encoder's own tokens, and the sparse head gives every token the same small weight. Both
are measured as they start and after the training. Resumable: a model that is trained is not trained again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml

from benchmarks.collection import call
from benchmarks.common import parse
from benchmarks.training import training_parser
from launch.base_model import read_json
from launch.manifest import finished

WEIGHT = 0.1  # of each token at the start: ten shared tokens make 0.1, a tenth of the largest cosine


def main() -> None:
    p = training_parser(__doc__, passage_max_length=512, group_size=8, batch_size=4)
    p.add_argument("--run", type=Path, required=True)
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--weights", default="0.4,0.2,0.4", help="of dense, sparse and ColBERT in the sum")
    a = parse(p)
    start = a.out.resolve() / "start"
    if not start.is_dir():
        with_heads(a.model.expanduser(), start)
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
    call("factory.cli", "evaluate", a.collection, *models, *options, f"--weights={a.weights}")


def with_heads(model: Path, folder: Path) -> None:
    """A copy of a model's folder with both heads."""
    import torch

    if (model / "colbert_linear.pt").exists():
        sys.exit(f"{model} has heads already")
    width = read_json(model / "config.json")["hidden_size"]
    part = shutil.copytree(model, folder.with_name(f".{folder.name}.part"), dirs_exist_ok=True)
    torch.save({"weight": torch.eye(width), "bias": torch.zeros(width)}, part / "colbert_linear.pt")
    torch.save({"weight": torch.zeros(1, width), "bias": torch.full((1,), WEIGHT)}, part / "sparse_linear.pt")
    part.rename(folder)


if __name__ == "__main__":
    main()
