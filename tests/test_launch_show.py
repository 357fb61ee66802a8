"""bge-launch show: every format from the command line, and a cluster.yaml that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cluster import Cluster, load_cluster
from launch.plan import LaunchPlan, command, plan_file
from launch.render import FORMATS, render

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A launch.yaml for four nodes, one for this machine's CPU, and a cluster.yaml."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert", "hidden_dropout_prob": 0}')
    (tmp_path / "train.jsonl").write_text(json.dumps({"query": "q", "pos": ["p"], "neg": ["n"]}) + "\n")
    keys = {"model": "model", "train_data": "train.jsonl", "output": "out/tuned", "pooling": "cls"}
    nodes = {"nnodes": 4, "nproc_per_node": 8, "gpu": {"memory": 80}}
    (tmp_path / "nodes.yaml").write_text(json.dumps(keys | {"hardware": nodes}))
    (tmp_path / "one.yaml").write_text(json.dumps(keys | {"hardware": {"device": "cpu"}}))
    mounts = [{"claim": "all", "path": str(tmp_path)}]
    where = {"head": "gpu-1", "job_name": "welding-m3", "image": "bge:1.4.2", "mounts": mounts, "time_limit": 90}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(where))
    return tmp_path


def show(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", "show", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120
    )


def planned(folder: Path, name: str) -> LaunchPlan:
    return plan_file(folder / name).model_copy(update={"workdir": folder})  # show runs there


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_printed_or_written_as_it_is_rendered(folder: Path, format: str) -> None:
    wanted = render(planned(folder, "nodes.yaml"), format, load_cluster(folder / "cluster.yaml"), folder / "nodes.yaml")
    words = ["nodes.yaml", "--format", format, "--cluster", "cluster.yaml"]
    printed = show(folder, *words)
    assert (printed.returncode, printed.stdout) == (0, wanted), printed.stderr
    if format == "argv":
        assert "--nnodes 4 --nproc_per_node 8 --rdzv_backend c10d" in " ".join(json.loads(wanted))
        written = show(folder, *words, "--out", "jobs/train")
        assert (written.returncode, written.stdout) == (0, "") and "wrote jobs/train" in written.stderr
        assert (folder / "jobs" / "train").read_text() == wanted
        assert [f.name for f in (folder / "jobs").iterdir()] == ["train"]


def test_without_a_cluster_one_node_is_this_very_command(folder: Path) -> None:
    made = planned(folder, "one.yaml")
    assert show(folder, "one.yaml").stdout == command(made) + "\n"
    assert json.loads(show(folder, "one.yaml", "--format", "argv").stdout) == list(made.argv)


def test_several_nodes_need_a_format_and_a_job_on_them_their_own_python(folder: Path) -> None:
    refused = show(folder, "nodes.yaml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "the plan is for 4 nodes" in refused.stderr and "--format bash, slurm, k8s or trainjob" in refused.stderr
    told = show(folder, "nodes.yaml", "--format", "slurm")
    assert told.returncode == 0 and "`activate:` in cluster.yaml" in told.stderr
    (folder / "cluster.yaml").write_text("activate: source /opt/bge/bin/activate\n")
    quiet = show(folder, "nodes.yaml", "--format", "slurm", "--cluster", "cluster.yaml")
    assert quiet.stderr == "" and "source /opt/bge/bin/activate\n" in quiet.stdout
    asked = show(folder, "nodes.yaml", "--format", "argv")
    assert asked.returncode == 2 and "set `head:` in cluster.yaml" in asked.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job_nam: x\n", "did you mean 'job_name'?"),
        ("mounts: [{clam: a, path: /a}]\n", "'mounts.0.clam' is not a known key\n  fix: did you mean 'claim'?"),
        ("mounts: [{claim: a}]\n", "mounts.0.path"),
        ("time_limit: 12h\n", "time_limit"),
        ("job_name: Upper\n", "job_name"),
        ("nnodes: 4\n", "set `hardware: {nnodes: 4}` in launch.yaml"),
        ("nproc_per_node: 8\n", "set `hardware: {nproc_per_node: 8}` in launch.yaml"),
        ("- a\n", "expected keys and values"),
        ("a: [\n", "not valid YAML"),
        (None, "no such file"),
    ],
)
def test_a_cluster_that_does_not_fit_is_explained(folder: Path, text: str | None, said: str) -> None:
    if text is None:
        (folder / "cluster.yaml").unlink()
    else:
        (folder / "cluster.yaml").write_text(text)
    done = show(folder, "nodes.yaml", "--format", "slurm", "--cluster", "cluster.yaml")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "cluster.yaml" in done.stderr and said in done.stderr


def test_an_unknown_format_or_a_place_that_cannot_be_written_is_refused(folder: Path) -> None:
    unknown = show(folder, "one.yaml", "--format", "yaml")
    assert unknown.returncode == 2 and "one of text, argv, json, bash, slurm, k8s, trainjob" in unknown.stderr
    unwritable = show(folder, "one.yaml", "--out", "train.jsonl/job")
    assert unwritable.returncode == 2 and "train.jsonl/job: " in unwritable.stderr


def test_help_teaches_a_cluster_file_that_is_one(folder: Path) -> None:
    told = show(folder, "--help").stdout
    example = told.split("all of it optional:")[1].split("bge-launch show")[0]
    known: dict[str, Any] = yaml.safe_load(example)
    assert Cluster.model_validate(known) and known.keys() == Cluster.model_fields.keys()
