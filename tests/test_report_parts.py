"""The report's parts: every number is that of a file, damage is named, and the verdict says what the interval says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from factory.records import InputError
from factory.report import write_report
from factory.report_evaluation import tally
from factory.report_reviews import reviews_view
from factory.report_scores import scores_view
from factory.report_story import story
from factory.report_summary import done, verdicts
from factory.report_training import training_view
from factory.review import Decision, ReviewLog
from factory.workspace import write_json
from tests.review_run import NEGATIVES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("parts") / "run", 40)


def evaluation(change: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """Base 0.5, BM25 0.4; (value, low, high) is the tuned model's change of nDCG@10."""
    value, low, high = change
    found = {"model": "tuned", "base": "base", "mode": "dense"}
    rows = [("BM25", "", 0.4), ("base", "dense", 0.5), ("tuned", "dense", 0.5 + value), ("tuned", "dense+BM25", 0.7)]
    return {
        "name": "eval", "metric": "ndcg@10", "cutoffs": [10], "queries": 300, "passages": 900, "seconds": {},
        "queries_without_judgement": 0, "models": {"base": {"path": "base"}, "tuned": {"path": "tuned"}},
        "rows": [{"model": m, "mode": mode, "metrics": {"ndcg@10": v}} for m, mode, v in rows],
        "differences": [found | {"metrics": {"ndcg@10": {"value": value, "low": low, "high": high, "p": 0.01}}}],
    } | more  # fmt: skip


BETTER, UNSURE, WORSE = (0.12, 0.08, 0.16), (0.01, -0.02, 0.04), (-0.05, -0.08, -0.02)
FAILED_GATE = {"model": "tuned", "passed": False, "metric": "ndcg@10", "eval_set": "eval", "got": 0.01}
WORDS = {
    "model": "tuned",
    "base": "BM25",
    "mode": "dense",
    "metrics": {"ndcg@10": {"value": -0.2, "low": -0.3, "high": -0.1}},
}


@pytest.mark.parametrize(
    ("given", "verdict", "deploy", "because"),
    [
        (evaluation(BETTER), "better", "yes", "+8.0 to +16.0 points, lies above zero"),
        (evaluation(UNSURE), "unsure", "no", "With 300 held-out questions, differences under about 3.0 points"),
        (evaluation(WORSE), "worse", "no", "lies below zero"),
        (evaluation(BETTER, gates=[FAILED_GATE]), "better", "no", "A gate was not met: nDCG@10 on eval"),
        (evaluation(BETTER, further_sets=[evaluation(WORSE, name="general")]), "better", "no", "It got worse on general: -5.0"),
        (evaluation(BETTER, further_sets=[evaluation(UNSURE, name="general")]), "better", "yes", "above zero"),
        (evaluation(BETTER, queries=40), "better", "yes", "Only 40 held-out questions"),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_interval_the_gates_and_the_other_sets(given, verdict, deploy, because) -> None:
    (found,) = verdicts(given)
    assert (found.verdict, found.deploy) == (verdict, deploy)
    assert because in " ".join(reason.en for reason in found.reasons)
    assert all(reason.zh for reason in found.reasons)


def test_an_unsure_verdict_says_what_kept_the_training_small_and_what_the_other_metrics_show() -> None:
    given = evaluation(UNSURE)
    one = {"value": 0.1, "low": 0.05, "high": 0.15, "p": 0.01}
    given["differences"][0]["metrics"] |= {"mrr@10": one, "recall@1": one, "recall@10": {**one, "low": -0.1}}
    given["differences"][0]["metrics"]["map@3"] = one | {
        "p": 0.07
    }  # above zero by its interval alone, as older files have it
    given["differences"][0]["metrics"]["map@10"] = {"value": -0.013, "low": -0.03, "high": 0.0, "p": 0.07}
    counts = {"split": {"counts": {"passages": 403, "train": 263}}, "generate": {"counts": {"passages asked": 28}}}
    run = {"stages": counts, "config": {"generate": {"max_passages": 28}}}
    (found,) = verdicts(given, run)
    told = " ".join(reason.en for reason in found.reasons)
    assert "about 28 of 263 passages" in told and "Of the other 5 of this search, 2 show a gain and 0 a loss" in told
    assert "They reach from -1.3 (MAP@10) to +10.0 (MRR@10)." in told  # what fell is not passed over
    (unlimited,) = verdicts(given, {"stages": counts, "config": {"generate": {"max_passages": None}}})
    assert "max_passages" not in " ".join(reason.en for reason in unlimited.reasons)
    assert "28 of them asked about" in done(run, given).en


def test_what_both_models_reach_with_bm25_stands_beside_the_verdict() -> None:
    given = evaluation(BETTER)
    fused = {"ndcg@10": {"value": -0.024, "low": -0.071, "high": 0.022, "p": 0.3}}
    given["differences"].append({"model": "tuned", "base": "base", "mode": "dense+BM25", "metrics": fused})
    (found,) = verdicts(given)
    assert "Joined with BM25 the change is -2.4 points [-7.1, +2.2]." in [r.en for r in found.reasons]


def test_what_finds_most_is_named_where_it_is_not_the_tuned_model() -> None:
    for change, advised in ((BETTER, False), (UNSURE, True), (WORSE, True)):
        given = evaluation(change)
        given["rows"].append({"model": "base", "mode": "dense+BM25", "metrics": {"ndcg@10": 0.95}})
        told = verdicts(given)[0].reasons[-1].en
        assert "base dense+BM25 finds most: 95.0" in told and ("the one to use" in told) == advised
    assert "finds most" not in " ".join(r.en for r in verdicts(evaluation(BETTER))[0].reasons)
    lead = {"model": "base", "base": "base", "mode": "dense+BM25", "base_mode": "dense"}
    for low, chance in ((-0.011, True), (0.02, False)):
        change = {"ndcg@10": {"value": 0.075, "low": low, "high": 0.157, "p": 0.07}}
        told = verdicts(given | {"within_model": [lead | {"metrics": change}]})[0].reasons[-1].en
        assert ("Its lead over base dense may be chance, too: +7.5 points [-1.1, +15.7]." in told) == chance


def test_wins_are_counted_over_all_questions_of_the_set() -> None:
    rows = [
        {"set": "eval", "tuned dense": {"ndcg@10": v}, "base dense": {"ndcg@10": 0.5}} for v in (1, 0.5, 0.5, 0, 0.6)
    ]
    compared = {"model": "tuned", "base": "base", "mode": "dense"}
    assert tally(rows, "eval", compared, "ndcg@10") == {"better": 2, "worse": 1, "same": 2}
    assert tally(rows, "general", compared, "ndcg@10") is None


@pytest.mark.parametrize(("against", "said"), [([], "though not surely"), ([WORDS], "finds more: 80.0 against 62.0")])
def test_a_bm25_that_finds_more_is_said(against, said) -> None:
    given = evaluation(BETTER, against_bm25=against)
    given["rows"][0]["metrics"]["ndcg@10"] = 0.8
    (found,) = verdicts(given)
    assert found.deploy == "no" and found.bm25 == 80
    given["rows"][-1]["metrics"]["ndcg@10"] = 0.9  # both together are better than either
    (together,) = verdicts(given)
    assert together.deploy == "beside" and "Both together reach 90.0" in together.reasons[-1].en
    assert said in found.reasons[-1].en and "Both together reach only 70.0" in found.reasons[-1].en


def test_the_story_adds_up_to_what_run_json_counts() -> None:
    stages = {
        "load": {"counts": {"documents": 20}, "dropped": {"empty": 2}},
        "split": {"counts": {"passages": 90, "train": 60, "eval": 30}, "dropped": {"too-short": 10}},
        "generate": {"counts": {"pairs": 50, "passages asked": 29}, "dropped": {"over-max_passages": 60, "incomplete": 3}},
        "filter": {"counts": {"kept": 40, "train": 30, "eval": 10}, "dropped": {"copied": 9, "round-trip": 1}},
        "mine": {"counts": {}, "dropped": {"copies-a-held-out-target": 4}},
        "export": {"counts": {"examples": 25, "negatives": 175}, "dropped": {"no-negative": 1, "no-passage": 7}},
    }  # fmt: skip
    steps = {s.name.en: s for s in story({"stages": stages}, {})}
    assert [s.total for s in steps.values()] == [22, 100, 53, 40, 25]
    assert [(p.count, p.name.en) for p in steps["passages"].parts] == [
        (30, "asked about"), (10, "too short"), (60, "over the limit max_passages"),
    ]  # fmt: skip
    kept = steps["kept questions"]
    assert {p.name.en: p.count for p in kept.parts} == {
        "became training rows": 25, "its passage copies a held-out one": 4, "no negative was found": 1,
        "held out, to measure on": 10,
    }  # fmt: skip
    assert all(abs(sum(p.share for p in s.parts) - 100) < 1e-9 for s in steps.values() if s.parts)
    reviewed = json.loads(json.dumps(stages))
    reviewed["export"]["dropped"]["reviewed-drop"] = 3  # by an expert, held-out questions
    assert next(s.total for s in story({"stages": reviewed}, {}) if s.name.en == "kept questions") == 40
    coverage = {"classes": {"has a kept question": 20, "asked, but no question was kept": 9, "over-max_passages": 61}}
    told = {s.name.en: s for s in story({"stages": stages}, {"coverage": coverage})}["passages"]
    assert [p.count for p in told.parts] == [29, 10, 61]


def test_scores_are_those_of_the_parquet_files(run: Path) -> None:
    found = scores_view(run, json.loads((run / "run.json").read_text()))
    assert found
    scores, decisions = pq.read_table(run / "6-scores.parquet"), pq.read_table(run / "7-decisions.parquet")
    kinds = decisions["decision"].to_pylist()
    told = {name.en.split(" ")[0].strip(":"): n for name, n, _ in found.decisions}
    assert told["chosen"] == kinds.count("negative") == 40 * NEGATIVES
    assert found.questions == 40
    kind = dict(zip(_keys(decisions), kinds, strict=True))
    negative = np.array([kind.get(key) == "negative" for key in _keys(scores)])
    cosine, rank = (scores[name].to_numpy()[negative] for name in ("score", "dense_rank"))
    captions = {c.title.en: c.caption.en for c in found.charts}
    told_median = float(re.search(r"chosen negatives (\d\.\d+)", captions["Cosine with the question"])[1])  # type: ignore[index]
    assert told_median == pytest.approx(float(np.median(cosine)), abs=0.002)
    told_rank = int(re.search(r"median (\d+)", captions["Rank of the candidates"])[1])  # type: ignore[index]
    assert told_rank == pytest.approx(float(np.median(rank[~np.isnan(rank)])), abs=1)
    hardness = next(c for c in found.charts if c.title.en.startswith("Hardness"))
    assert [m.name.en for m in hardness.chart.marks] == ["ceiling, 1: above it a candidate is rejected"]
    assert f"chosen negatives ({negative.sum():,})" in [s.name.en for s in hardness.chart.series if s.name]


def test_what_a_chart_cannot_show_in_its_place_is_counted_below_it(run: Path, tmp_path: Path) -> None:
    scores, decisions = pl.read_parquet(run / "6-scores.parquet"), pl.read_parquet(run / "7-decisions.parquet")
    keys = ["pair_id", "candidate_id"]
    chosen = (
        decisions.filter(pl.col("decision") == "negative").join(scores, on=keys).filter(pl.col("score").is_finite())
    )
    three = pl.concat_str(keys).is_in((chosen["pair_id"] + chosen["candidate_id"]).head(3).implode())
    scores.with_columns(
        dense_rank=pl.when(three).then(None).otherwise("dense_rank"),
        chance_score=pl.when(three).then(pl.col("positive_score") + 1).otherwise(0),
        positive_score=pl.when(three).then("positive_score").otherwise(1),
    ).write_parquet(tmp_path / "6-scores.parquet")
    shutil.copy(run / "7-decisions.parquet", tmp_path)
    found = scores_view(tmp_path, json.loads((run / "run.json").read_text()))
    captions = {c.title.en: c.caption.en for c in found.charts}  # type: ignore[union-attr]
    assert "3 of those drawn lie beyond -2 and 3" in captions["Hardness: how near to the positive"]
    assert "3 chosen negatives, which another search found, have none." in captions["Rank of the candidates"]


def test_a_bin_under_the_mouse_tells_what_it_holds(run: Path) -> None:
    found = scores_view(run, json.loads((run / "run.json").read_text()))
    charts = {c.title.en: c.chart for c in found.charts}  # type: ignore[union-attr]
    for title in ("Cosine with the question", "Rank of the candidates"):
        tips = [words for _, _, words in charts[title].tips]
        told = [re.fullmatch(r"(.+): (?:.+, )?chosen negatives \((\d+)\).*", t.en) for t in tips]
        legend = " ".join(s.name.en for s in charts[title].series if s.name)
        assert f"chosen negatives ({sum(int(m[2]) for m in told if m)})" in legend
        assert len({m[1] for m in told if m}) == len(tips)  # no two bins read alike
        assert all("选中的负例（" in t.zh and "negatives" not in t.zh for t in tips)


def _keys(table: Any) -> list[tuple[str, str]]:
    return list(zip(table["pair_id"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))


@pytest.mark.parametrize(("preset", "unit"), [("perc", "share"), ("margin", "margin"), ("window", "distance")])
def test_each_presets_threshold_is_drawn_on_its_own_scale(run: Path, preset: str, unit: str) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["config"]["choose"] |= {"preset": preset, "ceiling": 0.9, "margin": 0.02, "window": [0.001, 0.4]}
    found = scores_view(run, manifest)
    hardness = next(c for c in found.charts if c.title.en.startswith("Hardness"))  # type: ignore[union-attr]
    assert unit in hardness.title.en and len(hardness.chart.marks) == (2 if preset == "window" else 1)


def test_a_damaged_parquet_file_is_named(run: Path, tmp_path: Path) -> None:
    for name in ("6-scores.parquet", "7-decisions.parquet"):
        (tmp_path / name).write_bytes((run / name).read_bytes()[:1000])
    with pytest.raises(InputError, match=r"6-scores\.parquet.*cannot be read"):
        write_report(tmp_path)


def write_events(folder: Path, name: str, steps: range, loss: Any) -> Path:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for step in steps:
        values = [Summary.Value(tag="train/loss", simple_value=loss(step))]
        values.append(Summary.Value(tag="train/learning_rate", simple_value=step / 100))
        writer.add_event(Event(wall_time=step, step=step, summary=Summary(value=values)))
    writer.close()
    (file,) = (f for f in folder.iterdir() if "tfevents.1" in f.name and "-" not in f.name)
    return file.rename(folder / f"events.out.tfevents.{name}-")


def test_training_curves_are_those_of_the_events_and_damage_is_named(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    first = write_events(tuned / "runs" / "a", "1", range(1, 15), lambda s: 9.0)
    write_events(tuned / "runs" / "b", "2", range(5, 11), lambda s: float("nan") if s == 7 else 1 / s)  # resumed at 5
    write_json(tuned / "launch.json", {"batch": {"updates": 12}, "data": [{"sha256": "ab" * 32}]})
    run = {"stages": {"export": {"outputs": {"train.jsonl": "cd" * 32}}}}
    (found,) = training_view(tmp_path, evaluation(BETTER), run)
    loss = next(c for c in found.curves if c.title.en == "Loss")
    assert loss.caption.en == "From 9 to 0.1 over 10 steps (9 values)."
    x, y = zip(*[map(float, p.split()) for p in loss.chart.series[0].path[1:].split("L")], strict=True)
    steps = [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert x == pytest.approx([100 * (s - 1) / 9 for s in steps], abs=0.01)
    assert y == pytest.approx([100 - 100 * (9 if s < 5 else 1 / s) / 9 for s in steps], abs=0.01)
    write_events(tuned / "runs" / "c", "3", range(11, 40), lambda s: 7.0 if s == 39 else 0.5)
    (more,) = training_view(tmp_path, evaluation(BETTER), run)
    assert "Means of the first and the last 3: 9, 2.67." in more.curves[0].caption.en  # the last step alone misleads
    said = " ".join(r.en for r in found.remarks)
    assert "1 values are infinite" in said and "ends at step 10 of 12" in said and "Trained on another file" in said
    assert found.files[-1] == "tuned/launch.json"
    first.write_bytes(b"no TensorBoard file " * 9)
    (broken,) = training_view(tmp_path, {}, {})
    assert f"Nothing can be read in <code>{first.relative_to(tmp_path)}" in " ".join(r.en for r in broken.remarks)
    for file in tuned.rglob("events*"):
        file.unlink()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "there are no TensorBoard events in <code>tuned</code>" in page and "没有 TensorBoard 事件文件" in page


def test_the_training_that_is_told_is_that_of_the_model_that_was_measured(tmp_path: Path) -> None:
    """Another run's tuned/ beside a run that has one of that name; and a run that has moved."""
    for place, updates in (("run/tuned", 11), ("other/tuned", 77)):
        write_events(tmp_path / place / "runs", "1", range(1, 5), lambda s: 1.0)
        write_json(tmp_path / place / "launch.json", {"batch": {"updates": updates}})
    measured = dict(evaluation(BETTER))
    measured["models"] = {"base": {"path": "b"}, "tuned": {"path": str(tmp_path / "other" / "tuned")}}
    (found,) = training_view(tmp_path / "run", measured, {})
    assert "of 77" in " ".join(r.en for r in found.remarks)
    (tmp_path / "other").rename(tmp_path / "gone")
    (found,) = training_view(tmp_path / "run", measured, {})
    assert "of 11" in " ".join(r.en for r in found.remarks)


def test_where_the_numbers_of_a_training_come_from_is_told_wherever_the_command_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(tmp_path / "run" / "tuned" / "runs", "1", range(1, 5), lambda s: 1.0)
    batch = {"rows": 53, "queries_per_step": 8, "hard_negatives": 2, "in_batch_negatives": 21, "dropped": 5}
    arguments = {"num_train_epochs": ["4.0"], "learning_rate": ["1e-05"], "temperature": ["0.02"]}
    arguments |= {"query_max_len": ["64"], "passage_max_len": ["192"]}
    write_json(tmp_path / "run" / "tuned" / "launch.json", {"updates": 24, "batch": batch, "arguments": arguments})
    monkeypatch.chdir(tmp_path)
    measured = evaluation(BETTER) | {"models": {"base": {"path": "b"}, "tuned": {"path": "run/tuned"}}}
    (found,) = training_view(tmp_path / "run", measured, {})
    assert found.files[-1] == found.record == "tuned/launch.json" and found.files[0].startswith("tuned/runs/")
    told = found.shape.en.striptags() if found.shape else ""
    assert "Epochs 4, learning rate 1e-05, temperature 0.02; questions are cut at 64 tokens, passages at 192" in told
    assert "24 steps of 8 questions from 53 rows" in told and "In each epoch 5 rows are left over" in told


def test_reviews_are_counted_as_they_hold_now(run: Path, tmp_path: Path) -> None:
    def decide(log: ReviewLog, pair: int, decision: str, *negatives: str, reviewer: str = "李") -> None:
        log.add(Decision(time="t", id=f"q{pair}", decision=decision, negatives=negatives, reviewer=reviewer))  # type: ignore[arg-type]

    assert reviews_view(tmp_path) is None
    (tmp_path / "4-kept.jsonl").write_bytes((run / "4-kept.jsonl").read_bytes())
    with ReviewLog(tmp_path, print) as log:
        for pair in range(6):
            decide(log, pair, "good")
        decide(log, 0, "drop", reviewer="王")  # changes its mind
        decide(log, 6, "positive", "t1", "t2")
        decide(log, 7, "skip")
        decide(log, 999, "good")  # of an earlier build
    found = reviews_view(tmp_path)
    assert found and (found.reviewed, found.of_questions, found.stale, found.reviewers) == (7, 42, 1, 2)
    assert {name.en: n for name, n, _ in found.verdicts} == {
        "good": 5, "not answerable from its passage": 0, "a negative answers it, too": 1, "drop the question": 1,
    }  # fmt: skip
    assert (found.contradicted, found.false_negatives) == (2, 2)
    assert found.interval == pytest.approx((8.2, 64.1), abs=0.1)  # Wilson's of 2 in 7
