"""Runs that are stopped, killed or torn, and what `bge-launch resume` makes of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.checkpoints import newest
from launch.cli import app
from launch.plan import plan_file
from tests.test_launch_run import TRAINING, launch, start, weights, write
from tests.tiny_models import make_tiny_bert, make_tiny_m3

TWO_RANKS = {"device": "cpu", "nproc_per_node": 2}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("bert"))


def when(process: subprocess.Popen[str], true: Callable[[], Any]) -> None:
    """Waits until something holds of a run that goes on."""
    deadline = time.monotonic() + TRAINING
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_rank(process: subprocess.Popen[str], rank: int) -> None:
    import psutil

    for child in psutil.Process(process.pid).children(recursive=True):
        if "launch.worker" in child.cmdline() and child.environ().get("RANK") == str(rank):
            child.kill()
            return
    raise AssertionError(f"no rank {rank}")


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TRAINING)
    return process.returncode, out, err


def torn_copy(checkpoint: Path) -> Path:
    """The checkpoint of the next step, killed while its optimizer was written."""
    step = int(checkpoint.name.split("-")[1]) + 1
    torn = shutil.copytree(checkpoint, checkpoint.with_name(f"checkpoint-{step}"))
    state = json.loads((torn / "trainer_state.json").read_text())
    (torn / "trainer_state.json").write_text(json.dumps(state | {"global_step": step}))
    os.truncate(torn / "optimizer.pt", (torn / "optimizer.pt").stat().st_size - 100)
    return torn


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_ends_as_if_nothing_had_been(tmp_path: Path, bert: Path) -> None:
    """Two ranks without DeepSpeed: SIGTERM, a torn checkpoint, resume, kill -9, resume, the end.

    An epoch is one step: within an epoch the trainer resumes with the same rows, but the loader, which is a
    batch ahead, draws their negatives anew.
    """
    import torch

    (tmp_path / "whole").mkdir()
    keys: dict[str, Any] = {"count": 8, "epochs": 120, "hardware": TWO_RANKS, "learning_rate": 1e-3}
    code, _, err = launch("run", write(tmp_path / "whole", bert, **keys))
    assert code == 0, err

    config, tuned = write(tmp_path, bert, **keys), tmp_path / "out" / "tuned"
    log = tuned / "launch.log"

    def said(words: str, times: int = 1) -> bool:
        return log.exists() and log.read_text("utf-8", "replace").count(words) >= times

    process = start("run", config)
    when(process, lambda: said("'loss'", 5))
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    found = re.search(r"(checkpoint-\d+) is complete: bge-launch resume (\S+)", err)
    assert code == 128 + signal.SIGTERM and found and found[2] == str(config)
    assert not (tuned / "model.safetensors").exists()  # half a training is no tuned model
    torn = torn_copy(tuned / found[1])

    data = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(data.replace("coffee", "tea"))
    refused = CliRunner().invoke(app, ["resume", str(config)])
    assert "the training data" in str(refused.exception) and "train.jsonl" in str(refused.exception)
    (tmp_path / "train.jsonl").write_text(data)

    logged = log.read_text("utf-8", "replace").count("'loss'")
    process = start("resume", config)
    when(process, lambda: said("'loss'", logged + 5))
    kill_rank(process, 1)
    code, out, err = end(process)
    assert code == 1 and "rank 1 was ended by SIGKILL" in err
    assert f"{torn.name} is torn (optimizer.pt): skipped" in out and f"going on from {found[1]}" in out
    assert f"{found[1]} is complete: bge-launch resume" in err

    code, out, err = launch("resume", config)
    assert code == 0, err
    manifest = json.loads((tuned / "launch.json").read_text())
    assert (manifest["updates"], manifest["resumed_from"], manifest["exit_code"]) == (120, found[1], 0)
    assert said("going on from", 2)  # one log of all three
    one, other = weights(tmp_path / "whole" / "out" / "tuned"), weights(tuned)
    assert all(torch.equal(one[name], other[name]) for name in one)

    code, out, _ = launch("resume", config)
    assert code == 0 and "finished" in out and "120 updates" in out


@pytest.mark.slow
def test_m3_under_zero_1_goes_on_after_kill_9(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    import numpy as np
    from FlagEmbedding import BGEM3FlagModel
    from sentence_transformers import SentenceTransformer

    saving = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    keys: dict[str, Any] = {"recipe": "m3-unified", "deepspeed": "stage1", "hardware": TWO_RANKS, "arguments": saving}
    config = write(tmp_path, make_tiny_m3(tmp_path / "m3"), count=48, epochs=10, **keys)
    tuned = tmp_path / "out" / "tuned"
    process = start("run", config)
    when(process, lambda: newest(tuned, 2, 1)[0])
    kill_rank(process, 0)
    code, _, err = end(process)
    assert code == 1 and "rank 0 was ended by SIGKILL" in err and "is complete: bge-launch resume" in err

    code, out, err = launch("resume", config)
    assert code == 0, err
    manifest = json.loads((tuned / "launch.json").read_text())
    assert re.fullmatch(r"checkpoint-\d+", manifest["resumed_from"]) and manifest["resumed_from"] in out
    assert manifest["updates"] == manifest["updates_planned"] == 60
    assert len(manifest["deepspeed"]["sha256"]) == 64
    assert manifest["deepspeed"]["settings"]["zero_optimization"]["stage"] == 1
    assert manifest["changed"].keys() == {"encoder", "colbert_linear", "sparse_linear"}
    assert all(0 < share < 1 for share in manifest["changed"].values())
    texts = ["What is the welding current?", "焊接"]
    flag = BGEM3FlagModel(str(tuned), use_fp16=False, devices="cpu").encode(texts)["dense_vecs"]
    other = SentenceTransformer(str(tuned), device="cpu").encode(texts, normalize_embeddings=True)
    assert np.abs(flag - other).max() < 1e-4


# Without a training


def test_only_a_stopped_run_of_the_same_plan_is_gone_on_with(tmp_path: Path, bert: Path) -> None:
    from launch import manifest

    config = write(tmp_path, bert)
    nothing = CliRunner().invoke(app, ["resume", str(config)])
    assert "no launch.json" in str(nothing.exception)

    plan = plan_file(config)
    plan.output.mkdir(parents=True)
    manifest.write(plan, exit_code=1, error="killed")
    before = manifest.stopped(plan)
    manifest.same_run(before, plan)
    for keys, words in (
        ({"batch_size": 2}, "queries_per_step: 4, now 2"),
        ({"learning_rate": 2e-4}, "learning_rate: 0.0001, now 0.0002"),
        ({"hardware": TWO_RANKS}, "processes: 1, now 2"),
        ({"deepspeed": "stage0"}, "the DeepSpeed file"),
    ):
        with pytest.raises(ValueError, match="another one") as caught:
            manifest.same_run(before, plan_file(write(tmp_path, bert, **keys)))
        assert words in str(caught.value)
    manifest.same_run(before, plan_file(write(tmp_path, bert, arguments={"logging_steps": 7, "save_total_limit": 1})))
    copied = shutil.copytree(bert, tmp_path / "moved")
    manifest.same_run(before, plan_file(write(tmp_path, copied)))
    with open(copied / "model.safetensors", "ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match="the model"):
        manifest.same_run(before, plan_file(write(tmp_path, copied)))


def test_resuming_by_argument_is_refused_with_the_command_that_does(tmp_path: Path, bert: Path) -> None:
    made = plan_file(write(tmp_path, bert, arguments={"resume_from_checkpoint": "out/tuned/checkpoint-5"}))
    assert ["bge-launch resume" in p.fix for p in made.problems if p.severity == "error"] == [True]
