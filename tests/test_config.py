"""factory.yaml as people write it: what is read, what is refused before any work, what `config` says of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from factory.config import Config, load_config
from factory.explain import explain
from factory.pipeline import build
from factory.records import InputError
from factory.workspace import Workspace, atomic

ROOT = Path(__file__).parents[1]


def write(folder: Path, text: str) -> Path:
    path = folder / "factory.yaml"
    path.write_text("input: {path: docs}\nmodel: {path: model}\n" + text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_on_and_off_mean_what_they_say_although_yaml_reads_them_as_true_and_false(tmp_path, written, meant):
    config = load_config(write(tmp_path, f"quality: {{judge: {written}}}\njudge: {{use: {written}}}\n"))
    assert (config.quality.judge, config.judge.use) == (meant, meant)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quality: {elsewhere: 5}", "quality.judge is off: set quality.judge: on"),
        ("quality: {elsewhere: 5, judge: auto}", "llm.serve llamacpp, which judges only with on"),
        ("choose: {preset: window, window: [0.7, 0.4]}", "the smaller one first"),
        ("choose: {preset: range, range: [210, 10]}", "the smaller one first"),
        ("choose: {rules: [{when: score > 0}]}", "rules are read with preset: rules alone"),
        ("choose: {preset: rules}", "preset: rules needs rules"),
        ("generate: {types: []}", "names no kind of question"),
        ("mine: {sources: []}", "mine.sources"),
        ("rounds: true", "how many rounds at most"),
        ("choose: {celing: 0.9}", "choose.celing: is not a known key (did you mean ceiling?)"),
        ("test: {questions: $NOT_SET/q.jsonl}", "factory.yaml: variable in '$NOT_SET/q.jsonl' is not set"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_said(tmp_path, text, says):
    with pytest.raises(InputError) as told:
        load_config(write(tmp_path, text + "\n"))
    assert says in str(told.value) and "\n  fix: " in str(told.value)


def test_candidates_reach_as_deep_as_the_range_that_negatives_are_taken_from(tmp_path):
    assert load_config(write(tmp_path, "choose: {preset: range}\n")).depth == 210
    assert load_config(write(tmp_path, "choose: {preset: range}\nmine: {top_k: 300}\n")).depth == 300
    assert load_config(write(tmp_path, "")).depth == 100


def test_what_config_prints_is_a_configuration_with_every_default_and_its_limits(tmp_path):
    told = explain(Config, "# head")
    filled = told.replace("path: (required)", "path: x", 2)
    assert Config.model_validate(yaml.safe_load(filled)) == Config.model_validate(
        {"input": {"path": "x"}, "model": {"path": "x"}}
    )
    for line in (
        "questions_per_passage: 3   # asked for in one answer; more make the LLM repeat itself, and the repeats are dropped "
        "(whole number, from 1 to 10)",
        'then: "reject"   # keep: no later rule can reject it (one of reject, keep)',
    ):
        assert line in told


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"score": {"reranker": "nowhere"}}, "nowhere"),
        ({"mine": {"sources": ["sparse"]}}, "the model has no sparse vectors"),
        ({"llm": {"serve": "llamacpp", "model": "nowhere.gguf"}}, "no such model"),
        (
            {"llm": {"serve": "endpoint", "url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}},
            "variable NO_SUCH_KEY is not set",
        ),
        ({"generate": {"prompt": "mine.md"}}, "mine.md"),
    ],
)
def test_what_later_stages_lack_is_told_before_the_first(tmp_path, minilm_en, parts, says):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Water boils at 100 degrees.")
    model = tmp_path / "any.gguf"
    model.touch()
    settings = {"input": {"path": "docs"}, "model": {"path": str(minilm_en)}, "llm": {"model": str(model)}} | parts
    (tmp_path / "factory.yaml").write_text(yaml.safe_dump(settings))
    said: list[str] = []
    with pytest.raises(InputError, match=says):
        build(load_config(tmp_path / "factory.yaml"), tmp_path / "run", said.append)
    assert said == []


@pytest.mark.parametrize("command", ["requests", "try-prompt"])
def test_commands_that_need_the_other_kind_of_llm_say_so(tmp_path, command):
    serve = {"requests": "endpoint, url: 'http://127.0.0.1:9/v1'", "try-prompt": "batch, model: there"}[command]
    config = write(tmp_path, f"llm: {{serve: {serve}}}\n")
    words = [command, str(config), *(["--out", str(tmp_path / "run")] if command == "requests" else [])]
    done = subprocess.run([sys.executable, "-m", "factory.cli", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "llm.serve is" in done.stderr and "fix: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    command = [
        sys.executable,
        "-m",
        "factory.cli",
        "build",
        str(write(tmp_path, "")),
        "--out",
        str(tmp_path / "file" / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'file' / 'run'}: not a directory\n"


def test_no_report_is_written_into_a_folder_that_is_no_run(tmp_path):
    command = [sys.executable, "-m", "factory.cli", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "is no run's folder" in done.stderr and not list(tmp_path.iterdir())


def test_a_folder_is_cleared_of_what_the_dead_left_and_of_nothing_else(tmp_path):
    run = tmp_path / "run"
    with Workspace(run, {}, print):
        pass
    dead = subprocess.Popen(["true"])
    dead.wait()
    (run / f".merged.{dead.pid}.tmp").mkdir()
    (run / f".merged.{dead.pid}.tmp" / "weights").touch()
    (run / f".train.jsonl.{dead.pid}.tmp").touch()
    (run / f".a.json.{os.getppid()}.tmp").touch()
    with atomic(run / "cache" / "vectors.npy") as temporary:  # a command of another process that is at work meanwhile
        temporary.touch()
        with Workspace(run, {}, print):
            pass
    left = sorted(p.name for p in run.rglob("*") if p.is_file())
    assert left == [f".a.json.{os.getppid()}.tmp", ".lock", "vectors.npy"]
