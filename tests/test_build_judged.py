"""Builds on given pairs with a real LLM as judge and as reranker, and with every preset."""

import json

import pyarrow.parquet as pq
import pytest

from factory.config import Config
from factory.export import TRAIN
from factory.pipeline import CANDIDATES, DECISIONS, SCORES, build
from factory.records import Example, InputError, read_records
from tests.test_build import COFFEE
from tests.tiny_models import make_tiny_m3


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """24 question-like openings of paragraphs, each with its paragraph."""
    folder = tmp_path_factory.mktemp("pairs")
    paragraphs = [
        " ".join(p.split())
        for file in sorted(COFFEE.glob("*.md"))
        for p in file.read_text(encoding="utf-8").split("\n\n")
        if len(p) > 250 and not p.startswith(("#", "|", "-"))
    ][::2][:24]
    rows = [{"query": " ".join(p.split()[3:11]) + "?", "text": p[:400]} for p in paragraphs]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "pairs.jsonl"


def config(pairs, encoder, gguf, **parts) -> Config:
    settings = {
        "input": {"path": str(pairs), "kind": "pairs"},
        "model": {"path": str(encoder)},
        "split": {"eval": 0},
        "llm": {"model": str(gguf), "concurrency": 2, "context": 1024},
        "mine": {"top_k": 12},
        "choose": {"negatives": 3},
    }
    return Config.model_validate(settings | parts)


def test_a_judge_that_cannot_judge_is_found_out_and_the_build_goes_on(tmp_path, pairs, minilm_en, smollm_gguf):
    said = []
    settings = config(pairs, minilm_en, smollm_gguf, judge={"use": "on", "labels": 20, "controls": 10, "band": 5})
    build(settings, tmp_path / "run", said.append)
    stored = json.loads((tmp_path / "run" / "false-negative-model.json").read_text())
    assert 0 <= stored["judge"]["sensitivity"] <= 1 and stored["judge"]["controls"] == 20
    told = next(line for line in said if line.startswith("no model of false negatives"))
    assert stored["missing"] in told
    assert len(read_records(tmp_path / "run" / TRAIN, Example)) == 24
    assert "No model was learnt" in (tmp_path / "run" / "report.html").read_text()
    said.clear()
    build(settings, tmp_path / "run", said.append)
    assert any(line.startswith("judge: unchanged") for line in said)
    build(config(pairs, minilm_en, smollm_gguf), tmp_path / "run", said.append)  # no longer asked
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No model was learnt" not in page and "24 questions are too few to learn from" in page


def test_without_a_judge_the_pairs_teach_what_an_answer_looks_like(tmp_path, pairs, minilm_en):
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    more = [{"query": " ".join(r["text"].split()[i : i + 8]), "text": r["text"]} for r in rows for i in (1, 8, 16)]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, more)), encoding="utf-8")
    build(config(tmp_path / "more.jsonl", minilm_en, "", mine={"top_k": 20}), tmp_path / "run", lambda _: None)
    learnt = json.loads((tmp_path / "run" / "evidence-model.json").read_text())
    assert learnt["questions"] == 72 and learnt["auc"] > 0.9 and learnt["in_words"]
    assert "From 72 questions a logistic model learnt" in (tmp_path / "run" / "report.html").read_text()
    decisions = pq.read_table(tmp_path / "run" / DECISIONS)
    both = zip(decisions["decision"].to_pylist(), decisions["probability"].to_pylist(), strict=True)
    assert all(p < 0.1 for d, p in both if d == "negative" and p is not None)
    said = []
    strict = {"negatives": 3, "reject_at": 0}
    settings = config(tmp_path / "more.jsonl", minilm_en, "", mine={"top_k": 20}, choose=strict)
    build(settings, tmp_path / "run", said.append)
    assert any(line.startswith("warning: most negatives are unrelated passages") for line in said)


def test_the_llm_as_reranker_gives_raw_logits_and_a_new_threshold_asks_for_none(
    tmp_path, pairs, minilm_en, smollm_gguf
):
    parts = {"score": {"reranker": "llm", "rerank_depth": 4}}
    build(config(pairs, minilm_en, smollm_gguf, **parts), tmp_path / "run", lambda _: None)
    rows = read_records(tmp_path / "run" / TRAIN, Example)
    assert rows and all(r.neg_scores and len(r.neg_scores) == len(r.neg) for r in rows)
    assert min(s for r in rows for s in r.neg_scores) < 0 or max(s for r in rows for s in r.neg_scores) > 1
    scores = pq.read_table(tmp_path / "run" / SCORES)
    assert scores["rerank_score"].null_count == len(scores) - 24 * 4
    said = []
    changed = config(pairs, minilm_en, smollm_gguf, **parts, choose={"negatives": 2, "ceiling": 0.9})
    build(changed, tmp_path / "run", said.append)
    assert any(line.startswith("score: unchanged") for line in said)
    assert not any("starting llamacpp" in line for line in said)


@pytest.mark.parametrize("preset", ["perc", "margin", "topk", "range", "window", "rules"])
def test_every_preset_builds(tmp_path, pairs, minilm_en, preset):
    choose = {"preset": preset, "negatives": 2, "range": [1, 9], "window": [0.2, 1.2]}
    choose["rules"] = [{"when": "dense_rank = 1 OR query_tgt_query_jaccard > 0.5"}]
    build(config(pairs, minilm_en, "", choose=choose), tmp_path / "run", lambda _: None)
    assert len(read_records(tmp_path / "run" / TRAIN, Example)) >= 20
    decisions = pq.read_table(tmp_path / "run" / DECISIONS)
    assert set(decisions["decision"].to_pylist()) <= {"negative", "unused", "rejected"}


def test_a_rule_that_cannot_be_read_is_told_before_the_first_stage(tmp_path, pairs, minilm_en):
    said: list[str] = []
    rules = {"preset": "rules", "rules": [{"when": "dense_ran = 1"}]}
    with pytest.raises(InputError, match=r"(?s)choose\.rules\[0\].*dense_ran.*columns: .*dense_rank"):
        build(config(pairs, minilm_en, "", choose=rules), tmp_path / "run", said.append)
    assert said == []


def test_sparse_candidates_need_a_model_that_has_them(tmp_path, pairs, minilm_en):
    with pytest.raises(InputError, match=r"mine\.sources: the model has no sparse vectors"):
        build(config(pairs, minilm_en, "", mine={"sources": ["sparse"]}), tmp_path / "run", lambda _: None)


def test_an_m3_model_adds_candidates_by_its_sparse_weights(tmp_path, pairs):
    settings = config(pairs, make_tiny_m3(tmp_path / "m3"), "")
    build(settings, tmp_path / "run", lambda _: None)
    table = pq.read_table(tmp_path / "run" / CANDIDATES)
    assert table["sparse_rank"].null_count < len(table)
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["mine"]["counts"]
    assert counts["by sparse"] > 0 and counts["by bm25"] > 0


def test_a_preset_by_dense_rank_needs_the_dense_search(tmp_path, pairs, minilm_en):
    parts = {"mine": {"sources": ["bm25"]}, "choose": {"preset": "range"}}
    with pytest.raises(InputError, match=r"mine\.sources: choose\.preset range goes by the dense search's ranks"):
        build(config(pairs, minilm_en, "", **parts), tmp_path / "run", lambda _: None)
