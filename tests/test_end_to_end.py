"""The whole line on real parts: documents → embedded LLM → train.jsonl → two-rank torchrun of m3-unified → evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_build import build, write_config
from tests.tiny_models import make_tiny_m3

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def line(tmp_path_factory, smollm_gguf, minilm_en):
    """Build on a real encoder and a real LLM, then train a tiny m3 on the result with two ranks."""
    folder = tmp_path_factory.mktemp("line")
    done = build(write_config(folder, smollm_gguf, minilm_en), folder / "run")
    assert done.returncode == 0, done.stderr
    base = make_tiny_m3(folder / "tiny-m3")
    (folder / "launch.yaml").write_text(
        yaml.safe_dump(
            {
                "recipe": "m3-unified",
                "model": str(base),
                "train_data": "run/train.jsonl",
                "output": "run/tuned",
                "hardware": {"device": "cpu", "nproc_per_node": 2},
                "epochs": 4,
                "learning_rate": 1e-3,
                "batch_size": 1,
                "train_group_size": 3,
                "query_max_len": 32,
                "passage_max_len": 64,
            }
        )
    )
    command = [sys.executable, "-m", "launch.cli", "run", str(folder / "launch.yaml")]
    trained = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-3000:]
    return folder, base, trained


def test_the_training_really_ran_on_two_ranks_and_the_loss_fell(line):
    folder, _, trained = line
    said = trained.stdout + trained.stderr
    assert "--nproc_per_node 2" in said and "FlagEmbedding.finetune.embedder.encoder_only.m3" in said
    manifest = json.loads((folder / "run/tuned/launch.json").read_text())
    assert manifest["loss"]["last"] < manifest["loss"]["first"]


def test_base_and_tuned_are_measured_in_all_four_modes_beside_bm25(line):
    folder, base, _ = line
    run = folder / "run"
    command = [sys.executable, "-m", "factory.cli", "evaluate", str(run / "eval")]
    command += ["--model", f"base={base}", "--model", f"tuned={run / 'tuned'}", "--passage-max-length", "128"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    for word in ("BM25", "base", "tuned", "dense", "sparse", "colbert", "sum", "nDCG@10"):
        assert word.lower() in done.stdout.lower(), done.stdout
    evaluation = (run / "evaluation.json").read_text(encoding="utf-8")
    tuned_dense = json.loads(evaluation)
    assert tuned_dense
    page = (run / "report.html").read_text(encoding="utf-8")
    assert (
        "tuned" in page
        and "http://" not in page.replace("http://www.w3.org", "")
        and "https://" not in page.replace("https://www.w3.org", "")
    )


def test_the_tuned_folder_is_found_complete_by_sentence_transformers_too(line):
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(line[0] / "run/tuned"), device="cpu").encode(["焊缝发黑", "sour espresso"])
    assert vectors.shape[0] == 2 and abs(vectors).sum() > 0
