"""Mining on vectors made by hand: what is never a candidate, ranks of each source, and the faults of other miners."""

import numpy as np
import pyarrow as pa
import pytest

from factory.indexes import BM25Index, DenseIndex, SparseIndex, choose_kind
from factory.retrieve import RANKED, mine, rank_of_target, targets_of
from factory.tokens import words_of
from tests.handmade import candidates, circle, pair, target, unit
from tests.test_generate import passage


def test_rank_counts_a_copy_of_the_target_as_the_target():
    targets = [target(0), target(1, group="t0"), target(2)]
    assert rank_of_target([pair(0, targets[0])], targets, circle([0]), circle([50, 10, 20])) == [1]
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
    pairs = [pair(0, targets[0], "同一个问题？"), pair(1, targets[3], "同一个 问题?")]
    rows = candidates(pairs, targets, circle([0, 0]), circle([0, 1, 2, 3, 4, 5]), 10).to_pylist()
    assert [(r["candidate_id"], r["rank"]) for r in rows if r["pair_id"] == "q0"] == [("t4", 1), ("t5", 2)]
    assert [r["candidate_id"] for r in rows if r["pair_id"] == "q1"] == ["t2", "t4", "t5"]


def test_of_two_pairs_with_one_answer_text_the_held_out_one_decides_what_may_be_trained_on():
    """Under question-answer targets are answers; in whatever order the pairs come."""
    held, free = target(0, "每班一次", "t0", "eval"), target(1, "每班一次", "t0")
    pairs = [
        pair(i, t).model_copy(update={"target_id": f"answer{i}", "split": t.split}) for i, t in enumerate((held, free))
    ]
    passages = [passage(f"t{i}", "某一段") for i in range(2)]
    for order in (pairs, pairs[::-1]):
        assert [t.split for t in targets_of(passages, order)] == ["eval"]


def test_an_answer_that_another_pair_of_the_passage_has_is_no_candidate():
    targets = [target(i) for i in range(4)]
    pairs = [pair(0, targets[0], answer="350 C"), pair(1, targets[1], answer=" 350 c "), pair(2, targets[2])]
    pairs = [p.model_copy(update={"passage_id": "p"}) for p in pairs]  # question-answer: targets are answers
    rows = candidates(pairs, targets, circle([0, 0, 0]), circle([0, 1, 2, 3]), 10).to_pylist()
    assert {r["candidate_id"] for r in rows if r["pair_id"] == "q0"} == {"t2", "t3"}


def test_top_k_is_reached_in_spite_of_what_is_left_out():
    targets = [target(0), *(target(i, group="t0") for i in range(1, 30)), *(target(i) for i in range(30, 60))]
    table = candidates([pair(0, targets[0])], targets, circle([0]), circle(np.linspace(0, 60, 60)), 10)
    assert table["candidate_id"].to_pylist() == [f"t{i}" for i in range(30, 40)]
    assert table["dense_rank"].to_pylist() == list(range(1, 11))


def test_each_source_keeps_its_rank_and_score_and_the_best_of_both_come_first():
    targets = [target(0, "焊条烘干"), target(1, "焊条受潮"), target(2, "预热温度"), target(3, "烘干焊条的炉子")]
    pairs = [pair(0, targets[0], "焊条怎么烘干")]
    rows = candidates(pairs, targets, circle([0]), circle([0, 40, 10, 20]), 10, "bm25").to_pylist()
    found = {r["candidate_id"]: r for r in rows}
    assert (found["t2"]["dense_rank"], found["t2"]["bm25_rank"], found["t2"]["bm25_score"]) == (1, None, None)
    assert (found["t3"]["dense_rank"], found["t3"]["bm25_rank"]) == (2, 1)
    assert rows[0]["candidate_id"] == "t3"  # second and first beat first and nowhere
    assert found["t2"]["score"] == pytest.approx(np.cos(np.radians(10)), abs=1e-6)


def test_the_rank_of_the_own_passage_is_told_where_a_search_found_it():
    targets = [target(0), target(1), target(2), target(3, group="t0"), *(target(i) for i in range(4, 30))]
    angles = [40, 10, 20, 30, *range(60, 86)]
    rows = candidates([pair(0, targets[0])], targets, circle([0]), circle(angles), 3).to_pylist()
    assert {r["positive_dense_rank"] for r in rows} == {3}  # its copy t3 comes before it
    last = candidates([pair(29, targets[29])], targets, circle([0]), circle(angles), 3).to_pylist()
    assert {r["positive_dense_rank"] for r in last} == {30}
    many = [target(i) for i in range(RANKED + 50)]
    deep = candidates([pair(0, many[-1])], many, circle([0]), circle(np.linspace(0, 80, len(many))), 3).to_pylist()
    assert {r["positive_dense_rank"] for r in deep} == {None}


def test_each_source_looks_deeper_for_what_another_found():
    targets = [target(i, "焊条烘干" if i == 20 else None) for i in range(30)]
    rows = candidates(
        [pair(0, targets[0], "焊条怎么烘干")], targets, circle([0]), circle(range(30)), 5, "bm25"
    ).to_pylist()
    found = {r["candidate_id"]: r for r in rows}
    assert set(found) == {"t1", "t2", "t3", "t4", "t5", "t20"}
    assert (found["t20"]["dense_rank"], found["t20"]["dense_deep_rank"], found["t20"]["bm25_rank"]) == (None, 20, 1)
    assert found["t20"]["dense_score"] is None and found["t1"]["bm25_deep_rank"] is None
    assert found["t1"]["dense_deep_rank"] == found["t1"]["dense_rank"] == 1


def test_blocks_do_not_change_the_result(monkeypatch):
    draw = np.random.default_rng(1)
    targets = [target(i) for i in range(40)]
    pairs = [pair(i, targets[i]) for i in range(9)]
    vectors, queries = unit(draw.normal(size=(40, 6))), unit(draw.normal(size=(9, 6)))
    whole = candidates(pairs, targets, queries, vectors, 5, "bm25")
    monkeypatch.setattr("factory.retrieve.BLOCK", 4)
    assert candidates(pairs, targets, queries, vectors, 5, "bm25").equals(whole)
    assert list(mine([], targets, queries[:0], vectors, {}, 5)) == []


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_a_place_that_the_index_leaves_empty_is_no_candidate(kind):
    """FAISS fills with -1 (and the largest negative float), which as a Python index is the last passage."""
    draw = np.random.default_rng(2)
    vectors = unit(draw.normal(size=(200, 8)))
    index = DenseIndex(vectors, kind)
    if kind == "ivf":
        index._index.nprobe = 1  # one list of many: most places stay empty
    scores, rows = index.search(unit(draw.normal(size=(3, 8))), 200)
    assert ((rows >= 0) == np.isfinite(scores)).all()
    assert np.abs(scores[rows >= 0]).max() <= 1 + 1e-5
    targets = [target(i) for i in range(200)]
    pairs = [pair(0, targets[0])]
    found = {"dense": lambda start, end, k: index.search(vectors[:1], k)}
    table = pa.concat_tables(mine(pairs, targets, vectors[:1], vectors, found, 150))
    assert np.isfinite(table["score"].to_numpy()).all() and "t0" not in table["candidate_id"].to_pylist()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_approximate_indexes_find_nearly_what_the_exact_one_finds(kind):
    vectors = unit(np.random.default_rng(3).normal(size=(3000, 16)))
    exact, near = (DenseIndex(vectors, k).search(vectors[:50], 10)[1] for k in ("flat", kind))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, near, strict=True)]) > 0.9


def test_the_index_follows_from_the_size():
    assert [choose_kind(n, 0) for n in (10, 100_001, 1_000_001)] == ["flat", "hnsw", "ivf"]
    assert [choose_kind(n, 1) for n in (10, 1_000_001, 5_000_001)] == ["flat", "flat", "ivf"]


def test_texts_without_a_common_word_are_not_found():
    index = BM25Index(["焊条烘干", "preheat"])
    scores, rows = index.search(["烘干", "zzz", "？"], 2)
    assert rows.tolist() == [[0, -1], [-1, -1], [-1, -1]] and scores[1:].max() == -np.inf
    assert (BM25Index(["。", "！"]).search(["x"], 2)[1] == -1).all()
    from scipy.sparse import csr_matrix

    scores, rows = SparseIndex(csr_matrix([[0, 1.0], [0, 0.5], [2, 0]])).search(csr_matrix([[0, 1.0], [0, 0]]), 3)
    assert rows.tolist() == [[0, 1, -1], [-1, -1, -1]] and scores[0, :2].tolist() == [1, 0.5]


def test_jieba_cuts_chinese_into_words_and_leaves_the_rest_alone():
    words = words_of("jieba")("更换E4303焊条，预热温度 150 C")
    assert "温度" in words and "e4303" in words and "150" in words and "，" not in words
