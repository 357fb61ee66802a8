"""report.html: what a reader looks for is in it, nothing of the texts is run, and missing parts are named."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from factory import metrics
from factory.records import InputError
from factory.report import SAMPLES, write_report

RUN: dict[str, Any] = {
    "bge_factory": "0.1.0",
    "config": {"model": {"path": "/models/bge-m3"}, "llm": {"model": "/models/qwen.gguf"}, "seed": 42},
    "versions": {"FlagEmbedding": "1.4.2", "faiss-cpu": None},
    "stages": {
        "load": {"counts": {"documents": 20, "characters": 69902}, "dropped": {}, "seconds": 1.4},
        "split": {
            "counts": {"passages": 1495, "train": 1320, "eval": 175},
            "dropped": {"too-short": 1},
            "seconds": 4.0,
        },
        "generate": {"counts": {"pairs": 96, "passages asked": 32}, "dropped": {}, "seconds": 407.3},
        "filter": {"counts": {"kept": 68, "train": 68}, "dropped": {"copied": 2}, "seconds": 31.8},
        "export": {"counts": {"examples": 50, "negatives": 350}, "dropped": {}, "seconds": 0.2},
    },
}
EVIL = "<script>alert(1)</script>"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def english(page: str) -> str:
    """The page's words as an English reader sees them."""
    text = re.sub(r'<span lang="zh">.*?</span>', "", page)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    rows = [{"query": f"问题{i}？", "pos": [f"答{i} {EVIL}"], "neg": ["别的"], "id": f"q{i}"} for i in range(50)]
    write_jsonl(tmp_path / "4-kept.jsonl", [{"id": f"q{i}", "type": "fact"} for i in range(50)])
    rows[0] |= {"pos_scores": [3.25], "neg_scores": [-1.5]}
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(
        tmp_path / "dropped" / "filter.jsonl",
        [{"stage": "filter", "id": str(i), "reason": "copied", "detail": "ratio 0.97", "text": EVIL} for i in range(2)],
    )
    write_jsonl(tmp_path / "dropped" / "split.jsonl", [{"stage": "split", "id": "a.md@3", "reason": "too-short"}])
    write_jsonl(tmp_path / "dropped" / "load.jsonl", [])
    return tmp_path


def test_the_story_is_told_from_documents_to_versions(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    for said in (
        "1,495",
        '<span class="tag"><span lang="en">fact</span><span lang="zh">事实</span></span>',
        "1,495 left: 1,320 train, 175 eval",
        "剩 1,495：训练 1,320，评测 175",
        "350 negatives",
        "bge-m3",
        "qwen.gguf",
        "6 min 47 s",
        "FlagEmbedding",
    ):
        assert said in page, said
    for said in ("copied", "ratio 0.97", "too-short", "a.md@3", "filter: 2 dropped"):
        assert said in page, said
    assert "dropped/load.jsonl" not in page  # nothing was dropped there
    assert page.count('class="text pos"') == SAMPLES
    assert "50 training questions" in page
    assert "Not measured yet" in page
    named = set(re.findall(r"<code>([\w./-]+\.(?:jsonl?|parquet))</code>", page))
    assert {"run.json", "train.jsonl", "dropped/filter.jsonl"} <= named and all((run / n).is_file() for n in named)


def test_no_text_of_a_document_is_run_and_nothing_is_loaded(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=(?!"#)|url\(|@import|https?://""", page)


def test_scores_are_shown_beside_their_texts(run: Path) -> None:
    write_jsonl(run / "train.jsonl", [json.loads((run / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])])
    page = write_report(run).read_text(encoding="utf-8")
    assert "reranker 3.25" in page and "reranker -1.50" in page


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_the_comparison_is_there_once_it_was_measured(run: Path) -> None:
    def means(v: float) -> dict[str, float]:
        return {"recall@10": v, "ndcg@10": v}

    change = {"value": 0.117, "low": 0.104, "high": 0.13}
    unsure = {"value": 0.01, "low": -0.02, "high": 0.04}
    evaluation = {
        "passages": 1997,
        "queries": 9118,
        "queries_without_judgement": 3,
        "cutoffs": [1, 10],
        "models": {"base": {}, "tuned": {}},
        "rows": [
            {"model": "BM25", "mode": "", "metrics": means(0.655)},
            {"model": "base", "mode": "dense", "metrics": means(0.42)},
            {"model": "tuned", "mode": "dense", "metrics": means(0.537)},
            {"model": "tuned", "mode": "sparse", "metrics": means(0.5)},
        ],
        "differences": [
            {"model": "tuned", "base": "base", "mode": "dense", "metrics": {"recall@10": unsure, "ndcg@10": change}}
        ],
        "seconds": {},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_report(run).read_text(encoding="utf-8")
    text = english(page)
    for said in ("65.5", "42.0", "53.7", "+11.7 [+10.4, +13.0]", "+1.0 [-2.0, +4.0]", "9,118 questions", "sparse"):
        assert said in text, said
    assert re.search(r'<b class="better"><span lang="en">\+11\.7 points', page)


def test_gates_sets_groups_and_wins_are_shown_and_nothing_of_their_texts_is_run(run: Path) -> None:
    def change(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02, "p": 0.0001}

    def evaluation(name: str, value: float) -> dict[str, Any]:
        rows = [("BM25", ""), ("base", "dense"), ("tuned", "dense"), ("tuned", "dense@64")]
        group = {"model": "tuned", "base": "base", "mode": "dense", "value": 0.123, "low": None, "high": None}
        values = {"BM25": 0.2, "base dense": 0.3, "tuned dense": 0.423}
        found = {"model": "tuned", "base": "base", "mode": "dense", "metrics": {"ndcg@10": change(value)}}
        cut = found | {
            "base": "tuned",
            "mode": "dense@64",
            "base_mode": "dense",
            "metrics": {"ndcg@10": change(-0.034)},
        }
        return {
            "name": name, "passages": 9, "queries": 8, "queries_without_judgement": 0, "cutoffs": [10],
            "metric": "ndcg@10", "models": {"base": {}, "tuned": {}}, "seconds": {},
            "rows": [{"model": m, "mode": mode, "metrics": {"ndcg@10": 0.5}} for m, mode in rows],
            "differences": [found], "within_model": [cut],
            "groups": [{"by": "type", "name": f"why {EVIL}", "queries": 4, "values": values, "changes": [group]}],
        }  # fmt: skip

    gate = {"gate": "ndcg@10 +0.05", "eval_set": "eval", "model": "tuned", "base": "base", "mode": "dense"}
    gate |= {"metric": "ndcg@10", "wanted": "+5.0 or more", "got": 0.04, "low": 0.02, "high": 0.06, "p": 0.01}
    gate |= {"passed": False, "remark": "less than was asked for"}
    both = evaluation("eval", 0.04) | {"gates": [gate], "further_sets": [evaluation("general", -0.05)]}
    (run / "evaluation.json").write_text(json.dumps(both))
    found = {"_id": "d1", "text": f"found {EVIL}", "grade": 0}
    win = {"set": "eval", "model": "tuned", "base": "base", "mode": "dense", "kind": "win", "_id": "q1"}
    win |= {"query": f"why? {EVIL}", "difference": 1.0, "base_rank": None, "rank": 1, "base_top": [found]}
    win |= {"relevant": [{"_id": "d2", "text": "the answer", "grade": 2}], "top": [found | {"text": "另一段"}]}
    others = [
        win | {"mode": "dense+BM25", "kind": "loss", "query": "both?"},
        win | {"mode": "sum", "query": "not dense"},
        win | {"query": "which?", "relevant": [found, found | {"_id": "d3"}]},
    ]
    write_jsonl(run / "wins-and-losses.jsonl", [win, *others])
    page = write_report(run).read_text(encoding="utf-8")
    text = english(page)
    for said in (
        "failed", "less than was asked for", "On general", "+4.0 points", "-5.0 points", "dense@64",
        "-3.4 [-5.4, -1.4]", "+12.3", "42.3", "base not found → tuned rank 1, +100 points", "the answer", "grade 2",
        "另一段", "< 0.001", "A gate was not met", "It got worse on general: -5.0 points",
        "fewer than 10 questions have no interval",
        "Largest wins of tuned, dense (2)", "which? base not found → tuned rank 1, +100 points, several passages answer it", "Largest losses of tuned, dense+BM25 (1)", "both?",
    ):  # fmt: skip
        assert said in text, said
    assert "<script" not in page and "not dense" not in page


def test_an_evaluation_of_questions_that_are_no_longer_held_out_gives_no_verdict(run: Path) -> None:
    means = {f"{name}@10": 0.5 for name in metrics.METRICS}
    change = {name: {"value": 0.1, "low": 0.05, "high": 0.15, "p": 0.001} for name in means}
    measured = {
        "name": "eval", "eval_set": "/elsewhere/run/eval", "data": {"queries.jsonl": "aa", "corpus.jsonl": "bb"},
        "passages": 9, "queries": 200, "queries_without_judgement": 0, "judgements": 200, "cutoffs": [10], "metric": "ndcg@10",
        "models": {"base": {"path": "b"}, "tuned": {"path": "t"}}, "seconds": {},
        "rows": [{"model": m, "mode": mode, "metrics": means} for m, mode in (("BM25", ""), ("base", "dense"), ("tuned", "dense"))],
        "differences": [{"model": "tuned", "base": "base", "mode": "dense", "metrics": change}],
    }  # fmt: skip
    (run / "evaluation.json").write_text(json.dumps(measured))
    outputs = {"eval/queries.jsonl": "aa", "eval/corpus.jsonl": "bb", "train.jsonl": "cc"}
    told = json.loads(json.dumps(RUN))
    told["stages"]["export"]["outputs"] = outputs
    (run / "run.json").write_text(json.dumps(told))
    assert "The whole interval" in write_report(run).read_text(encoding="utf-8")
    for now in (outputs | {"eval/queries.jsonl": "dd"}, {"train.jsonl": "cc"}):  # drawn anew, or nothing held out
        told["stages"]["export"]["outputs"] = now
        (run / "run.json").write_text(json.dumps(told))
        page = english(write_report(run).read_text(encoding="utf-8"))
        assert "measured on another eval/" in page and "The whole interval" not in page and "Not measured yet" in page


@pytest.mark.parametrize(
    ("text", "says"), [('{"rows": 3}', "passages: Field required"), ("[1]", "not an evaluation"), ("{", "JSON")]
)
def test_a_damaged_evaluation_is_named(run: Path, text: str, says: str) -> None:
    (run / "evaluation.json").write_text(text)
    with pytest.raises(InputError, match=f"evaluation.json.*{says}"):
        write_report(run)


def test_missing_parts_are_named_not_a_crash(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for said in ("run.json is missing", "There is no train.jsonl yet", "Not measured yet", "Nothing was dropped"):
        assert said in page, said
    with pytest.raises(InputError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json"):
        write_report(tmp_path)
