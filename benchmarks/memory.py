"""launch.memory's estimate against a real GPU: trains a full-size bge-m3 with random weights for a few steps.

    python -m benchmarks.memory --out runs/memory
    python -m benchmarks.memory --out runs/memory --settings 3 9

One GPU, at best an H200 (141 GB), about 20 minutes for all settings; each result is kept in --out, so a second call
goes on where the first one stopped. Writes benchmarks/memory.md. What is measured is the largest memory that nvidia-smi
reports for a process on the GPU, every 0.2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from launch.memory import GIB, Setting, estimate, shape_of

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
CONFIG = {
    "model_type": "xlm-roberta", "vocab_size": 250_002, "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "max_position_embeddings": 8194, "type_vocab_size": 1,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def setting(recipe: Any, batch: int, group: int, length: int, **more: Any) -> Setting:
    """A setting on one GPU with questions of 64 tokens."""
    return Setting(
        recipe=recipe, precision="bf16", batch_size=batch, group_size=group, query_len=64, passage_len=length, **more
    )


SETTINGS = (
    setting("base", 8, 8, 512),
    setting("base", 64, 8, 512, checkpointing=True),
    setting("base", 16, 8, 512, zero_stage=0),
    setting("base", 2, 2, 8192, checkpointing=True),
    setting("m3-unified", 2, 8, 512, checkpointing=True),
    setting("m3-unified", 8, 8, 512, checkpointing=True),
    setting("m3-unified", 8, 8, 512),
    setting("m3-unified", 8, 8, 512, checkpointing=True, sub_batch_size=8, pad_to_multiple_of=512),
    setting("m3-unified", 2, 16, 1024),
    setting("m3-unified", 2, 3, 2048, checkpointing=True),
    setting("m3-unified", 1, 2, 8192, checkpointing=True),
    setting("m3-unified", 4, 8, 512, checkpointing=True, zero_stage=0),
    setting("m3-unified", 4, 8, 512, checkpointing=True, zero_stage=1),
)


def label(s: Setting) -> str:
    """The setting in a few words."""
    zero = "" if s.zero_stage is None else f", DeepSpeed {s.zero_stage}"
    sub = f", sub_batch_size {s.sub_batch_size}" if s.sub_batch_size else ""
    checkpointing = ", checkpointing" if s.checkpointing else ""
    return f"{s.recipe}, {s.batch_size} × {s.group_size} of {s.passage_len}{checkpointing}{sub}{zero}"


def make_model(folder: Path) -> None:
    """bge-m3's shape and heads with random weights, and a tokenizer in which each of 249,997 words is one token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    words = [f"w{i}" for i in range(CONFIG["vocab_size"] - 5)]  # type: ignore[operator]
    tokenizer = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"])}, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    named = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=8192, **{f"{k}_token": v for k, v in named.items()}
    )
    torch.manual_seed(1)
    model = XLMRobertaModel(XLMRobertaConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    fast.save_pretrained(folder)
    width = model.config.hidden_size
    torch.save(torch.nn.Linear(width, width).state_dict(), folder / "colbert_linear.pt")
    torch.save(torch.nn.Linear(width, 1).state_dict(), folder / "sparse_linear.pt")
    model.save_pretrained(folder)


def write_rows(path: Path, s: Setting, rows: int) -> None:
    """Random rows. Questions and positives are longer than the limit; negatives half to all of it: there is padding."""
    choose = random.Random(1)

    def text(tokens: int) -> str:
        return " ".join(f"w{choose.randrange(249_997)}" for _ in range(tokens))

    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            negatives = [text(choose.randint(s.passage_len // 2, s.passage_len)) for _ in range(s.group_size - 1)]
            row = {"query": text(s.query_len), "pos": [text(s.passage_len)], "neg": negatives}
            file.write(json.dumps(row) + "\n")


def write_config(folder: Path, model: Path, s: Setting) -> Path:
    """launch.yaml (JSON is YAML) and its rows in `folder`."""
    write_rows(folder / "train.jsonl", s, STEPS * s.batch_size)
    arguments: dict[str, Any] = {
        "max_steps": STEPS,
        "report_to": "none",
        "gradient_checkpointing": s.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if s.checkpointing else None,
    }
    arguments |= {k: v for k in ("sub_batch_size", "pad_to_multiple_of") if (v := getattr(s, k)) is not None}
    config = {
        "recipe": s.recipe, "model": str(model), "train_data": "train.jsonl", "output": "tuned", "pooling": "cls",
        "hardware": {"device": "cuda", "nproc_per_node": 1}, "batch_size": s.batch_size,
        "train_group_size": s.group_size, "query_max_len": s.query_len, "passage_max_len": s.passage_len,
        "deepspeed": None if s.zero_stage is None else f"stage{s.zero_stage}", "arguments": arguments,
    }  # fmt: skip
    (folder / "launch.yaml").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder / "launch.yaml"


class Watch:
    """The largest number, in MiB, that an nvidia-smi query prints every 0.2 s; 0 if it prints none."""

    def __init__(self, gpu: str, query: str):
        command = ["nvidia-smi", "-i", gpu, query, "--format=csv,noheader,nounits", "-lms", "200"]
        self.largest = 0
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.largest = max(self.largest, int(line))

    def stop(self) -> int:
        """Ends the query and gives the largest number."""
        self.process.terminate()
        self.process.wait()
        self.thread.join(5)
        return self.largest


def measure(folder: Path, model: Path, s: Setting, gpu: str) -> dict[str, Any]:
    """One training run: bytes at the peak, seconds, and the error if it failed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = write_config(folder, model, s)
    before = int(ask(gpu, "memory.used"))  # by others, or by the driver
    watches = [Watch(gpu, "--query-compute-apps=used_memory"), Watch(gpu, "--query-gpu=memory.used")]
    started = time.monotonic()
    with open(folder / "run.log", "w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "launch.cli", "run", str(config)]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    process, whole = (w.stop() for w in watches)
    shutil.rmtree(folder / "tuned", ignore_errors=True)
    result: dict[str, Any] = {
        "measured": (process or whole - before) * 2**20,  # in some containers nvidia-smi lists no processes
        "source": "process" if process else "GPU",
        "seconds": round(time.monotonic() - started),
    }
    if code:
        text = (folder / "run.log").read_text(encoding="utf-8", errors="replace")
        memory = "OutOfMemoryError" in text or "CUDA out of memory" in text
        result["error"] = "out of memory" if memory else f"exit code {code}, see {folder / 'run.log'}"
    return result


def ask(gpu: str, what: str) -> str:
    """nvidia-smi's answer; exits with one line where there is no GPU."""
    command = ["nvidia-smi", "-i", gpu, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        sys.exit("skipped: no NVIDIA GPU on this machine (nvidia-smi does not answer)")


def report(results: dict[str, dict[str, Any]], name: str) -> str:
    """Predicted against measured, as Markdown."""
    lines = [
        "# Estimated against measured memory",
        "",
        f"{name}; a random-weight bge-m3, {STEPS} steps, bf16, questions of 64 tokens. `python -m benchmarks.memory`",
        "",
        "| # | setting: batch × group of tokens | estimate, GiB | measured, GiB | deviation | largest part | peak during |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, s in enumerate(SETTINGS, 1):
        got = results.get(str(number))
        if not got:
            continue
        memory = estimate(shape_of(CONFIG), s)
        largest = max(memory.parts, key=lambda p: p.bytes)
        measured, deviation = "", got.get("error", "")
        if not deviation:
            measured = f"{got['measured'] / GIB:.1f}"
            deviation = f"{100 * (memory.total / got['measured'] - 1):+.0f} %"
        cells = [number, label(s), f"{memory.total / GIB:.1f}", measured, deviation, largest.name, memory.moment]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/memory"))
    p.add_argument("--settings", type=int, nargs="+", choices=range(1, len(SETTINGS) + 1), metavar="N")
    a = p.parse_args()
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    name = ask(gpu, "name")
    out = a.out.resolve()
    kept = out / "results.json"
    stored = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    same = {str(i): s.model_dump() for i, s in enumerate(SETTINGS, 1)}
    results = {k: v for k, v in stored.items() if v.get("setting") == same.get(k)}
    model = out / "model"
    if not (model / "model.safetensors").is_file():
        print("making the model: about a minute", flush=True)
        make_model(model)
    for number in a.settings or range(1, len(SETTINGS) + 1):
        s, key = SETTINGS[number - 1], str(number)
        if key in results and "error" not in results[key]:
            continue
        print(f"{number}: {label(s)}: {estimate(shape_of(CONFIG), s).total / GIB:.1f} GiB expected", flush=True)
        results[key] = measure(out / key, model, s, gpu) | {"setting": s.model_dump()}
        print("   " + results[key].get("error", f"{results[key]['measured'] / GIB:.1f} GiB measured"), flush=True)
        kept.write_text(json.dumps(results, indent=2), encoding="utf-8")
    text = report(results, name)
    (ROOT / "benchmarks" / "memory.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
