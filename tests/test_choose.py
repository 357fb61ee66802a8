"""Filtering, mining, scoring and choosing on vectors made by hand, where every right answer is known."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.choose import choose, rejection
from factory.config import ChooseConfig, QualityConfig
from factory.export import training_rows
from factory.hybrid import COLUMNS, chance_score, edit_dist, lcs_score, score, token_jaccard
from factory.quality import rule_broken
from factory.records import Pair, Passage
from factory.retrieve import Target, mine, rank_of_target

PASSAGE = (
    "焊条使用前应在350℃烘干两小时，随后放入保温筒内，当天用完。低氢焊条受潮后，扩散氢含量升高，焊缝容易产生冷裂纹。"
)


def target(
    i: int, text: str | None = None, group: str | None = None, split="train", span=(0, 0), document="d"
) -> Target:
    return Target(f"t{i}", text or f"第{i}段：{chr(0x4E00 + i * 37) * 12}", group or f"t{i}", split, document, *span)


def pair(i: int, t: Target, query: str | None = None, answer: str = "") -> Pair:
    return Pair(
        id=f"q{i}", passage_id=t.id, query=query or f"问题{i}？", answer=answer, target_id=t.id, target_text=t.text,
        duplicate_group=t.duplicate_group, split=t.split,
    )  # fmt: skip


def passage(text: str) -> Passage:
    return Passage(
        id="p", document_id="d", source="s", text=text, start=0, end=len(text), tokens=9, document_group="g",
        duplicate_group="p", split="train",
    )  # fmt: skip


def unit(rows) -> np.ndarray:
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def circle(degrees) -> np.ndarray:
    radians = np.radians(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("低氢焊条潮了会出什么毛病？", None),
        ("本文提到的焊条要烘多久？", "dangling-reference"),
        ("根据资料，焊条烘干几小时？", "dangling-reference"),
        ("该方法的烘干温度是多少？", "dangling-reference"),
        ("焊条？", "length"),
        ("How long do electrodes need in the oven?", "wrong-language"),
        ("焊条使用前应在350℃烘干两小时，随后放入保温筒内？", "copied"),
        ("低氢焊条受潮后，扩散氢含量升高，这是为什么呢？", "copied"),
        ("低氢焊条受潮后会怎样？", None),
    ],
)
def test_chinese_rules(query, reason):
    p = passage(PASSAGE)
    broken = rule_broken(pair(0, target(0), query), p, QualityConfig())
    assert (broken[0] if broken else None) == reason


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("Why does my espresso taste sour?", None),
        ("What does this study say about channeling?", "dangling-reference"),
        ("Which pressure is mentioned in the text above?", "dangling-reference"),
        ("Does the study of latin need coffee?", None),
        ("Espresso that runs too fast is sour, why is that the case?", None),
        ("Grind finer until the shot takes 25 to 30 seconds, is that right?", "copied"),
        ("为什么咖啡发酸？", "wrong-language"),
    ],
)
def test_english_rules(query, reason):
    text = "Espresso that runs too fast is sour. Grind finer until the shot takes 25 to 30 seconds."
    p = passage(text)
    broken = rule_broken(pair(0, target(0), query), p, QualityConfig())
    assert (broken[0] if broken else None) == reason


def test_rank_counts_a_copy_of_the_target_as_the_target():
    targets = [target(0), target(1, group="t0"), target(2)]
    ranks = rank_of_target([pair(0, targets[0])], targets, circle([0]), circle([50, 10, 20]))
    assert ranks == [1]
    assert rank_of_target([pair(0, targets[2])], targets, circle([0]), circle([50, 10, 20])) == [2]


def test_candidates_never_hold_the_positive_its_copies_its_overlaps_or_siblings():
    targets = [
        target(0, span=(0, 100)),
        target(1, group="t0", document="elsewhere"),
        target(2, span=(80, 200)),  # overlaps the positive in the same document
        target(3, document="b"),
        target(4, document="c"),
        target(5, span=(100, 180)),  # next to it: a good negative
    ]
    pairs = [pair(0, targets[0], "同一个问题？"), pair(1, targets[3], "同一个问题？")]
    columns = mine(pairs, targets, circle([0, 0]), circle([0, 1, 2, 3, 4, 5]), top_k=10)
    of_first = [c for p, c in zip(columns["pair_id"], columns["candidate_id"], strict=True) if p == "q0"]
    assert of_first == ["t4", "t5"]
    ranks = [r for p, r in zip(columns["pair_id"], columns["rank"], strict=True) if p == "q0"]
    assert ranks == [1, 2]


def test_top_k_is_reached_in_spite_of_what_is_left_out():
    targets = [target(0), *(target(i, group="t0") for i in range(1, 30)), *(target(i) for i in range(30, 60))]
    columns = mine([pair(0, targets[0])], targets, circle([0]), circle(np.linspace(0, 60, 60)), top_k=10)
    assert columns["candidate_id"] == [f"t{i}" for i in range(30, 40)]


def table(n: int = 30, reranker=None):
    draw = np.random.default_rng(0)
    targets = [target(i) for i in range(n)]
    pairs = [pair(i, targets[i]) for i in range(5)]
    answers = unit(draw.normal(size=(n, 8)) + 3)  # a cone of vectors, as e5's: every cosine is high
    queries = unit(answers[:5] + draw.normal(size=(5, 8)) * 0.2)
    candidates = mine(pairs, targets, queries, answers, top_k=20)
    return score(candidates, pairs, targets, queries, answers, reranker), pairs, targets


def test_the_table_has_the_21_columns_and_nulls_where_a_target_has_no_question():
    scores, _, _ = table()
    assert len(COLUMNS) == 21
    assert set(COLUMNS) <= set(scores.column_names)
    known = {f"t{i}" for i in range(5)}
    for row in scores.to_pylist():
        assert (row["query_tgt_query_bge_cos"] is None) == (row["candidate_id"] not in known)
        assert row["query_tgt_answer_bge_cos"] == pytest.approx(row["score"], abs=1e-6)


def test_measures_of_known_texts():
    assert lcs_score(["abcdef"], ["acf"])[0] == pytest.approx(3 / 6)
    assert edit_dist(["焊接裂纹"], ["焊接气孔"])[0] == pytest.approx(2 / 4)
    assert token_jaccard(["preheat the plate"], ["preheat the pipe"])[0] == pytest.approx(2 / 4)
    assert token_jaccard(["焊接裂纹"], ["焊接裂纹"])[0] == 1


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=8))
def test_measures_stay_in_their_range_for_any_text(pairs):
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    for measure in (lcs_score, edit_dist, token_jaccard):
        values = measure(left, right)
        assert ((values >= 0) & (values <= 1)).all()


ROW = {
    "score": 0.5,
    "positive_score": 0.8,
    "chance_score": 0.1,
    "answer_tgt_answer_jaccard": 0.1,
    "rerank_score": None,
    "positive_rerank_score": None,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"score": 0.79}, "above-the-ceiling"),
        ({"answer_tgt_answer_jaccard": 0.9}, "near-copy-of-the-positive"),
        ({"rerank_score": 2.0, "positive_rerank_score": 1.0}, "reranker-prefers-it"),
        ({"rerank_score": -3.0, "positive_rerank_score": -1.0}, None),
        # scores below zero: a plain share of the positive's score would be above it
        ({"score": -0.1, "positive_score": -0.1, "chance_score": -0.6}, "above-the-ceiling"),
        ({"score": -0.3, "positive_score": -0.1, "chance_score": -0.6}, None),
        # e5: every cosine is near 0.8; a share of the raw cosine would let a better match through
        ({"score": 0.838, "positive_score": 0.84, "chance_score": 0.78}, "above-the-ceiling"),
    ],
)
def test_the_ceiling(change, reason):
    assert rejection(ROW | change, ChooseConfig()) == reason


def test_each_candidate_has_one_decision_and_each_pair_its_negatives():
    scores, pairs, targets = table()
    columns = choose(scores, pairs, targets, ChooseConfig(negatives=4), seed=1)
    keys = list(zip(columns["pair_id"], columns["candidate_id"], strict=True))
    assert len(keys) == len(set(keys))
    assert set(keys) >= set(zip(scores["pair_id"].to_pylist(), scores["candidate_id"].to_pylist(), strict=True))
    for p in pairs:
        assert (
            sum(d == "negative" for q, d in zip(columns["pair_id"], columns["decision"], strict=True) if q == p.id) == 4
        )
    assert columns == choose(scores, pairs, targets, ChooseConfig(negatives=4), seed=1)


def test_where_all_candidates_are_refused_unrelated_passages_fill_up_and_say_so():
    scores, pairs, targets = table(n=12)
    columns = choose(scores, pairs, targets, ChooseConfig(negatives=3, near_copy=0.0), seed=1)
    drawn = [r for d, r in zip(columns["decision"], columns["reason"], strict=True) if d == "negative"]
    assert set(drawn) <= {"random-fill"}


class LengthReranker:
    """Scores by nothing but length: enough to see whose logits go where."""

    fingerprint = "length"

    def score(self, pairs):
        return np.array([len(q) * 100 + len(p) for q, p in pairs], dtype=np.float32)


def test_teacher_scores_are_the_rerankers_raw_logits_in_the_order_of_the_texts():
    scores, pairs, targets = table(reranker=LengthReranker())
    boosted = scores.set_column(
        scores.column_names.index("positive_rerank_score"),
        "positive_rerank_score",
        pa.array([1e6] * len(scores), pa.float32()),
    )
    columns = choose(boosted, pairs, targets, ChooseConfig(negatives=3), seed=1)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    examples, _ = training_rows(pairs, targets, rows, {p.id: 1e6 for p in pairs})
    for example in examples:
        assert example.pos_scores == [1e6]
        assert example.neg_scores == [len(example.query) * 100 + len(n) for n in example.neg]


def test_a_pair_without_any_negative_is_dropped_by_name():
    t = target(0)
    examples, dropped = training_rows([pair(0, t)], [t], [], {})
    assert not examples and (dropped[0].id, dropped[0].reason) == ("q0", "no-negative")


def test_chance_is_the_mean_cosine_of_unrelated_texts():
    queries, answers = circle([0, 90]), circle([0, 90])
    assert chance_score(queries, answers) == pytest.approx(0.5)
