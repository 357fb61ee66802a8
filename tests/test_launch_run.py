"""Real training of tiny models through torchrun: what is left behind, and what happens when it fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.base_model import overrides, prepare, remove_prepared, restore_dropout
from launch.cli import app
from launch.finish import LoadFailed, load_test, losses, restore_files
from launch.run import move_aside
from launch.runlog import tail

REPO = Path(__file__).resolve().parent.parent
TRAINING = 240  # seconds; only a hanging run needs as long
ENDLESS: dict[str, Any] = {"epochs": 100_000, "arguments": {"save_steps": 900_000}}


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "query": f"what is number {i} 焊接",
            "pos": [f"number {i} is the welding current"],
            "neg": [f"coffee {i} is dark", f"水箱 {i}", "the tank"],
            "pos_scores": [6.5],
            "neg_scores": [-2.0, -4.5, 0.5],
        }
        for i in range(count)
    ]


def write(folder: Path, model: Path, count: int = 16, **keys: object) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(count)), encoding="utf-8")
    settings: dict[str, object] = {"model": str(model), "train_data": "train.jsonl", "output": "out/tuned"}
    settings |= {"batch_size": 4, "train_group_size": 3, "epochs": 1, "learning_rate": 1e-4}
    settings |= {"query_max_len": 16, "passage_max_len": 24, "hardware": {"device": "cpu"}} | keys
    (folder / "launch.yaml").write_text(json.dumps(settings))
    return folder / "launch.yaml"


def start(*words: object, nohup: bool = False) -> subprocess.Popen[str]:
    """Args: nohup: as that command starts it, whatever the tests themselves run under."""
    command = [sys.executable, "-m", "launch.cli", *map(str, words)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    hangup = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    out: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, env=env, preexec_fn=hangup, **out)


def launch(*words: object) -> tuple[int, str, str]:
    process = start(*words)
    out, err = process.communicate(timeout=TRAINING)
    return process.returncode, out, err


def training(process: subprocess.Popen[str], log: Path) -> list[Any]:
    """The processes below a `bge-launch run`, once it has trained a step."""
    import psutil

    deadline = time.monotonic() + TRAINING
    while not (log.exists() and "'loss'" in log.read_text("utf-8", "replace")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # the supervisor, torchrun and its worker
    return list(family)


def alive(family: list[Any]) -> list[Any]:
    import psutil

    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def write_dev(folder: Path) -> None:
    """An eval set of three questions, as bge-factory writes it."""
    folder.mkdir()
    texts = [f"number {i} is the welding current" for i in range(3)]
    for name, field in (("corpus.jsonl", texts), ("queries.jsonl", [f"what is number {i}?" for i in range(3)])):
        lines = [json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(field)]
        (folder / name).write_text("".join(lines))
    (folder / "qrels.tsv").write_text("".join(f"{i}\t{i}\t1\n" for i in range(3)))


def half(model: Path, folder: Path) -> Path:
    """A copy of a model with weights in half precision, as many are published."""
    from transformers import AutoModel

    shutil.copytree(model, folder)
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    return folder


# The parts


def test_prepared_folder_is_the_model_without_dropout(tmp_path: Path, models: Path) -> None:
    from transformers import AutoModel

    changed = overrides(models / "bert", "cpu")
    prepare(models / "bert", tmp_path / "base", changed)
    model = AutoModel.from_pretrained(tmp_path / "base")
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0
    assert AutoModel.from_pretrained(models / "bert").config.hidden_dropout_prob == 0.1
    remove_prepared(tmp_path / "base")
    assert not (tmp_path / "base").exists()
    assert (models / "bert" / "model.safetensors").exists()
    assert overrides(models / "bert", "cuda") == {}


def test_prepared_folder_with_a_users_file_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        remove_prepared(tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_dropout_that_the_base_does_not_write_down_is_the_default_again(tmp_path: Path) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    base.mkdir()
    tuned.mkdir()
    (base / "config.json").write_text('{"model_type": "bert", "hidden_dropout_prob": 0.2}')
    (tuned / "config.json").write_text(
        '{"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}'
    )
    restore_dropout(base, tuned)
    assert json.loads((tuned / "config.json").read_text()) == {"model_type": "bert", "hidden_dropout_prob": 0.2}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sentence_transformers_pools_as_trained_even_if_the_base_never_said(
    tmp_path: Path, models: Path, pooling: str
) -> None:
    from sentence_transformers import SentenceTransformer

    for name in ("base", "tuned"):
        shutil.copytree(models / "bert", tmp_path / name)
        (tmp_path / name / "modules.json").unlink()
        shutil.rmtree(tmp_path / name / "1_Pooling")
    restore_files(tmp_path / "base", tmp_path / "tuned", pooling)
    model = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    assert f"'pooling_mode': '{pooling}'" in str(model) or f"pooling_mode_{pooling}_token" in str(model)
    assert model.encode(["焊接"]).shape == (1, 64)


def test_files_of_the_tuned_model_are_never_overwritten(tmp_path: Path, models: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    restore_files(models / "bert", tmp_path, "mean")
    assert (tmp_path / "modules.json").read_text() == "[]"
    assert (tmp_path / "1_Pooling" / "config.json").is_file()


def test_load_test_finds_broken_weights(tmp_path: Path, models: Path) -> None:
    from safetensors.torch import save_file

    load_test(models / "m3", "m3-unified")
    shutil.copytree(models / "bert", tmp_path / "nan")
    broken = {k: v * float("nan") for k, v in weights(tmp_path / "nan").items()}
    save_file(broken, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match="not finite"):
        load_test(tmp_path / "nan", "base")
    (tmp_path / "nan" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(LoadFailed, match="does not load"):
        load_test(tmp_path / "nan", "base")


def test_old_output_is_moved_to_a_free_name(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "tuned").mkdir()
        (tmp_path / "tuned" / "model").write_text(text)
        move_aside(tmp_path / "tuned")
    assert (tmp_path / "tuned.old-1" / "model").read_text() == "one"
    assert (tmp_path / "tuned.old-2" / "model").read_text() == "two"
    assert move_aside(tmp_path / "tuned") is None


def test_tail_keeps_the_cause_and_leaves_out_torchruns_report(tmp_path: Path) -> None:
    bar = "  0%|  | 0/9\r 50%|# | 4/9\r 55%|# | 5/9\n"
    report = "E1121 api.py:1002] failed (exitcode: 1) local_rank: 0\n" + "noise\n" * 50
    (tmp_path / "log").write_text("old\n" * 50 + bar + "ZeroDivisionError: division by zero\n" + report)
    lines = tail(tmp_path / "log").splitlines()
    assert len(lines) == 30
    assert lines[-3:] == ["old", " 55%|# | 5/9", "ZeroDivisionError: division by zero"]


def test_losses_of_both_transformers_formats(tmp_path: Path) -> None:
    five = "{'loss': '2.5', 'epoch': '1'}\r{'loss': '1.5'} {'train_runtime': '1', 'train_loss': '2'}"
    four = "{'loss': 2.5, 'epoch': 1}\n{'loss': 1.5}\n{'train_loss': 2.0}"
    assert losses(tmp_path, five) == losses(tmp_path, four) == {"first": 2.5, "last": 1.5, "mean": 2.0}
    assert losses(tmp_path, "{'loss': '-inf'} {'loss': 'nan'} {'loss': 0.5}") == {
        "first": None,
        "last": 0.5,
        "mean": None,
    }
    assert losses(tmp_path, "") == {"first": None, "last": None, "mean": None}


# Training


@pytest.mark.slow
def test_training_bert_on_one_process(tmp_path: Path, models: Path) -> None:
    """One run looked at from all sides, because each costs half a minute."""
    import torch
    from sentence_transformers import SentenceTransformer

    base = half(models / "bert", tmp_path / "half")
    write_dev(tmp_path / "dev")
    config = write(tmp_path, base, query_instruction="query: ", dev="dev")
    tuned = tmp_path / "out" / "tuned"
    tuned.mkdir(parents=True)
    (tuned / "precious").write_text("a week of training")
    assert CliRunner().invoke(app, ["run", str(config)]).exit_code == 2
    assert (tuned / "precious").exists()

    code, out, err = launch("run", config, "--overwrite")
    assert code == 0, err
    assert (tmp_path / "out" / "tuned.old-1" / "precious").read_text() == "a week of training"
    assert f"tuned model: {tuned}" in out
    assert "4/4" in out and "'loss'" in out  # the progress bar and the losses were streamed

    manifest = json.loads((tuned / "launch.json").read_text())
    shown = CliRunner().invoke(app, ["show", str(config)]).stdout
    assert shlex.split(shown.replace("\\\n", ""))[-len(manifest["argv"]) :] == manifest["argv"]
    assert manifest["exit_code"] == 0 and manifest["seconds"] > 0 and len(manifest["data"][0]["sha256"]) == 64
    assert 0 < manifest["loss"]["last"] < 100
    assert (manifest["updates"], manifest["updates_planned"], manifest["resumed_from"]) == (4, 4, None)
    assert 0 < manifest["changed"]["encoder"] < 1 and f"changed by: encoder {manifest['changed']['encoder']:.2%}" in out
    assert "'tokens_per_second'" in out and "'step': '3/4'" in out and "'time_left'" in out
    assert {row["model"] for row in manifest["dev"]["rows"]} >= {"base", "tuned"} and manifest["dev"]["queries"] == 3
    assert "nDCG" in out or "ndcg" in out  # the table
    assert "'train_loss'" in (tuned / "launch.log").read_text()

    assert json.loads((tuned / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    assert not (tuned / ".cache").exists() and not list(tmp_path.glob("out/.*"))
    before, after = weights(base), weights(tuned)
    assert before.keys() == after.keys()
    assert {str(w.dtype) for w in before.values()} == {"torch.float16"}
    assert {str(w.dtype) for w in after.values()} == {"torch.float32"}
    assert json.loads((tuned / "config.json").read_text())["dtype"] == "float32"
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(before[name], after[name].half())
    assert SentenceTransformer(str(tuned), device="cpu").encode(["焊接"]).shape == (1, 64)


@pytest.mark.slow
def test_two_ranks_train_all_three_heads_of_m3(tmp_path: Path, models: Path) -> None:
    import torch
    from FlagEmbedding import BGEM3FlagModel

    hardware = {"device": "cpu", "nproc_per_node": 2}
    config = write(tmp_path, models / "m3", recipe="m3-unified", hardware=hardware, arguments={"warmup_ratio": 0.1})
    code, out, err = launch("run", config)
    assert code == 0, err
    assert "translated" in out
    tuned = tmp_path / "out" / "tuned"
    assert json.loads((tuned / "launch.json").read_text())["batch"]["in_batch_negatives"] == 21
    assert "2/2" in out
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        before, after = (torch.load(f / name, weights_only=True)["weight"] for f in (models / "m3", tuned))
        assert not torch.equal(before, after), name
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (tuned / name).read_bytes() == (models / "m3" / name).read_bytes()
    assert not (tmp_path / "out" / ".tuned-base").exists()
    model = BGEM3FlagModel(str(tuned), use_fp16=False, devices="cpu")
    vectors = model.encode(["焊接", "coffee"], return_dense=True, return_sparse=True, return_colbert_vecs=True)
    assert vectors["dense_vecs"].shape == (2, 64)


@pytest.mark.slow
def test_a_failed_run_shows_the_cause_and_the_log(tmp_path: Path, models: Path) -> None:
    """optim_args that only the optimizer refuses: nothing before the training can know."""
    config = write(tmp_path, models / "bert", arguments={"lr_scheduler_kwargs": '{"no_such_key": 1}'})
    code, _, err = launch("run", config)
    tuned = tmp_path / "out" / "tuned"
    assert code == 1
    assert err.count("error: training failed with exit code 1") == 1
    assert str(tuned / "launch.log") in err and "no_such_key" in err
    assert "launch/run.py" not in err  # no traceback of our own
    assert json.loads((tuned / "launch.json").read_text())["exit_code"] == 1
    assert not (tmp_path / "out" / ".tuned-base").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_every_process(tmp_path: Path, models: Path, number: signal.Signals) -> None:
    nohup = number == signal.SIGTERM  # which then ignores a terminal that is gone
    process = start("run", write(tmp_path, models / "bert", **ENDLESS), nohup=nohup)
    family = training(process, tmp_path / "out" / "tuned" / "launch.log")
    if nohup:
        process.send_signal(signal.SIGHUP)
    process.send_signal(number)
    _, err = process.communicate(timeout=TRAINING)
    assert process.returncode == 128 + number
    step = re.search(r"checkpoint-(\d+) is complete: bge-launch resume", err)
    assert f"error: stopped by {number.name}" in err and step
    assert not alive(family)
    manifest = json.loads((tmp_path / "out" / "tuned" / "launch.json").read_text())
    assert (manifest["exit_code"], manifest["updates"], manifest["trained"]) == (128 + number, int(step[1]), False)
    assert not (tmp_path / "out" / ".tuned-base").exists()
