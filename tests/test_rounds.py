"""`rounds: 2` as a user runs it: real builds, real trainings on the CPU, killed twice; what comes out, and what is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from factory.config import load_config
from factory.models import load_encoder, model_fingerprint
from factory.pipeline import CANDIDATES, KEPT, PAIRS, build
from factory.records import Example, InputError, Pair, read_records
from factory.rounds_result import decide, read_rounds
from factory.training import train
from factory.workspace import Workspace
from tests.tiny_models import make_tiny_bert

ROOT = Path(__file__).parents[1]
# Words that the tiny tokenizer knows whole: the first of each pair is asked, the second answers. Only training can tell.
SUBJECTS = [("what", "high"), ("does", "lower"), ("mean", "before"), ("the", "start"), ("welding", "how"), ("current", "long"), ("is", "coffee"), ("too", "roasted")]  # fmt: skip
FILLER = [
    "should",
    "be",
    "and",
    "at",
    "which",
    "temperature",
    "keep",
    "machine",
    "clean",
    "dry",
    "water",
    "in",
    "tank",
    "must",
    "fresh",
    "every",
    "day",
    "it",
    "you",
]
LAUNCH = {
    "recipe": "base",
    "model": "bert",
    "train_data": "its own",
    "output": "its own",
    "learning_rate": 5e-3,
    "batch_size": 10,
    "train_group_size": 3,
    "query_max_len": 16,
    "passage_max_len": 32,
    "epochs": 1,
    "hardware": {"device": "cpu"},
    "arguments": {"max_steps": 10},
}


def write(folder: Path, model: Path, launch=None, **parts) -> Path:
    """factory.yaml of 80 pairs in 8 subjects, and a launch.yaml that learns them in 10 steps."""
    draw = random.Random(1)
    rows = []
    for i in range(80):
        asked, told = SUBJECTS[i % 8]
        words = [told] * 3 + draw.sample(FILLER, 2) + [str(draw.randrange(1000, 9999)), draw.choice(FILLER)]
        rows.append({"query": f"{asked} {asked} {i}?", "text": " ".join(words)})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = {
        "input": {"path": "pairs.jsonl", "kind": "pairs"},
        "model": {"path": str(model)},
        "split": {"eval": 0.1, "dev": 0.3},
        "mine": {"top_k": 12},
        "choose": {"negatives": 3, "preset": "topk"},
        "rounds": 2,
    }
    (folder / "launch.yaml").write_text(
        yaml.safe_dump(LAUNCH | {"model": str(model)} | (launch or {}), sort_keys=False)
    )
    (folder / "factory.yaml").write_text(yaml.safe_dump(settings | parts))
    return folder / "factory.yaml"


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "factory.cli", "build", str(config), "--out", str(out)]


def finish(config: Path, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command(config, out), capture_output=True, text=True, cwd=ROOT, timeout=600)


def kill_at(point: Path, config: Path, out: Path, log: Path) -> None:
    """Builds until there is such a file, and kills the build with -9."""
    with open(log, "wb") as said:
        process = subprocess.Popen(command(config, out), cwd=ROOT, stdout=said, stderr=said)
    deadline = time.monotonic() + 500
    while not point.exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def questions(path: Path) -> set[str]:
    return {json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(factory.yaml, run folder, base model, what the last of three builds said); the first two were killed: in the
    training of round 1, and when round 2 had been mined."""
    folder = tmp_path_factory.mktemp("rounds")
    base = make_tiny_bert(folder / "bert")
    config, run = write(folder, base), folder / "run"
    kill_at(run / "rounds/1/tuned/worker.json", config, run, folder / "first.log")
    assert not (run / "rounds.json").exists()
    kill_at(run / "rounds/2" / CANDIDATES, config, run, folder / "second.log")
    assert "bge-launch run" not in (said := (folder / "second.log").read_text()), said
    so_far = read_rounds(run)
    assert so_far and not so_far.finished and so_far.best.round == 1 and len(so_far.rounds) == 1
    trained = (run / "rounds/1/tuned/model.safetensors").stat().st_mtime_ns
    done = finish(config, run)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run / "rounds/1/tuned/model.safetensors").stat().st_mtime_ns == trained
    assert not (run / "rounds/1/tuned.old-1").exists()
    return config, run, base, done


@pytest.mark.slow
def test_round_2_is_mined_with_the_tuned_model_and_trained_from_the_base(whole):
    config, run, base, _ = whole
    first, second = read_rounds(run).rounds
    tuned = run / "rounds/1/tuned"
    assert first.mined_with_fingerprint == model_fingerprint(base)
    assert second.mined_with_fingerprint == first.fingerprint == model_fingerprint(tuned) != model_fingerprint(base)
    model = load_config(config).model.model_copy(update={"path": str(tuned)})
    text = {p.id: p for p in read_records(run / KEPT, Pair)}
    passage = {json.loads(x)["id"]: json.loads(x)["text"] for x in (run / "2-passages.jsonl").read_text().splitlines()}
    found = pq.read_table(run / "rounds/2" / CANDIDATES).slice(0, 40).to_pylist()
    encode = load_encoder(model).encode
    q = encode([text[row["pair_id"]].query for row in found], "query").dense
    p = encode([passage[row["candidate_id"]] for row in found], "passage").dense
    np.testing.assert_allclose((q * p).sum(1), [row["score"] for row in found], atol=1e-4)
    assert (run / "rounds/2" / CANDIDATES).read_bytes() != (run / CANDIDATES).read_bytes()
    told = json.loads((run / "rounds/2/tuned/launch.json").read_text())
    assert told["model"] == str(base) and told["data"][0]["path"] == str(run / "rounds/2/train.jsonl")
    assert second.rows == len(read_records(run / "rounds/2/train.jsonl", Example)) and 0 < second.new_negatives <= 1


@pytest.mark.slow
def test_what_is_held_out_is_in_no_training_file(whole):
    _, run, _, _ = whole
    passages = [json.loads(x) for x in (run / "2-passages.jsonl").read_text().splitlines()]
    held = {p["text"] for p in passages if p["split"] != "train"}
    asked = {name: questions(run / name / "queries.jsonl") for name in ("dev", "eval")}
    assert (
        len(asked["dev"]) == read_rounds(run).development.questions > 15
        and asked["eval"]
        and not asked["dev"] & asked["eval"]
    )
    for file in ("train.jsonl", "rounds/2/train.jsonl"):
        for row in read_records(run / file, Example):
            assert row.query not in asked["dev"] | asked["eval"] and not held & {*row.pos, *row.neg}


@pytest.mark.slow
def test_the_numbers_decide_and_the_winner_is_where_it_is_said_to_be(whole):
    config, run, base, done = whole
    result, rule = read_rounds(run), load_config(config).rounds
    assert result.finished and result.base.folder == str(base)
    for r in result.rounds:
        verdict = decide(r.round, r.to_before, rule)
        assert (r.kept, r.verdict, r.reason) == (verdict.kept, verdict.why, verdict.reason)
        measured = json.loads((run / f"rounds/{r.round}/evaluation.json").read_text())
        dense = {row["model"]: row["metrics"]["ndcg@10"] for row in measured["rows"] if row["mode"] == "dense"}
        assert r.score.value == pytest.approx(dense["tuned"], abs=1e-6)
        assert result.base.score.value == pytest.approx(dense["base"], abs=1e-6)
        change = measured["differences"][0]["metrics"]["ndcg@10"]
        assert [r.to_base.low, r.to_base.high] == pytest.approx([change["low"], change["high"]], abs=1e-5)
    first, second = result.rounds
    assert first.kept and first.to_base.low > 0.05
    assert second.to_before.value == pytest.approx(second.score.value - first.score.value)
    best = second if second.kept else first
    assert result.best.round == best.round and (run / result.best.link).resolve() == (run / best.tuned).resolve()
    assert f"best model:    {run / 'best'}" in done.stderr and best.reason in (run / "rounds.json").read_text()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"Best: round {best.round}" in page and f"{100 * second.score.value:.1f}" in page


@pytest.mark.slow
def test_a_second_build_trains_nothing_even_in_another_place_and_one_without_rounds_forgets_them(whole, tmp_path):
    config, run, base, _ = whole
    moved = shutil.copytree(run, tmp_path / "moved", symlinks=True)
    again = finish(config, moved)
    assert again.returncode == 0 and again.stderr.count("unchanged, kept") == 8 + 2 + 6, again.stderr
    assert (moved / "rounds.json").read_bytes() == (run / "rounds.json").read_bytes()
    assert os.readlink(moved / "best") == os.readlink(run / "best")
    build(load_config(write(tmp_path, base, rounds=1, split={"eval": 0.1, "dev": 0.3})), moved, lambda _: None)
    assert not (moved / "rounds.json").exists() and not (moved / "best").is_symlink()
    assert (moved / "rounds/1/tuned/model.safetensors").exists() and 'id="rounds"' not in (
        moved / "report.html"
    ).read_text()


@pytest.mark.slow
def test_a_training_that_fails_is_told_with_its_code_and_the_end_of_its_log(tmp_path):
    base = make_tiny_bert(tmp_path / "bert")
    rows = [{"query": f"what is {i}?", "pos": [f"number {i}"], "neg": ["coffee", "water"]} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))  # of 64 dimensions: no model
    settings = LAUNCH | {
        "model": str(base),
        "train_data": [str(tmp_path / "train.jsonl")],
        "output": str(tmp_path / "1/tuned"),
    }
    with Workspace(tmp_path / "1", {}, print) as place, pytest.raises(InputError) as failed:
        train(place, settings, print)
    said, log = str(failed.value), tmp_path / "1/tuned/launch.log"
    assert (
        "the training ended with exit code 1; the end of its log" in said
        and said.startswith(str(log))
        and "delete" in said
    )
    assert log.read_text(errors="replace").strip().splitlines()[-1].split("\r")[-1].strip() in said


@pytest.mark.parametrize(
    ("launch", "parts", "says"),
    [
        ({"model": "elsewhere"}, {}, "launch.yaml:2: it trains {folder}/elsewhere, but factory.yaml's model.path is"),
        ({"query_instruction": "query: "}, {}, "launch.yaml:15: query_instruction is 'query: ', but factory.yaml's"),
        ({"recipe": "reranker"}, {}, "launch.yaml:1: recipe reranker makes no model that could mine"),
        ({"batchsize": 3}, {}, "launch.yaml:15: bge-launch cannot train with it"),
        ({"hardware": {"nnodes": 2}}, {}, "the plan is for 2 nodes"),
        ({"train_data": ["a.jsonl", "b.jsonl"]}, {}, "launch.yaml:3: of these 2 training files none is this run's"),
        ({}, {"rounds": {"count": 2, "launch": "nowhere.yaml"}}, "nowhere.yaml: no such file, and rounds train a model"),
        ({}, {"split": {"dev": 0.005}}, "(near-copies counted once) 1 is held out for dev/, a share of 0.005"),
    ],
)  # fmt: skip
def test_what_could_not_be_trained_or_compared_stops_before_anything_is_asked(tmp_path, launch, parts, says):
    base = make_tiny_bert(tmp_path / "bert")
    config = load_config(write(tmp_path, base, launch, **parts))
    with pytest.raises(InputError) as refused:
        build(config, tmp_path / "run", lambda _: None)
    assert says.format(folder=tmp_path) in str(refused.value) and str(tmp_path / "run/rounds/.") not in str(
        refused.value
    )
    assert not (tmp_path / "run" / PAIRS).exists()


def test_a_launch_file_that_is_no_yaml_is_told_by_line(tmp_path):
    base = make_tiny_bert(tmp_path / "bert")
    config = load_config(write(tmp_path, base))
    (tmp_path / "launch.yaml").write_text("recipe: base\nmodel: [bert\nepochs: 1\n")
    with pytest.raises(InputError, match=r"launch\.yaml:3: not valid YAML"):
        build(config, tmp_path / "run", lambda _: None)


def test_too_few_questions_on_dev_are_told_when_the_rows_are_done(tmp_path):
    base = make_tiny_bert(tmp_path / "bert")
    config = load_config(write(tmp_path, base, split={"eval": 0, "dev": 0.08}))
    with pytest.raises(InputError, match=r"[2-9] questions are left in dev/.*that takes 10 or more"):
        build(config, tmp_path / "run", lambda _: None)
    assert (tmp_path / "run/train.jsonl").is_file() and (tmp_path / "run/report.html").is_file()
