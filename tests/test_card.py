"""The data card: its numbers are those of the run's files, its header is what `datasets` reads, its limits are honest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.card import write_card
from factory.config import Config
from factory.pipeline import build
from factory.records import InputError
from tests.small_run import make_run, rows


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """(header, text)"""
    _, header, text = write_card(folder).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_card_tells_what_the_data_is_and_where_it_comes_from(tmp_path):
    header, text = card(make_run(tmp_path / "小样"))
    assert header["language"] == ["zh"] and header["size_categories"] == ["n<1K"] and "license" not in header
    for said in (
        "4 questions, each with passages",
        "2 held-out questions for a test",
        "| train.jsonl | 4 | `query`, `pos` (5), `neg` (10); 3 rows with a reranker's logits |",
        "| eval/ | 2 | test questions over 11 passages, 2 judgements",
        "| passages | 8 | 1 | 2 |",
        "types: fact 7; origins: generated 6, given 1",
        "Licence: not stated.",
        "| notes/faq.md | 1 | ",
        "passages that a search found (dense, bm25), chosen by the preset `resolve`",
        "Of 28 candidates 10 became negatives, 1 further positives, and 3 were rejected.",
        "Seeds: 42 for every draw, 7 for the LLM. Versions: torch 2.13.0.",
        "qwen.gguf",
        "4 条训练样本",
        "留出测试问题 2 个",
        "许可证：未说明",
    ):
        assert said in text, said
    assert "/home/" not in text and "secret-project" not in text
    assert "fingerprints were not recorded" in text


def test_known_limits_come_from_the_runs_own_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    _, text = card(run)
    limits = text.split("## Known limits")[1]
    for said in (
        "6 of 7 kept questions (86 %) were written by an LLM",
        "Of 10 chosen negatives 2 were filled up from easier ranks and 1 are passages drawn at random",
        "1 of 4 rows have fewer than 3 negatives",
        "Only 3 of 4 rows have reranker scores",
        "2 of 2 test questions were written by the same LLM",
        "No person has checked",
        "No LLM judged the candidates",
    ):
        assert said in limits, said
    manifest = json.loads((run / "run.json").read_text())
    manifest["stages"]["judge"] = {"counts": {"judged": 300}, "dropped": {}}
    manifest["config"]["card"] = {"licence": "CC-BY-4.0"}
    manifest["config"]["test"]["hold_out"] = False
    (run / "run.json").write_text(json.dumps(manifest))
    judge = {"controls": 100, "sensitivity": 0.93, "specificity": 0.88}
    (run / "false-negative-model.json").write_text(json.dumps({"missing": "too few", "judge": judge}))
    seen = [("q0", "good"), ("q0", "skip"), ("q1", "skip"), ("q2", "drop"), ("gone", "good")]
    rows = [{"time": "t", "id": pair, "decision": decision} for pair, decision in seen]
    (run / "review.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    header, text = card(run)
    assert header["license"] == "cc-by-4.0" and "Licence: CC-BY-4.0." in text
    for said in (
        "On 100 controls",
        "93 % of the passages that answer and 88 %",
        "A person decided on 2 of 7 kept",
        "hold_out",
    ):
        assert said in text, said
    assert "copies of a held-out passage are not trained on" not in text
    manifest["config"]["card"] = {"licence": "our own archive, internal use"}
    (run / "run.json").write_text(json.dumps(manifest))
    header, _ = card(run)
    assert (header["license"], header["license_name"]) == ("other", "our own archive, internal use")


def test_a_run_with_its_card_is_a_data_set(tmp_path):
    from datasets import load_dataset

    run = make_run(tmp_path / "run")
    write_card(run)

    def read(name: str, split: str) -> Any:
        return load_dataset(str(run), name, split=split, cache_dir=str(tmp_path / "cache"))

    assert len(read("train", "train")) == 4 and read("train", "train")[3]["neg_scores"] == [0.0, -1.0, -3.0]
    assert read("eval-queries", "test")["_id"] == ["q5", "q6"] and len(read("eval-corpus", "test")) == 11
    assert read("dev-queries", "dev")["text"] == [rows(run / "dev/queries.jsonl")[0]["text"]]


def test_a_build_writes_its_card_with_the_fingerprints_of_what_it_used(tmp_path, models):
    pairs = tmp_path / "private" / "pairs.jsonl"
    pairs.parent.mkdir()
    lines = [
        {"query": f"What about part {i}?", "text": f"Part {i} weighs {i * 7} grams and is blue."} for i in range(12)
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = Config.model_validate(
        {"input": {"path": str(pairs), "kind": "pairs"}, "model": {"path": str(models / "bert")}, "seed": 5}
        | {"passages": {"min_tokens": 1}, "choose": {"preset": "topk", "negatives": 2}, "split": {"eval": 0}}
        | {"card": {"licence": "mit"}}
    )
    build(config, tmp_path / "run", print)
    header, text = (tmp_path / "run" / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1:]
    from factory.modelfiles import model_fingerprint

    assert f"| model to train | bert | {model_fingerprint(models / 'bert')} |" in text
    assert yaml.safe_load(header)["license"] == "mit" and "synthetic" not in header
    assert "Nothing was held out for a test." in text and "问题由用户提供" in text
    assert str(tmp_path) not in text and "LLM |" not in text and "written by an LLM" not in text
    with pytest.raises(InputError, match=r"run\.json"):
        write_card(tmp_path)
