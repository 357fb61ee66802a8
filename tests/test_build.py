"""The build as a user runs it: real models, kill -9 at ten points, two at once, a full disk, no network."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import yaml

from factory.export import TRAIN
from factory.pipeline import CANDIDATES, DECISIONS, DOCUMENTS, KEPT, PAIRS, PASSAGES, SCORES
from factory.records import Example, read_records
from factory.settings_questions import RuleName
from factory.validate import check_file

RULES = [*typing.get_args(RuleName)]
ROOT = Path(__file__).parents[1]
COFFEE = ROOT / "samples" / "coffee-en" / "documents"
COMMAND = [sys.executable, "-m", "factory.cli"]


def write_config(folder: Path, smollm: Path, encoder: Path, **parts) -> Path:
    settings = {
        "input": {"path": str(COFFEE)},
        "model": {"path": str(encoder)},
        "passages": {"max_tokens": 200},
        "split": {"eval": 0.3},
        # one request at a time: the reproducible mode of the embedded server
        "llm": {"model": str(smollm), "concurrency": 1, "context": 1024},
        "generate": {"questions_per_passage": 2, "max_passages": 8, "max_tokens": 120},
        # the smallest LLM copies and rambles: this test is about the plumbing, not about its questions
        "quality": {"round_trip_k": 0, "skip": RULES, "duplicate": 1.0, "duplicate_across": 1.0, "asked_of_many": 99},
        "choose": {"negatives": 3},
    }
    path = folder / "factory.yaml"
    path.write_text(yaml.safe_dump(settings | parts), encoding="utf-8")
    return path


def build(config: Path, out: Path, **options) -> subprocess.CompletedProcess:
    command = [*COMMAND, "build", str(config), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900, **options)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, smollm_gguf, minilm_en):
    """One whole build: (config, run folder)."""
    folder = tmp_path_factory.mktemp("unbroken")
    config = write_config(folder, smollm_gguf, minilm_en)
    done = build(config, folder / "run")
    assert done.returncode == 0, done.stderr
    return config, folder / "run"


def result_bytes(run: Path) -> dict[str, bytes]:
    names = [DOCUMENTS, PASSAGES, PAIRS, KEPT, TRAIN, "eval/corpus.jsonl", "eval/queries.jsonl", "eval/qrels.tsv"]
    return {name: (run / name).read_bytes() for name in names}


def test_the_training_file_is_what_flagembedding_reads_and_nothing_held_out_is_in_it(unbroken):
    _, run = unbroken
    rows = read_records(run / TRAIN, Example)
    assert len(rows) >= 3 and check_file(run / TRAIN) == (len(rows), [])
    passages = [json.loads(line) for line in (run / PASSAGES).read_text(encoding="utf-8").splitlines()]
    held_out = {p["text"] for p in passages if p["split"] == "eval"}
    assert held_out
    for row in rows:
        assert len(row.neg) == 3 and not set(row.pos) & set(row.neg)
        assert not held_out & {*row.pos, *row.neg}
    queries = {
        json.loads(line)["text"] for line in (run / "eval/queries.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert queries and not queries & {r.query for r in rows}


def test_every_row_of_every_stage_is_passed_on_or_dropped_with_a_reason(unbroken):
    _, run = unbroken
    stages = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]
    assert list(stages) == ["load", "split", "generate", "filter", "mine", "score", "choose", "export"]
    for name, stage in stages.items():
        told = [json.loads(line) for line in (run / f"dropped/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(told) == sum(stage["dropped"].values()) == stage["taken"] - stage["passed"]
        assert all(row["reason"] and row["id"] for row in told)


def test_a_second_build_does_nothing_and_a_changed_threshold_redoes_only_what_rests_on_it(unbroken, tmp_path):
    config, run = unbroken
    copy = shutil.copytree(run, tmp_path / "run")
    again = build(config, copy)
    assert again.returncode == 0 and again.stderr.count("unchanged, kept") == 8
    assert result_bytes(copy) == result_bytes(run)
    changed = yaml.safe_load(config.read_text()) | {"choose": {"negatives": 2}}
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed))
    third = build(tmp_path / "changed.yaml", copy)
    assert third.stderr.count("unchanged, kept") == 6
    assert all(len(row.neg) == 2 for row in read_records(copy / TRAIN, Example))
    changed = yaml.safe_load(config.read_text()) | {"choose": {"negatives": 2, "too_few": "drop"}}
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed))
    assert "export: unchanged" not in build(tmp_path / "changed.yaml", copy).stderr  # too few for whom: it decides that


def test_a_damaged_output_is_made_again(unbroken, tmp_path):
    config, run = unbroken
    copy = shutil.copytree(run, tmp_path / "run")
    kept = copy / KEPT
    kept.write_bytes(kept.read_bytes()[:-40])
    assert build(config, copy).returncode == 0
    assert result_bytes(copy) == result_bytes(run)


def answers_on_disk(run: Path) -> int:
    try:
        with sqlite3.connect(f"file:{run / 'cache/llm.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM answers").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_killed_at_ten_points_the_bytes_are_those_of_an_unbroken_build(unbroken, tmp_path):
    config, run = unbroken
    out = tmp_path / "run"
    points = {
        "at the start": lambda: (out / ".lock").exists(),
        "documents written": lambda: (out / DOCUMENTS).exists(),
        "passages written": lambda: (out / PASSAGES).exists(),
        "LLM server starting": lambda: (out / "logs/llm-server.log").exists(),
        "one answer": lambda: answers_on_disk(out) >= 1,
        "four answers": lambda: answers_on_disk(out) >= 4,
        "pairs written": lambda: (out / PAIRS).exists(),
        "pairs kept": lambda: (out / KEPT).exists(),
        "vectors half made": lambda: any((out / "cache/embeddings").glob("*")),
        "candidates mined": lambda: (out / CANDIDATES).exists(),
        "scored": lambda: (out / SCORES).exists(),
        "decided": lambda: (out / DECISIONS).exists(),
    }
    killed = []
    for name, reached in points.items():
        process = subprocess.Popen(
            [*COMMAND, "build", str(config), "--out", str(out)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 600
        while process.poll() is None and not reached() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed.append(name)
        assert not (out / TRAIN).exists() or killed[-1:] != [name] or check_file(out / TRAIN)[1] == []
    assert len(killed) >= 10, killed
    last = build(config, out)
    assert last.returncode == 0, last.stderr
    assert result_bytes(out) == result_bytes(run)
    assert not list(out.rglob("*.tmp"))


def test_two_builds_in_one_folder_do_not_mix(unbroken, tmp_path):
    config, run = unbroken
    copy = shutil.copytree(run, tmp_path / "run")
    from filelock import FileLock

    with FileLock(copy / ".lock"):
        second = build(config, copy)
    assert second.returncode == 2
    assert "another bge-factory works in this folder" in second.stderr
    assert result_bytes(copy) == result_bytes(run)


def test_a_folder_that_is_not_a_run_is_left_alone(unbroken, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    refused = build(unbroken[0], tmp_path)
    assert refused.returncode == 2 and "holds no run.json" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_the_next_run_goes_on(unbroken, tmp_path):
    config, run = unbroken
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        full = build(config, disk / "run")
        assert full.returncode == 2 and "disk" in full.stderr and "Traceback" not in full.stderr, full.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert build(config, disk / "run").returncode == 0
        assert result_bytes(disk / "run") == result_bytes(run)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_build_and_evaluate_need_nothing_but_loopback(unbroken, tmp_path, minilm_en):
    config, run = unbroken
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        pytest.skip("network namespaces are not allowed here")
    out = tmp_path / "run"
    factory = " ".join(COMMAND)
    script = (
        "ip link set lo up 2>/dev/null || ifconfig lo up; set -e; "
        f"{factory} build {config} --out {out}; {factory} evaluate {out}/eval --model base={minilm_en}"
    )
    done = subprocess.run(
        ["unshare", "-rn", "bash", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert result_bytes(out) == result_bytes(run)
    assert "BM25" in done.stdout or "bm25" in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input": {"path": "nowhere"}}, "no such file or folder"),
        ({"model": {"path": "nowhere"}}, "no such model folder"),
        ({"modle": {}}, "modle: is not a known key"),
        ({"choose": {"ceiling": 1.5}}, "choose.ceiling"),
        ({"generate": {"max_tokens": 900}}, "leaves no room for a passage"),
        ({"llm": {"model": "nowhere.gguf"}}, "nowhere.gguf"),
        ({"test": {"questions": "nowhere.jsonl"}}, "no such file"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_message_and_exit_code_2(tmp_path, smollm_gguf, minilm_en, change, says):
    config = write_config(tmp_path, smollm_gguf, minilm_en, **change)
    done = build(config, tmp_path / "run")
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_pairs_that_a_user_has_need_no_llm(tmp_path, minilm_en):
    rows = [f"How do I fix problem {i}?,Problem {i} in the {w} is mended by turning the {w} screw." for i, w in enumerate(["pump", "grinder", "boiler", "burr", "valve", "gasket", "lance", "scale", "hopper", "drum"])]  # fmt: skip
    (tmp_path / "pairs.csv").write_text("query,text\n" + "\n".join(rows) + "\n", encoding="utf-8-sig")
    config = tmp_path / "factory.yaml"
    settings = {
        "input": {"path": "pairs.csv", "kind": "pairs"},
        "model": {"path": str(minilm_en)},
        "choose": {"negatives": 2},
        "split": {"eval": 0.2},
    }
    config.write_text(yaml.safe_dump(settings))
    done = build(config, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    examples = read_records(tmp_path / "run" / TRAIN, Example)
    queries = (tmp_path / "run" / "eval/queries.jsonl").read_text().splitlines()
    assert len(examples) + len(queries) == 10 and len(queries) >= 1
    # another question on the same text: the passages are as before, the pairs must not be
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(pairs.read_text(encoding="utf-8-sig").replace("How do I fix", "Who mends"), encoding="utf-8")
    assert build(config, tmp_path / "run").returncode == 0
    assert all(e.query.startswith("Who mends") for e in read_records(tmp_path / "run" / TRAIN, Example))
    # nothing held out any more: what was is trained on, and is no test
    config.write_text(yaml.safe_dump(settings | {"split": {"eval": 0}}))
    done = build(config, tmp_path / "run")
    assert len(read_records(tmp_path / "run" / TRAIN, Example)) == 10
    assert not (tmp_path / "run" / "eval").exists() and "held-out set" not in done.stderr


def test_help_teaches_and_version_is_told():
    for arguments in (["--help"], ["build", "--help"], ["validate", "--help"], ["evaluate", "--help"], ["config"]):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and len(done.stdout) > 200


def test_answers_that_another_machine_gave_make_the_same_bytes(unbroken, tmp_path):
    """requests → a file → answers in another order → build: as if the LLM had been here."""
    config, run = unbroken
    with sqlite3.connect(run / "cache" / "llm.sqlite") as db:
        known = {
            request: (text, finish) for request, text, finish in db.execute("SELECT request, text, finish FROM answers")
        }
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["llm"] |= {"serve": "batch", "model": "there"}
    (tmp_path / "factory.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    out, file = tmp_path / "run", tmp_path / "requests.jsonl"

    def command(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=600)

    refused = command("build", tmp_path / "factory.yaml", "--out", out)
    assert refused.returncode == 2 and "8 answers of the LLM are missing" in refused.stderr
    asked = command("requests", tmp_path / "factory.yaml", "--out", out, "--file", file)
    assert asked.returncode == 0 and "vllm run-batch" in asked.stderr, asked.stderr
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(lines) == 8 and {x["body"].pop("model") for x in lines} == {"there"}

    def answers(lines: list) -> list:
        given = []
        for line in reversed(lines):
            text, finish = known[json.dumps(line["body"], ensure_ascii=False)]
            body = {"choices": [{"message": {"content": text}, "finish_reason": finish}]}
            given.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})
        return given

    given = answers(lines)
    failed = {"custom_id": given[0]["custom_id"], "response": {"status_code": 500}, "error": "CUDA error"}
    for number, rows in enumerate(([failed, *given[1:]], given[:1])):
        part = tmp_path / f"answers{number}.jsonl"
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        read = command("answers", part, "--out", out)
        assert read.returncode == (2 if number == 0 else 0)
        if number == 0:
            assert f'{part}:1: no answer: "CUDA error"' in read.stderr and "7 answers stored" in read.stderr
            again = command("requests", tmp_path / "factory.yaml", "--out", out, "--file", file)
            assert again.returncode == 0 and len(file.read_text("utf-8").splitlines()) == 1
    done = command("build", tmp_path / "factory.yaml", "--out", out)
    if len(known) > len(lines):  # an answer without a question in it is asked for once more
        assert done.returncode == 2 and f"{len(known) - len(lines)} answers of the LLM are missing" in done.stderr
        assert command("requests", tmp_path / "factory.yaml", "--out", out, "--file", file).returncode == 0
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for line in lines:
            line["body"].pop("model")
        part = tmp_path / "again.jsonl"
        part.write_text("".join(json.dumps(row) + "\n" for row in answers(lines)), encoding="utf-8")
        assert command("answers", part, "--out", out).returncode == 0
        done = command("build", tmp_path / "factory.yaml", "--out", out)
    assert done.returncode == 0, done.stderr
    assert result_bytes(out) == result_bytes(run)
