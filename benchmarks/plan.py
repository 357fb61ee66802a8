"""Seconds of bge-launch's plan, check and show for bge-m3 with a million rows, on 8 GPUs and on 4 nodes of 8 that are not here.

    python -m benchmarks.plan --out runs/plan

Needs 5 GB in --out for the rows, which a second call uses again (half a minute to write). Each command is a process of its
own, started as a person starts it. "first" reads the whole file, the others only what was kept of it; of those the
fastest of three is shown, since the file system has to be warm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.memory import CONFIG

ROOT = Path(__file__).resolve().parent.parent
PLANS = {"8 GPUs": {}, "4 nodes × 8 GPUs": {"nnodes": 4}}
COMMANDS = (["plan"], ["check"], ["show", "--format", "slurm"])
HAN = "焊接电流过大时应当降低否则会产生气孔和飞溅预热温度可以减少冷裂纹的产生机器必须保持清洁干燥水箱里每天都要更换"
ENGLISH = "the welding current is too high lower it before you start or the arc leaves pores and spatter in the steel"


def write_rows(path: Path, rows: int) -> None:
    """Rows of a question, its passage and seven others, half Chinese (200 characters), half English (80 words)."""
    import orjson

    choose = random.Random(1)
    texts = ["".join(choose.choices(HAN, k=200)) for _ in range(1000)]
    texts += [" ".join(choose.choices(ENGLISH.split(), k=80)) for _ in range(1000)]
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        for number in range(rows):
            query, *passages = choose.sample(texts, 9)
            passages = [f"{text} {number}" for text in passages]
            scores = [round(choose.uniform(-8, 2), 3) for _ in range(7)]
            row = {
                "query": query[:40],
                "pos": passages[:1],
                "neg": passages[1:],
                "pos_scores": [5.5],
                "neg_scores": scores,
            }
            file.write(orjson.dumps(row) + b"\n")
    new.replace(path)


def write_model(folder: Path) -> None:
    """A folder that looks like bge-m3's; nothing reads its weights here."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # whole, without a tensor
    # `check` counts tokens, so the tokenizer is a real one, as large as XLM-R's
    pieces = [("<unk>", 0.0), *((chr(0x4E00 + i % 20_000) + str(i // 20_000), -9.0) for i in range(250_001))]
    Tokenizer(Unigram(pieces, unk_id=0)).save(str(folder / "tokenizer.json"))


def seconds(command: list[str], config: Path, cache: Path) -> float:
    """One command's wall-clock; ends here if it fails."""
    started = time.monotonic()
    name, *options = command
    line = [sys.executable, "-m", "launch.cli", name, str(config), *options]
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(line)}\n{done.stderr}")
    return time.monotonic() - started


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--rows", type=int, default=1_000_000)
    a = p.parse_args()
    out = a.out.resolve()
    write_model(out / "model")
    data = out / f"train-{a.rows}.jsonl"
    if not data.is_file():
        print("writing the rows", flush=True)
        write_rows(data, a.rows)
        time.sleep(3)  # what is kept of a file that has just changed could be wrong, so it is not kept
    shutil.rmtree(out / "cache", ignore_errors=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    print(f"{a.rows:,} rows, {data.stat().st_size / 1e9:.2f} GB, {os.cpu_count()} cores, load {load:.1f} before")
    for name, hardware in PLANS.items():
        config = out / f"{name.split()[0]}.yaml"
        settings = {"recipe": "m3-unified", "model": "model", "train_data": data.name, "output": "tuned"}
        settings |= {"hardware": {"nproc_per_node": 8, "gpu": {"memory": 80}} | hardware}
        config.write_text(json.dumps(settings))
        if not (out / "cache").exists():
            print(
                f"first {COMMANDS[0][0]}, reads the file: {seconds(COMMANDS[0], config, out / 'cache'):.1f} s",
                flush=True,
            )
        for command in COMMANDS:
            best = min(seconds(command, config, out / "cache") for _ in range(3))
            print(f"{name}, {' '.join(command)}: {best:.2f} s", flush=True)


if __name__ == "__main__":
    main()
