"""What a build makes of reviews: promoted negatives, dropped questions, and all of it taken back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.choose import Chooser, choose
from factory.config import Config
from factory.export import TRAIN
from factory.pipeline import DECISIONS, build
from factory.records import Example, read_records
from factory.review import ReviewLog, digest, read_log
from factory.review_items import Items
from factory.review_server import Session
from factory.settings import ChooseConfig
from tests.handmade import pair, scored, target
from tests.test_build import COFFEE
from tests.test_review import decision, quiet, serving


@pytest.mark.parametrize("preset", ["resolve", "perc", "topk", "range"])
def test_a_negative_that_answers_becomes_a_positive_and_the_others_stay(preset):
    scores, pairs, targets = scored()
    config = ChooseConfig(preset=preset, negatives=4, range=(0, 15), ceiling=1, depth=9, near_copy=1)

    def decided(answering=None) -> dict[str, dict[str, tuple[str, str]]]:
        chooser = Chooser(pairs, targets, config, 1, None, answering)
        rows = pa.concat_tables(choose([scores], chooser, len(scores))).to_pylist()
        return {
            p.id: {r["candidate_id"]: (r["decision"], r["reason"]) for r in rows if r["pair_id"] == p.id} for p in pairs
        }

    def negatives(found) -> set[str]:
        return {c for c, d in found.items() if d[0] == "negative"}

    before = decided()
    named = sorted(negatives(before["q1"]))[0]
    unfound = next(t.id for t in targets if t.id not in before["q1"] and t.id != "t1")
    after = decided({"q1": [named, unfound, "t1", "gone"], "q9": ["t3"]})
    assert {c for c, d in after["q1"].items() if d == ("promoted", "review")} == {named, unfound}
    assert len(negatives(after["q1"])) == 4 and negatives(before["q1"]) - {named} <= negatives(after["q1"])
    assert all(after[q] == before[q] for q in after if q != "q1")


def test_what_a_search_never_found_and_copies_are_promoted_once():
    targets = [target(0), target(1, group="g"), target(2, group="g"), target(3), target(4)]
    pairs = [pair(0, targets[0])]
    chooser = Chooser(pairs, targets, ChooseConfig(negatives=2), 1, None, {"q0": ["t1", "t2"]})
    rows = pa.concat_tables(choose([], chooser, 0)).to_pylist()
    assert {r["candidate_id"]: r["decision"] for r in rows} == {"t1": "promoted", "t3": "negative", "t4": "negative"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, minilm_en):
    """A real build without an LLM: (config, run folder)."""
    folder = tmp_path_factory.mktemp("whole")
    paragraphs = [
        " ".join(p.split())
        for file in sorted(COFFEE.glob("*.md"))
        for p in file.read_text(encoding="utf-8").split("\n\n")
        if len(p) > 200 and not p.startswith(("#", "|", "-"))
    ][:30]
    rows = [{"query": " ".join(p.split()[3:11]) + "?", "text": p[:300]} for p in paragraphs]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = Config.model_validate(
        {
            "input": {"path": str(folder / "pairs.jsonl"), "kind": "pairs"},
            "model": {"path": str(minilm_en)},
            "split": {"eval": 0.3},
            "mine": {"top_k": 8},
            "choose": {"negatives": 2, "preset": "topk"},
        }
    )
    build(config, folder / "run", quiet)
    return config, folder / "run"


def queries(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "eval/queries.jsonl").read_text("utf-8").splitlines()]


def test_the_next_build_applies_the_decisions_and_an_undone_one_brings_all_back(whole, tmp_path):
    config, original = whole
    run = shutil.copytree(original, tmp_path / "run")
    before = {e.id: e for e in read_records(run / TRAIN, Example)}
    items = Items(run)
    good, bad, unanswered, answered, changed = [i for i in items.order if items.pairs[i].split == "train"][:5]
    held = [i for i in items.order if items.pairs[i].split == "eval"]
    assert len(held) >= 3
    first = items.item(answered).candidates[0]
    with ReviewLog(run, quiet) as log:
        session = Session(items, log, "Li", "run")
        session.decide(good, "good", [])
        session.decide(bad, "drop", [])
        session.decide(unanswered, "not-answerable", [])
        session.decide(answered, "positive", [first.id])
        session.decide(held[0], "drop", [])
        session.decide(held[1], "good", [])
        session.decide(held[2], "skip", [])
        log.add(decision("no-such-pair", "drop"))
        log.add(decision(changed, "drop", texts={changed: digest("another question", "another text")}))
    said: list[str] = []
    build(config, run, said.append)
    after = {e.id: e for e in read_records(run / TRAIN, Example)}
    assert set(before) - set(after) == {bad, unanswered}
    assert after[good] == before[good] and changed in after
    assert after[answered].pos == [*before[answered].pos, first.text] and first.text not in after[answered].neg
    assert len(after[answered].neg) == 2 and set(before[answered].neg) - {first.text} <= set(after[answered].neg)
    assert {q["_id"] for q in queries(original)} - {q["_id"] for q in queries(run)} == {held[0]}
    assert [q["_id"] for q in queries(run) if q.get("reviewed")] == [held[1]]
    assert held[0] not in (run / "eval/qrels.tsv").read_text()
    told = {d["id"]: d["reason"] for d in map(json.loads, (run / "dropped/export.jsonl").read_text().splitlines())}
    assert told == {
        bad: "review: dropped", held[0]: "review: dropped", unanswered: "review: not answerable from its passage",
    }  # fmt: skip
    (line,) = [s for s in said if s.startswith("export:")]
    assert "6 reviewed" in line and "2 reviews of what is no longer here" in line
    assert [s.split(":")[0] for s in said if "unchanged" in s] == [
        "load",
        "split",
        "generate",
        "filter",
        "mine",
        "score",
    ]
    said.clear()
    build(config, run, said.append)
    assert sum("unchanged" in s for s in said) == 8
    shown = Items(run).item(answered, read_log(run, quiet).of(answered))  # after the build it is still to be found
    assert first.id in {t.id for t in shown.candidates} and bad in Items(run).order
    with ReviewLog(run, quiet) as log:
        while log.undo("Li"):
            pass
    build(config, run, quiet)
    assert {e.id: e for e in read_records(run / TRAIN, Example)} == before and queries(run) == queries(original)


def test_a_build_may_run_while_the_page_is_open(whole, tmp_path):
    config, original = whole
    run = shutil.copytree(original, tmp_path / "run")
    with serving(run) as (client, _):
        train = next(i for i, split, _ in client.get("state").json()["rows"] if split == "train")
        assert client.post("decide", json={"id": train, "decision": "drop"}).status_code == 200
        build(config, run, quiet)
        assert client.post("decide", json={"id": train, "decision": "good"}).status_code == 200
    assert train not in {e.id for e in read_records(run / TRAIN, Example)}
    assert np.isin(train, pq.read_table(run / DECISIONS)["pair_id"].to_numpy(zero_copy_only=False))
