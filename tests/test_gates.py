"""Gates with their exit codes on the real command line; several sets, cut vectors, wins and losses, groups."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from factory.errors import InputError
from factory.evalset import EvalSet
from factory.evaluate import Options, SetResults, _evaluation, _measured
from factory.evaluation import Change
from factory.gates import Gate, limit, requirement, verdict
from factory.groups import labels, length_classes
from factory.records import read_lines
from factory.wins import wins_and_losses
from tests.tiny_models import make_tiny_bert

ROOT = Path(__file__).parents[1]
WORDS = ["焊接", "电流", "预热", "coffee", "roast", "water", "tank", "machine", "裂纹", "飞溅", "current", "日常"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good`, a tiny BERT that finds a text by its own words; `bad`, for which all texts are the same; two sets."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("gates")
    make_tiny_bert(folder / "good")
    weights = load_file(make_tiny_bert(folder / "bad") / "model.safetensors")
    for name in ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"):
        weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "bad" / "model.safetensors", metadata={"format": "pt"})
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, 6)) for _ in range(40)]
    for name, queries in (("domain", texts[:24]), ("general", texts[24:])):
        (folder / name).mkdir()
        rows = [{"_id": f"d{i}", "text": t, "document": f"{i // 20}.md"} for i, t in enumerate(texts)]
        asked = [{"_id": f"q{i}", "text": t, "type": "fact" if i % 2 else "why"} for i, t in enumerate(queries)]
        for file, lines in (("corpus", rows), ("queries", asked)):
            text = "\n".join(json.dumps(r, ensure_ascii=False) for r in lines)
            (folder / name / f"{file}.jsonl").write_text(text, encoding="utf-8")
        judged = "\n".join(f"q{i}\td{texts.index(t)}\t1" for i, t in enumerate(queries))
        (folder / name / "qrels.tsv").write_text(judged)
    return folder


def evaluate(world: Path, base: str, tuned: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "factory.cli", "evaluate", str(world / "domain"), f"general={world / 'general'}"]
    command += ["-m", f"base={world / base}", "-m", f"tuned={world / tuned}", "--device", "cpu", "--cutoffs", "1,10"]
    command += ["--out", str(world / "out"), "--cache", str(world / "cache"), *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_gates_that_are_met_end_with_0_and_are_written_down(world: Path) -> None:
    done = evaluate(
        world, "bad", "good", "--dim", "16",
        "--require", "ndcg@10 +0.05", "--require", "tuned:dense@16 recall@10 +0.02 on general",
        "--forbid-regression", "general=-0.01",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 3 and "FAILED" not in done.stdout
    saved = json.loads((world / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert [(g["eval_set"], g["mode"], g["metric"], g["passed"]) for g in saved["gates"]] == [
        ("domain", "dense", "ndcg@10", True),
        ("general", "dense@16", "recall@10", True),
        ("general", "dense", "ndcg@10", True),
    ]
    assert saved["name"] == "domain" and [e["name"] for e in saved["further_sets"]] == ["general"]
    first = next(d for d in saved["differences"] if d["mode"] == "dense")["metrics"]["ndcg@10"]
    assert saved["gates"][0]["got"] == first["value"] and first["p"] < 0.01
    assert {(g["by"], g["name"]) for g in saved["groups"]} >= {("type", "why"), ("type", "fact"), ("document", "0.md")}
    assert sum(g["queries"] for g in saved["groups"] if g["by"] == "type") == 24
    assert {(d["mode"], d["base_mode"]) for d in saved["within_model"]} == {
        ("dense@16", "dense"),
        ("dense+BM25", "dense"),
    }
    means = {(r["model"], r["mode"]): r["metrics"]["ndcg@10"] for r in saved["rows"]}
    words = {(d["model"], d["mode"]): d["metrics"]["ndcg@10"]["value"] for d in saved["against_bm25"]}
    assert words == {
        at: pytest.approx(means[at] - means["BM25", ""])
        for at in [(m, mode) for m in ("base", "tuned") for mode in ("dense", "dense+BM25")]
    }
    rows = [row for _, row in read_lines(world / "out" / "evaluation-queries.jsonl")]
    assert len(rows) == 40 and rows[0]["tuned dense"]["rank"] == 1
    kinds = [row["kind"] for _, row in read_lines(world / "out" / "wins-and-losses.jsonl")]
    assert kinds.count("win") > 20
    assert list((world / "cache" / "embeddings").glob("*.npy"))


def test_a_gate_that_is_not_met_ends_with_3_and_its_figures_are_kept(world: Path) -> None:
    done = evaluate(world, "good", "bad", "--require", "ndcg@10 +0.05", "--forbid-regression", "general=-0.01")
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("FAILED") == 2
    saved = json.loads((world / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert [g["passed"] for g in saved["gates"]] == [False, False]
    same = evaluate(world, "good", "good", "--require", "ndcg@10 +0.05", "--forbid-regression", "general=-0.01")
    assert same.returncode == 3 and same.stdout.count("FAILED") == 1 and same.stdout.count("passed") == 1


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (["--require", "ndcg 10"], "expected \\[MODEL:MODE\\] METRIC"),
        (["--require", "ndcg@10 +5"], "between -1 and 1"),
        (["--require", "ndcg@7 +0.05"], "no metric is called 'ndcg@7'"),
        (["--require", "other:dense ndcg@10 +0.05"], "no later model is called 'other'"),
        (["--forbid-regression", "elsewhere=-0.01"], "no eval set is called 'elsewhere'"),
    ],
)
def test_a_gate_that_cannot_be_is_told_before_anything_is_encoded(
    gate: list[str], message: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from factory import models
    from factory.cli import app

    monkeypatch.setattr(models, "load_encoder", lambda config: pytest.fail("it was loaded"))
    command = ["evaluate", str(world / "domain"), "-m", f"base={world / 'good'}", "-m", f"tuned={world / 'good'}"]
    found = CliRunner().invoke(app, [*command, *gate])
    assert isinstance(found.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise found.exception


@pytest.mark.parametrize(
    ("gate", "change", "strict", "passed"),
    [
        ("+0.05", (0.06, 0.01, 0.11), False, True),
        ("+0.05", (0.06, -0.01, 0.13), False, False),  # could be chance
        ("+0.05", (0.04, 0.03, 0.05), False, False),  # sure, but too little
        ("+0.05", (0.06, 0.01, 0.11), True, False),
        ("+0.05", (0.08, 0.06, 0.10), True, True),
        ("-0.02", (0.00, -0.01, 0.01), False, True),
        ("-0.02", (0.00, -0.03, 0.03), False, False),  # "at most so much worse" is not sure
        ("limit", (-0.005, -0.03, 0.02), False, True),
        ("limit", (-0.015, -0.03, 0.00), False, False),
        ("limit", (-0.005, -0.03, 0.02), True, False),
    ],
)
def test_verdicts(gate: str, change: tuple[float, float, float], strict: bool, passed: bool) -> None:
    wanted = limit("general=-0.01") if gate == "limit" else requirement(f"ndcg@10 {gate}")
    value, low, high = change
    got, _, remark = verdict(wanted, Change(value=value, low=low, high=high), strict)
    assert got is passed
    if gate == "limit" and passed:
        assert "-3.0" in remark


def test_gates_are_read_as_they_are_written() -> None:
    assert requirement("tuned:dense@64+BM25/no-instruction recall@3 +0.02 on my set") == Gate(
        "tuned:dense@64+BM25/no-instruction recall@3 +0.02 on my set",
        0.02, "recall@3", "tuned", "dense@64+BM25/no-instruction", "my set",
    )  # fmt: skip
    assert limit("general=-0.01").change == limit("general = 0.01").change == -0.01


def test_wins_and_losses_are_the_largest_of_each_with_both_ranks_and_their_passages() -> None:
    """The first relevant passage's rank by base → tuned: 1→1, 2→1, none→1, 1→3, 1→none, 11→1, none→9."""
    n = 20
    data = EvalSet(
        [f"d{i}" for i in range(n)], [f"text {i}" for i in range(n)], [f"q{i}" for i in range(7)],
        [f"question {i}" for i in range(7)], [{19: 2, 18: 1} if i == 5 else {19: 1} for i in range(7)], 0,
        [{"type": "fact"}] * 7,
    )  # fmt: skip

    def ranking(*ranks: int) -> np.ndarray:
        rows = np.tile(np.arange(12), (7, 1))
        for i, rank in enumerate(ranks):
            if rank:
                rows[i, rank - 1] = 19
        return rows

    r = SetResults("set", Path("set"), data)
    r.measured["BM25", ""] = _measured(data, ranking(0, 0, 0, 0, 0, 0, 0), (10,))
    r.measured["base", "dense"] = _measured(data, ranking(1, 2, 0, 1, 1, 11, 0), (10,))
    r.measured["tuned", "dense"] = _measured(data, ranking(1, 1, 1, 3, 0, 1, 9), (10,))
    e = _evaluation(r, {"base": {}, "tuned": {}}, Options(cutoffs=(10,)), 12)
    rows = list(wins_and_losses(e, r))
    assert [(w["kind"], w["_id"], w["base_rank"], w["rank"]) for w in rows] == [
        ("win", "q2", None, 1),  # + 1
        ("win", "q5", 11, 1),  # 2 of the ideal 2 + 1 / log2(3)
        ("win", "q1", 2, 1),  # 1 − 1 / log2(3)
        ("win", "q6", None, 9),  # 1 / log2(10), although it came further
        ("loss", "q4", 1, None),
        ("loss", "q3", 1, 3),
    ]
    assert rows[0]["difference"] == 1 and rows[5]["difference"] == -0.5
    win = rows[1]
    assert [p["grade"] for p in win["top"]] == [2, 0, 0] and [p["grade"] for p in win["base_top"]] == [0, 0, 0]
    assert [p["_id"] for p in win["relevant"]] == ["d19", "d18"] and win["top"][0]["text"] == "text 19"
    assert win["about"] == {"type": "fact"}


def test_questions_are_grouped_by_what_the_set_says_by_language_and_by_thirds_of_length() -> None:
    queries = ["a" * 10, "b" * 20, "焊" * 10, "c" * 40, "裂" * 20, "d" * 70]
    about = [{"type": "fact"}, {"type": "why"}, {}, {"type": "fact"}, {"type": "fact"}, {}]
    data = EvalSet([], [], [], queries, [{}] * 6, 0, about)
    found = labels(data)
    assert list(found) == ["type", "language", "length"]
    assert found["type"] == ["fact", "why", "not said", "fact", "fact", "not said"]
    assert found["language"] == ["en", "en", "zh", "en", "zh", "en"]
    short, middle, long = "up to 20 letters", "21 to 40 letters", "41 letters and more"
    assert found["length"] == [short, short, middle, middle, long, long]  # both languages: a character counts as three
    assert length_classes(["焊" * n for n in (5, 6, 12)]) == [
        "up to 5 characters",
        "6 to 6 characters",
        "7 characters and more",
    ]
