"""Where the curves go: beside the output, without a connection, and never to a package that is not there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from factory.records import InputError
from launch.config import load_config
from launch.contract import installed
from launch.plan import LaunchPlan, Machine, make_plan
from launch.preflight import check
from launch.trackers import add_further, environment


@pytest.fixture
def planned(tmp_path: Path, models: Path):
    def make(**keys: object) -> LaunchPlan:
        row = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
        settings = {"model": str(models / "bert"), "train_data": "train.jsonl", "output": "my run/tuned", **keys}
        (tmp_path / "launch.yaml").write_text(json.dumps(settings))
        return make_plan(load_config(tmp_path / "launch.yaml"), Machine(gpus=0, bf16=False, cores=2), installed("base"))

    return make


def words(plan: LaunchPlan) -> tuple[str, ...]:
    return next(a.words for a in plan.arguments if a.name == "report_to")


def test_tensorboard_is_the_default_and_none_is_none(planned):
    assert words(planned()) == ("tensorboard",)
    assert words(planned(trackers=[])) == ("none",)
    assert not any(name.startswith(("WANDB", "MLFLOW", "SWANLAB")) for name in planned().env)


def test_each_tracker_stays_on_this_machine_unless_its_user_says_otherwise(planned, tmp_path, monkeypatch):
    plan = planned(trackers=["tensorboard", "wandb", "mlflow", "swanlab"])
    out = tmp_path / "my run" / "tuned"
    assert words(plan) == ("tensorboard",)  # the trainer's command line takes one
    assert plan.env["BGE_LAUNCH_FURTHER_TRACKERS"] == "wandb mlflow swanlab"
    assert not [p for p in plan.problems if p.id == "argument.value"]
    assert plan.env["MLFLOW_ALLOW_FILE_STORE"] == "true"
    assert plan.env["WANDB_MODE"] == "offline" and plan.env["SWANLAB_MODE"] == "local"
    assert plan.env["WANDB_DIR"] == str(out) and plan.env["SWANLAB_LOG_DIR"] == str(out / "swanlog")
    assert plan.env["MLFLOW_TRACKING_URI"] == f"file://{tmp_path}/my%20run/tuned/mlruns"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert environment(["wandb"], out)["WANDB_MODE"] == "online"


def test_a_tracker_that_is_not_installed_is_found_before_the_training_also_in_arguments(planned, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "swanlab" else find(name, *more)
    )
    for keys in ({"trackers": ["swanlab"]}, {"arguments": {"report_to": ["tensorboard", "swanlab"]}}):
        (found,) = [p for p in check(planned(**keys)) if p.id == "tracker.missing"]
        assert found.severity == "error" and "swanlab" in found.reason and "pip install 'swanlab" in found.fix
    assert not [p for p in check(planned()) if p.id == "tracker.missing"]
    with pytest.raises(InputError, match="trackers"):
        planned(trackers=["tensorbord"])


def test_a_swanlab_that_transformers_cannot_talk_to_is_warned_of(planned, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "swanlab" or find(name, *more))
    for version, warned in (("0.7.20", False), ("0.8.0", True), ("0.10.3", True), ("1.0.0", True)):
        monkeypatch.setattr("launch.trackers.version", lambda name, version=version: version)
        assert [p.id for p in check(planned(trackers=["swanlab"])) if "tracker" in p.id] == ["tracker.version"] * warned


def test_the_worker_adds_the_further_trackers_unless_the_training_reports_to_none(monkeypatch):
    from transformers.integrations import TensorBoardCallback

    monkeypatch.setenv("BGE_LAUNCH_FURTHER_TRACKERS", "tensorboard")
    for reported, then in ((["wandb"], ["wandb", "tensorboard"]), ([], [])):
        added: list[type] = []
        trainer = SimpleNamespace(args=SimpleNamespace(report_to=reported), add_callback=added.append)
        add_further(trainer)
        assert trainer.args.report_to == then and added == [TensorBoardCallback] * bool(then)
