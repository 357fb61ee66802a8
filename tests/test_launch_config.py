"""What a person is told about launch.yaml and cluster.yaml: every key, and what is wrong with a value."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.errors import InputError
from launch.cli import app
from launch.cluster import Cluster, Mount, load_cluster
from launch.config import Gpu, Hardware, LaunchConfig, load_config


def said(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_config_explains_every_key_with_its_default_and_limits() -> None:
    lines = said("config").splitlines()
    for model in (LaunchConfig, Hardware, Gpu, Cluster, Mount):
        for name, field in model.model_fields.items():
            told = [line for line in lines if line.lstrip(" #").startswith(f"{name}:")]
            assert told and (name == "hardware" or any(f"# {field.description}" in line for line in told)), name
    [batch] = [line for line in lines if line.startswith("batch_size")]
    assert batch.startswith("batch_size: 8 ") and "whole number, from 1" in batch
    [recipe] = [line for line in lines if line.startswith("recipe")]
    assert "one of base, m3-unified, matryoshka, reranker" in recipe


def test_help_names_the_exit_codes_and_where_the_keys_are_explained() -> None:
    told = " ".join(said("--help").split())
    assert "bge-launch config" in told
    for code in ("0 done", "2 your input needs mending", "1 the training failed", "130 or 143 stopped"):
        assert code in told


EXPLAINED = "fix: .*`bge-launch config` explains every key"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        (None, EXPLAINED),
        ("- a\n", EXPLAINED),
        ("model: m\ntrain_data: d\noutput: o\nbatch_size: many\n", EXPLAINED),
        ("model: m\n", EXPLAINED),
        ("recipe: [", "fix: put a text that holds"),
    ],
)
def test_an_error_about_the_file_says_what_to_do(tmp_path: Path, text: str | None, fix: str) -> None:
    file = tmp_path / "launch.yaml"
    if text:
        file.write_text(text)
    with pytest.raises(InputError, match=fix):
        load_config(file)


def test_an_error_about_cluster_yaml_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("rdzv_port: 0\n")
    with pytest.raises(InputError, match=EXPLAINED):
        load_cluster(tmp_path / "cluster.yaml")
