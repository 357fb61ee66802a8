"""The hybrid features: known values, and what must hold for any two texts."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.hybrid import COLUMNS, Scorer, chance_score
from factory.lexical import edit_dist, lcs_score, token_jaccard
from factory.tables import everything, write_blocks, write_csv
from factory.tokens import tokens
from factory.word_sets import WordSets
from tests.handmade import candidates, circle, pair, scored, target, unit

MEASURES = {"lcs": lcs_score, "edit": edit_dist, "jaccard": token_jaccard}
# any code point, lone surrogates among them (a JSON escape can bring one in); Chinese and English mixed
TEXTS = st.text(st.characters(exclude_categories=()), max_size=40) | st.text("焊接裂纹 abc。", max_size=40)


def test_measures_of_known_texts():
    assert lcs_score(["abcdef"], ["acf"])[0] == pytest.approx(3 / 6)
    assert edit_dist(["焊接裂纹"], ["焊接气孔"])[0] == pytest.approx(2 / 4)
    assert token_jaccard(["preheat the plate"], ["preheat the pipe"])[0] == pytest.approx(2 / 4)
    assert token_jaccard(["焊接裂纹"], ["焊接缺陷"])[0] == pytest.approx(1 / 5)
    assert token_jaccard(["焊条 E4303"], ["Ｅ４３０３焊条"])[0] == 1  # order and width do not matter


@pytest.mark.parametrize(("name", "equal", "nothing_in_common"), [("lcs", 1, 0), ("edit", 0, 1), ("jaccard", 1, 0)])
def test_equal_empty_and_unlike_texts(name, equal, nothing_in_common):
    measure = MEASURES[name]
    assert measure(["", "焊", "x" * 10_000], ["", "焊", "x" * 10_000]).tolist() == [equal] * 3
    assert measure(["", "焊接"], ["焊接", "abc"]).tolist() == [nothing_in_common] * 2
    assert measure([], []).shape == (0,)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
@settings(deadline=None)
def test_measures_are_symmetric_and_in_range_and_a_text_equals_itself(texts):
    left, right = [a for a, _ in texts], [b for _, b in texts]
    for name, measure in MEASURES.items():
        values = measure(left, right)
        assert ((values >= 0) & (values <= 1)).all()
        assert values.tolist() == measure(right, left).tolist()
        assert (measure(left, left) == (0 if name == "edit" else 1)).all()


@given(st.lists(TEXTS, min_size=1, max_size=8))
@settings(deadline=None)
def test_the_compiled_words_are_those_of_bm25(texts):
    words, ends = WordSets().of(texts)
    assert np.diff(ends).tolist() == [len(set(tokens(text))) for text in texts]
    assert all((words[a : b - 1] < words[a + 1 : b]).all() for a, b in pairwise(ends) if a < b)
    both = [(set(tokens(a)), set(tokens(b))) for a, b in zip(texts, texts[::-1], strict=True)]
    expected = [len(a & b) / len(a | b) if a | b else 1 for a, b in both]
    assert token_jaccard(texts, texts[::-1]).tolist() == pytest.approx(expected)


def test_words_whose_memory_is_full_are_cut_again(monkeypatch):
    monkeypatch.setattr("factory.word_sets.KEPT", 3)
    monkeypatch.setattr("factory.word_sets.BATCH", 2)
    sets = WordSets()
    texts = [f"焊条 E{i}" for i in range(8)]
    first = sets.of(texts)[0].tolist()
    assert len(sets._known) == 3
    assert sets.of(texts)[0].tolist() == first


def test_a_passage_of_ten_thousand_characters_is_measured_whole():
    long = "焊接" * 5000
    assert lcs_score([long], [long[:-2] + "裂纹"])[0] == pytest.approx(1 - 2 / 10_000)
    assert edit_dist([long], [long + "裂"])[0] == pytest.approx(1 / 10_001)


def test_the_table_has_the_21_columns_and_nulls_where_a_target_has_no_question():
    scores, _, _ = scored()
    assert len(COLUMNS) == 21
    assert set(COLUMNS) <= set(scores.column_names)
    known = {f"t{i}" for i in range(5)}
    for row in scores.to_pylist():
        assert (row["query_tgt_query_bge_cos"] is None) == (row["candidate_id"] not in known)
        assert (row["target_query"] is None) == (row["candidate_id"] not in known)
        assert row["query_tgt_answer_bge_cos"] == pytest.approx(row["score"], abs=1e-6)


def test_every_value_is_that_of_its_own_row_although_each_distinct_pair_is_compared_once():
    targets = [target(0, "焊条烘干两小时"), target(1, "焊条烘干一小时"), target(2, "钨极氩弧焊"), target(3, "焊条烘干")]
    pairs = [pair(0, targets[0], "焊条烘多久"), pair(1, targets[0], "烘干几小时"), pair(2, targets[1], "氩弧焊用什么")]
    queries, answers = circle([0, 5, 30]), circle([0, 10, 20, 40])
    block = candidates(pairs, targets, queries, answers, 10)
    table = Scorer(pairs, targets, queries, answers).table(block)
    vector = {p.id: q for p, q in zip(pairs, queries, strict=True)} | {
        t.id: a for t, a in zip(targets, answers, strict=True)
    }
    own, text = {p.id: p for p in pairs}, {t.id: t.text for t in targets}
    question = {"t0": pairs[0], "t1": pairs[2]}
    for row in table.to_pylist():
        p, other = own[row["pair_id"]], question.get(row["candidate_id"])
        assert row["duplicate_group"] == row["candidate_id"]
        assert row["positive_score"] == pytest.approx(float(vector[p.id] @ vector[p.target_id]), abs=1e-6)
        assert row["positive_jaccard"] == token_jaccard([p.query], [p.target_text])[0]
        assert row["positive_lcs_score"] == lcs_score([p.query], [p.target_text])[0]
        assert (row["query"], row["answer"], row["target_answer"]) == (
            p.query,
            p.target_text,
            text[row["candidate_id"]],
        )
        sides = {"query_tgt_answer": (p.id, p.query, row["candidate_id"], text[row["candidate_id"]])}
        sides["answer_tgt_answer"] = (p.target_id, p.target_text, row["candidate_id"], text[row["candidate_id"]])
        if other:
            assert row["target_query"] == other.query
            sides["query_tgt_query"] = (p.id, p.query, other.id, other.query)
            sides["answer_tgt_query"] = (p.target_id, p.target_text, other.id, other.query)
        for side, (a, left, b, right) in sides.items():
            assert row[f"{side}_bge_cos"] == pytest.approx(float(vector[a] @ vector[b]), abs=1e-6)
            assert row[f"{side}_lcs_score"] == lcs_score([left], [right])[0]
            assert row[f"{side}_edit_dist"] == edit_dist([left], [right])[0]
            assert row[f"{side}_jaccard"] == token_jaccard([left], [right])[0]


def test_a_file_of_several_blocks_reads_back_as_it_was(tmp_path):
    scores, _, _ = scored()
    blocks = [scores.slice(0, 40), scores.slice(40)]
    assert write_blocks(tmp_path / "s.parquet", iter(blocks)) == len(scores)
    lines = write_csv(tmp_path / "s.parquet").read_text(encoding="utf-8-sig").splitlines()
    assert (
        len(lines) == 1 + len(scores) and lines[0].startswith('"pair_id","candidate_id","rank"') and "问题0" in lines[1]
    )
    back = list(everything(tmp_path / "s.parquet"))
    assert [len(b) for b in back] == [40, len(scores) - 40]
    assert pa.concat_tables(back).to_pylist() == scores.to_pylist()


def test_chance_is_the_mean_cosine_of_unrelated_texts():
    assert chance_score(circle([0, 90]), circle([0, 90])) == pytest.approx(0.5)
    vectors = unit(np.random.default_rng(0).normal(size=(50, 4)) + 2)
    assert chance_score(vectors, vectors) == pytest.approx(float((vectors @ vectors.T).mean()), abs=1e-5)
