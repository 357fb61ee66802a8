"""The learnt model of false negatives: it finds a truth that was planted, and knows what its judge is worth."""

import numpy as np
import pyarrow as pa
import pytest

from factory.choose import Chooser, choose
from factory.config import Config
from factory.false_negatives import LEAST, FalseNegativeModel, fit, judge_error, wilson
from factory.hybrid import MEASURES, SIDES
from factory.judging import Probabilities, judge_candidates, stratified, unlikely
from factory.presets import columns_of
from factory.settings import ChooseConfig
from factory.tables import write_blocks
from tests.handmade import scored

SURE = judge_error(np.full(50, 3.0), np.full(50, -3.0))


def table(n: int = 600, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """Columns of n candidates; whether one answers depends on the likeness of the two passages alone."""
    draw = np.random.default_rng(seed)
    columns = {f"{s}_{m}": draw.uniform(0, 1, n) for s in SIDES for m in MEASURES}
    columns |= {"score": draw.uniform(0.3, 0.8, n), "positive_score": np.full(n, 0.8), "chance_score": np.full(n, 0.2)}
    columns |= {"dense_rank": draw.integers(1, 100, n).astype(float), "rerank_score": np.full(n, np.nan)}
    columns |= {"positive_rerank_score": np.full(n, np.nan), "positive_jaccard": draw.uniform(0, 1, n)}
    columns["answer_found"] = np.full(n, np.nan)
    chance = 1 / (1 + np.exp(-(12 * columns["answer_tgt_answer_jaccard"] - 8)))
    return columns, draw.uniform(size=n) < chance, [f"q{i % 60}" for i in range(n)]


def test_the_model_finds_the_feature_that_decides_and_is_calibrated():
    columns, yes, questions = table()
    model = fit(columns, yes, np.ones(len(yes)), questions, SURE)
    heaviest = max(model.coefficients, key=lambda c: abs(c.weight))
    assert heaviest.feature == "answer_tgt_answer_jaccard" and heaviest.weight > 1
    assert model.in_words()[0].startswith("answer_tgt_answer_jaccard higher by 0.2")
    assert model.auc > 0.9
    assert sum(b.count for b in model.reliability) == 600
    assert all(abs(b.predicted - b.observed) < 0.15 for b in model.reliability)
    fresh, truth, _ = table(seed=1)
    p = model.probability(fresh)
    assert abs(p.mean() - truth.mean()) < 0.05 and ((p - truth) ** 2).mean() < 0.12


def test_labels_without_any_pattern_make_no_model():
    columns, _, questions = table()
    yes = np.random.default_rng(3).uniform(size=600) < 0.3
    assert "follows none of the features" in fit(columns, yes, np.ones(600), questions, SURE)


def test_too_few_of_a_kind_is_said_in_words():
    columns, _, questions = table()
    yes = np.zeros(600, bool)
    yes[: LEAST - 1] = True
    assert "affirmed 9 of 600" in fit(columns, yes, np.ones(600), questions, SURE)
    yes[:100] = True
    assert "one question alone" in fit(columns, yes, np.ones(600), ["q"] * 600, SURE)


def test_a_value_that_is_missing_counts_as_the_mean(tmp_path):
    columns, yes, questions = table()
    for name in [n for n in columns if n.startswith("query_tgt_query")]:
        columns[name][::2] = np.nan
    model = fit(columns, yes, np.ones(600), questions, SURE)
    assert np.isfinite(model.probability(columns)).all()
    assert not any(c.feature == "rerank_gap" for c in model.coefficients)  # a column that is missing throughout
    model.save(tmp_path / "m.json")
    assert FalseNegativeModel.load(tmp_path / "m.json") == model
    assert "odds" in (tmp_path / "m.json").read_text()


def test_the_judges_error_is_taken_out_of_a_share():
    # right on 90 % of the answering and 80 % of the unrelated: of 40 % true, it affirms 0.4 x 0.9 + 0.6 x 0.2 = 48 %
    own, unrelated = np.r_[np.full(90, 1.0), np.full(10, -1.0)], np.r_[np.full(80, -1.0), np.full(20, 1.0)]
    error = judge_error(own, unrelated)
    assert (error.sensitivity, error.specificity) == (0.9, 0.8) and -1 < error.threshold < 1
    assert float(error.corrected(0.48)) == pytest.approx(0.4)
    assert float(error.corrected(0.1)) == 0 and float(error.corrected(1.0)) == 1
    assert error.usable and not judge_error(own, own).usable and not judge_error(own, own[:0]).usable
    assert error.auc == pytest.approx(0.9 * 0.8 + 0.5 * (0.9 * 0.2 + 0.1 * 0.8))


def test_wilsons_interval_by_its_published_example():
    low, high = wilson(15, 148)  # Newcombe 1998, table I: 0.0624 to 0.1605
    assert (low, high) == (pytest.approx(0.0624, abs=1e-4), pytest.approx(0.1605, abs=1e-4))
    assert wilson(0, 0) == (0, 1)


def test_a_sample_takes_evenly_from_rare_and_common_strata_and_weights_stand_for_all():
    near = np.r_[np.full(5, 0.95), np.full(995, 0.4)]
    drawn, weights = stratified(near, np.zeros(1000), 50, seed=0)
    assert len(drawn) == len(set(drawn)) == 50
    assert sum(near[drawn] > 0.9) == 5 and weights.sum() == pytest.approx(1000)


class KnowsTheAnswer:
    """A judge that affirms a question's own passage and one wrong one, and counts how often it is asked."""

    fingerprint = "knows"

    def __init__(self):
        self.asked = 0

    def score(self, pairs):
        self.asked += len(pairs)
        numbers = [(int(q[2:-1]), int(p[1 : p.index("段")])) for q, p in pairs]
        return np.array([4.0 if q == p or (q + p) % 3 == 0 else -4.0 for q, p in numbers], np.float32)


def config(**judge) -> Config:
    settings = {"input": {"path": "."}, "model": {"path": "."}, "llm": {"model": "m.gguf"}, "judge": judge}
    return Config.model_validate(settings)


def test_what_was_judged_decides_and_nothing_is_asked_beyond_the_budget(tmp_path):
    scores, pairs, targets = scored(n=60, top_k=40)
    write_blocks(tmp_path / "s.parquet", [scores.slice(0, 80), scores.slice(80)])
    judge, said = KnowsTheAnswer(), []
    found = judge_candidates(tmp_path / "s.parquet", pairs, targets, config(labels=80, band=30), judge, said.append)
    assert not isinstance(found.model, str), found.model
    assert judge.asked <= 10 + 80 + 30
    judgements = found.table(tmp_path / "s.parquet")
    assert set(judgements["purpose"].to_pylist()) <= {"sample", "least sure"}
    assert "right on 100 %" in said[0]
    for row in judgements.to_pylist():
        assert row["yes"] == ((int(row["pair_id"][1:]) + int(row["candidate_id"][1:])) % 3 == 0)
    probabilities = Probabilities(found.model, judgements)
    chooser = Chooser(pairs, targets, ChooseConfig(negatives=3), 1, probabilities)
    yes = {(r["pair_id"], r["candidate_id"]) for r in judgements.to_pylist() if r["yes"]}
    rows = pa.concat_tables(choose([scores], chooser, len(scores))).to_pylist()
    assert yes and not yes & {(r["pair_id"], r["candidate_id"]) for r in rows if r["decision"] == "negative"}
    assert {(r["pair_id"], r["candidate_id"]) for r in rows if r["decision"] == "promoted"} <= yes
    assert columns_of(scores)["score"].shape == (len(scores),)


def test_a_judge_that_affirms_whatever_is_of_the_subject_is_found_out(tmp_path):
    scores, pairs, targets = scored(n=60, top_k=20)
    write_blocks(tmp_path / "s.parquet", [scores])
    found_near = set(zip(scores["pair_id"].to_pylist(), scores["candidate_id"].to_pylist(), strict=True))
    ids = {t.text: t.id for t in targets}

    class Topical(KnowsTheAnswer):
        def score(self, pairs):
            numbers = [(f"q{int(q[2:-1])}", ids[p]) for q, p in pairs]
            return np.array([4.0 if (q, t) in found_near or q[1:] == t[1:] else -4.0 for q, t in numbers], np.float32)

    class Looks:  # what is near looks like an answer
        def evidence(self, columns):
            return columns["score"]

    def model(evidence):
        return judge_candidates(
            tmp_path / "s.parquet", pairs, targets, config(labels=20, band=0), Topical(), lambda _: None, evidence
        )

    assert model(None).error.usable  # strangers say nothing of it
    told = model(Looks())
    assert told.error.specificity < 0.2 and "wrong too often" in told.model
    least = unlikely(tmp_path / "s.parquet", np.arange(len(scores)), Looks(), seed=1)
    for pair in pairs:
        own = [r for r in scores.to_pylist() if r["pair_id"] == pair.id]
        middle = sorted(r["score"] for r in own)[len(own) // 2]
        assert next(r["score"] for r in own if r["candidate_id"] == least[pair.id]) <= middle


def test_a_judge_that_cannot_tell_gets_no_further_than_the_controls(tmp_path):
    scores, pairs, targets = scored()
    write_blocks(tmp_path / "s.parquet", [scores])

    class Coin(KnowsTheAnswer):
        def score(self, pairs):
            self.asked += len(pairs)
            return np.zeros(len(pairs), np.float32)

    judge = Coin()
    found = judge_candidates(tmp_path / "s.parquet", pairs, targets, config(), judge, lambda _: None)
    assert "wrong too often" in found.model and judge.asked == 10 and len(found.table(tmp_path / "s.parquet")) == 0
