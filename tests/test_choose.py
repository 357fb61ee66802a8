"""Choosing negatives: the presets on an example worked out by hand, and what holds for all of them."""

import numpy as np
import pyarrow as pa
import pytest

from factory.choose import Chooser, choose
from factory.export import training_rows
from factory.hybrid import Scorer
from factory.presets import by_hardness
from factory.records import Example, InputError
from factory.rules import check_rules
from factory.settings import ChooseConfig, Rule
from factory.tables import write_blocks
from tests.handmade import candidates, circle, pair, scored, target

# One question, its positive at 20 degrees, and candidates at these: cosine, and squared distance 2 - 2 cos, by hand
#   t1  30: 0.866, 0.268    t2  36: 0.809, 0.382    t3  37: 0.799, 0.403    t4  45: 0.707, 0.586
#   t5  49: 0.656, 0.688    t6  50: 0.643, 0.714    t7  60: 0.500, 1.000    t8 110: -0.342, 2.684
DEGREES = [20, 30, 36, 37, 45, 49, 50, 60, 110]


def example(degrees=DEGREES, texts=None) -> tuple[pa.Table, list, list]:
    targets = [target(i, (texts or {}).get(i)) for i in range(len(degrees))]
    pairs = [pair(0, targets[0])]
    queries, answers = circle([0]), circle(degrees)
    return (
        Scorer(pairs, targets, queries, answers).table(candidates(pairs, targets, queries, answers, 100)),
        pairs,
        targets,
    )


def decide(scores, pairs, targets, probability=None, seed=1, **config) -> dict[str, tuple[str, str]]:
    chooser = Chooser(pairs, targets, ChooseConfig.model_validate(config), seed, probability)
    rows = pa.concat_tables(choose([scores], chooser, len(scores))).to_pylist()
    return {r["candidate_id"]: (r["decision"], r["reason"]) for r in rows}


def negatives(*args, **config) -> set[str]:
    return {c for c, (decision, _) in decide(*args, **config).items() if decision == "negative"}


def test_the_window_takes_what_lies_in_it_and_then_what_lies_beyond():
    assert negatives(*example(), preset="window", negatives=3) == {"t3", "t4", "t5"}
    found = decide(*example(), preset="window", negatives=5)
    assert {c for c, d in found.items() if d[0] == "negative"} == {"t3", "t4", "t5", "t6", "t7"}
    assert found["t6"] == ("negative", "fill-from-deeper-ranks") and found["t3"] == ("negative", "drawn")
    assert found["t1"] == found["t2"] == ("rejected", "nearer-than-the-window")
    assert negatives(*example(), preset="window", negatives=5, too_few="drop") == {"t3", "t4", "t5"}
    # both ends: above 0.4 and up to 0.7, not "from 0.4 to below 0.7"
    edge = 2 - 2 * float(example()[0]["score"][3].as_py())
    assert "t4" not in negatives(*example(), preset="window", window=[edge, 0.7], negatives=9, too_few="drop")
    assert "t4" in negatives(*example(), preset="window", window=[0.4, edge], negatives=9, too_few="drop")


def test_the_range_counts_ranks_from_nought_and_leaves_out_its_end():
    # ranks from 0: t1 0, t2 1, t3 2, t4 3, t5 4, t6 5, t7 6, t8 7
    assert negatives(*example(), preset="range", range=[2, 5], negatives=3) == {"t3", "t4", "t5"}
    drawn = [negatives(*example(), preset="range", range=[1, 7], negatives=2, seed=s) for s in range(60)]
    assert set().union(*drawn) == {"t2", "t3", "t4", "t5", "t6", "t7"}


def test_a_range_that_holds_too_few_is_filled_from_the_corpus_and_says_so():
    scores, pairs, targets = example()
    scores = scores.filter(pa.compute.less_equal(scores["dense_rank"], 4))  # the others were not among the candidates
    found = decide(scores, pairs, targets, preset="range", range=[3, 9], negatives=3)
    assert found["t4"] == ("negative", "drawn")
    fills = [c for c, d in found.items() if d == ("negative", "random-fill")]
    assert len(fills) == 2 and set(fills) <= {"t5", "t6", "t7", "t8"}
    assert negatives(scores, pairs, targets, preset="range", range=[3, 9], negatives=3, too_few="drop") == {"t4"}


def test_topk_takes_the_hardest():
    assert negatives(*example(), preset="topk", negatives=2) == {"t1", "t2"}


def test_perc_and_margin_are_ceilings_below_the_positive():
    # positive 0.940: 0.9 of it is 0.846, so t2 is the first; 0.2 below it is 0.740, so t4
    assert negatives(*example(), preset="perc", ceiling=0.9, negatives=2) == {"t2", "t3"}
    assert negatives(*example(), preset="margin", margin=0.2, negatives=2) == {"t4", "t5"}
    assert decide(*example(), preset="margin", margin=0.2)["t3"] == ("rejected", "above-the-ceiling")


def test_perc_lets_nothing_above_the_positive_through_where_scores_are_negative():
    # sentence-transformers' relative_margin: 0.95 x -0.5 is -0.475, above the positive's own -0.5
    scores, pairs, targets = example([120, 119, 121, 122.5, 140])  # cosines -.500, -.485, -.515, -.537, -.766
    found = decide(scores, pairs, targets, preset="perc", ceiling=0.95, negatives=2, too_few="drop")
    assert {c for c, d in found.items() if d[0] == "negative"} == {"t3", "t4"}
    assert found["t1"][0] == found["t2"][0] == "rejected"


def test_resolve_without_a_judge_has_a_ceiling_counted_from_chance():
    scores, pairs, targets = example()
    chance = float(scores["chance_score"][0].as_py())
    assert chance == pytest.approx(np.mean(np.cos(np.radians(DEGREES))), abs=1e-6)
    # 0.9 of the way from chance to the positive's 0.940
    ceiling = chance + 0.9 * (0.9397 - chance)
    found = decide(scores, pairs, targets, ceiling=0.9)
    for row in scores.to_pylist():
        assert (found[row["candidate_id"]] == ("rejected", "above-the-ceiling")) == (row["score"] > ceiling)
    shifted = scores.set_column(  # e5: every cosine lies near 0.8; the same place between chance and positive decides
        scores.column_names.index("score"), "score", pa.array([0.838] * len(scores), pa.float32())
    )
    for name, value in (("positive_score", 0.84), ("chance_score", 0.78)):
        column = pa.array([value] * len(scores), pa.float32())
        shifted = shifted.set_column(shifted.column_names.index(name), name, column)
    assert set(decide(shifted, pairs, targets, too_few="drop").values()) == {("rejected", "above-the-ceiling")}


def test_a_candidate_that_holds_the_answer_word_for_word_is_no_negative():
    targets = [
        target(0, "焊条在350 ℃烘干两小时"),
        target(1, "熔炼焊剂（ＨＪ431）也烘 350℃"),
        target(2, "焊条要存放在干燥处"),
    ]
    for answer, rejected in (("350℃", True), ("烘干两小时", False), ("烘", False), ("", False)):
        pairs = [pair(0, targets[0], answer=answer)]
        queries, answers = circle([0]), circle([20, 50, 60])
        scores = Scorer(pairs, targets, queries, answers).table(candidates(pairs, targets, queries, answers, 10))
        found = decide(scores, pairs, targets, ceiling=1.0)
        assert (found["t1"] == ("rejected", "holds-the-answer")) == rejected
        assert found["t2"] == ("negative", "drawn")


def test_a_candidate_whose_own_question_is_nearly_this_one_is_no_negative():
    targets = [target(i) for i in range(3)]
    asked = ("焊条烘干的温度和时间各是多少？", "焊条烘干的温度和时间是多少？", "焊条存放的湿度是多少？")
    pairs = [pair(i, targets[i], asked[i]) for i in range(3)]
    queries, answers = circle([0, 5, 10]), circle([20, 50, 60])
    scores = Scorer(pairs, targets, queries, answers).table(candidates(pairs, targets, queries, answers, 10))
    first = scores.slice(0, 2)
    found = decide(first, pairs, targets, ceiling=1.0, near_copy=0.7, too_few="drop")
    assert found["t1"] == ("rejected", "answers-nearly-the-same-question") and found["t2"] == ("negative", "drawn")


def test_copies_of_the_positive_and_of_one_another_are_not_drawn():
    texts = {0: "焊条在三百五十度烘干两小时后放入保温筒", 3: "焊条在三百五十度烘干两小时后放入保温筒内"}
    scores, pairs, targets = example(texts=texts)
    targets[5] = target(5, targets[4].text, group="t4")
    found = decide(scores, pairs, targets, negatives=7)
    assert found["t3"] == ("rejected", "near-copy-of-the-positive")
    assert found["t5"] == ("rejected", "copy-of-another-candidate")


@pytest.mark.parametrize("preset", ["resolve", "perc", "margin", "topk", "range", "window", "rules"])
def test_every_preset_gives_each_candidate_one_decision_and_each_pair_its_negatives(preset):
    scores, pairs, targets = scored()
    rules = [{"when": "score > 2"}] if preset == "rules" else []
    config = ChooseConfig(preset=preset, rules=rules, negatives=4, range=(2, 12), window=(0.0, 0.3))
    chooser = Chooser(pairs, targets, config, seed=1)
    table = pa.concat_tables(choose([scores], chooser, len(scores)))
    keys = list(zip(table["pair_id"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))
    assert len(keys) == len(set(keys))
    assert set(keys) >= set(zip(scores["pair_id"].to_pylist(), scores["candidate_id"].to_pylist(), strict=True))
    rows = table.to_pylist()
    for p in pairs:
        mine = [r for r in rows if r["pair_id"] == p.id and r["decision"] == "negative"]
        assert len(mine) == 4 and p.target_id not in {r["candidate_id"] for r in mine}
        assert all(r["reason"] for r in rows)
    halves = [
        scores.filter(pa.compute.is_in(scores["pair_id"], pa.array(ids))) for ids in (["q0", "q1"], ["q2", "q3", "q4"])
    ]
    assert pa.concat_tables(choose(halves, chooser, len(scores))).equals(table)  # the blocks do not matter


def test_a_pair_that_no_search_found_anything_for_is_filled_or_dropped_by_name():
    scores, pairs, targets = scored()
    rest = scores.filter(pa.compute.not_equal(scores["pair_id"], "q3"))
    for too_few, expected in (("fill", 3), ("drop", 0)):
        chooser = Chooser(pairs, targets, ChooseConfig(negatives=3, too_few=too_few), seed=1)
        rows = pa.concat_tables(choose([rest], chooser, len(rest))).to_pylist()
        assert sum(r["pair_id"] == "q3" and r["reason"] == "random-fill" for r in rows) == expected
        examples, dropped = training_rows(pairs, targets, rows, {}, fewest=3)
        assert [d.id for d in dropped] == (["q3"] if too_few == "drop" else [])
        assert len(examples) == 5 - len(dropped)


def test_a_random_fill_takes_no_answer_that_is_known():
    """Of a corpus smaller than top_k nothing is left to draw but what no search may return."""
    targets = [target(0, span=(0, 100)), target(1), target(2), target(3, span=(60, 160)), target(4)]
    pairs = [pair(0, targets[0], "密码忘了怎么办？"), pair(1, targets[1], "密码忘了 怎么办?")]
    pairs[0] = pairs[0].model_copy(update={"also": ("t2",)})
    chooser = Chooser(pairs, targets, ChooseConfig(negatives=4), seed=1)
    rows = pa.concat_tables(choose([], chooser, 0)).to_pylist()
    drawn = {p.id: {r["candidate_id"] for r in rows if r["pair_id"] == p.id} for p in pairs}
    assert drawn == {"q0": {"t4"}, "q1": {"t3", "t4"}}


def test_one_passage_has_no_candidates_and_that_is_told_where_rows_are_made(tmp_path):
    targets = [target(0)]
    pairs = [pair(0, targets[0])]
    queries, answers = circle([0]), circle([20])
    scores = Scorer(pairs, targets, queries, answers).table(candidates(pairs, targets, queries, answers, 10))
    table = pa.concat_tables(choose([scores], Chooser(pairs, targets, ChooseConfig(), 1), 0))
    assert len(table) == 0
    assert write_blocks(tmp_path / "d.parquet", [table]) == 0
    examples, dropped = training_rows(pairs, targets, table.to_pylist(), {})
    assert examples == [] and [d.reason for d in dropped] == ["no-negative"]


def test_no_question_at_all_is_the_users_to_mend(tmp_path):
    with pytest.raises(InputError, match=r"(?s)too few passages.*add documents"):
        write_blocks(tmp_path / "d.parquet", [])
    assert not list(tmp_path.iterdir())


def test_rules_are_sql_over_the_columns_and_the_first_that_holds_decides():
    rules = [
        {"when": "score > 0.85", "then": "reject", "reason": "too near"},
        {"when": "dense_rank <= 3 AND answer_tgt_answer_lcs_score < 0.9", "then": "keep"},
        {"when": "score < 0.66 OR bm25_rank IS NOT NULL"},
    ]
    scores, pairs, targets = example()
    scores = scores.append_column("bm25_rank", pa.nulls(len(scores), pa.int32()))
    found = decide(scores, pairs, targets, preset="rules", rules=rules, negatives=9, too_few="drop")
    assert {c for c, d in found.items() if d[0] == "negative"} == {"t2", "t3", "t4"}
    assert found["t1"] == ("rejected", "too near")
    assert found["t7"] == ("rejected", "score < 0.66 OR bm25_rank IS NOT NULL")


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("scor > 0.5", r"(?s)rules\[0\].*'scor > 0.5' names a column that is not there.*scor.*columns: .*score"),
        ("score >", r"is not an SQL condition"),
        ("score + 1", r"gives Float\w+, expected true or false"),
        ("sum(score) > 1", r"rules\[0\]"),
    ],
)
def test_a_rule_that_is_none_is_the_users_mistake(when, said):
    with pytest.raises(InputError, match=said):
        decide(*example(), preset="rules", rules=[{"when": when}])
    with pytest.raises(InputError, match=said):  # and before there are scores
        check_rules([Rule(when=when)], ["dense", "bm25"])


def test_rules_over_every_column_can_be_read_before_there_are_scores():
    for name in example()[0].column_names:
        check_rules([Rule(when=f"{name} IS NULL")], ["dense", "bm25"])
    with pytest.raises(InputError, match=r"sparse_rank"):
        check_rules([Rule(when="sparse_rank < 3")], ["dense", "bm25"])


def test_teacher_scores_are_the_rerankers_raw_logits_in_the_order_of_the_texts():
    scores, pairs, targets = scored()
    logits = np.arange(len(scores), dtype=np.float32) - 60
    for name, values in (("rerank_score", logits), ("positive_rerank_score", np.full(len(scores), 99, np.float32))):
        scores = scores.set_column(scores.column_names.index(name), name, pa.array(values))
    logit = {(r["pair_id"], r["target_answer"]): r["rerank_score"] for r in scores.to_pylist()}
    table = pa.concat_tables(choose([scores], Chooser(pairs, targets, ChooseConfig(negatives=3), 1), len(scores)))
    decisions, asked = table.to_pylist(), []
    filled = next(row for row in decisions if row["decision"] == "negative")
    filled["rerank_score"] = None  # as that of a negative which the reranker has not read

    def rerank(texts):
        asked.extend(texts)
        return np.full(len(texts), -7, np.float32)

    known = {p.id: 99.0 for p in pairs[1:]}
    examples, _ = training_rows(pairs, targets, decisions, known, rerank=rerank)
    text = {t.id: t.text for t in targets}
    missing = (filled["pair_id"], text[filled["candidate_id"]])
    assert len(examples) == 5 and len(asked) == 2
    for example in examples:
        assert example.pos_scores == [known.get(example.id, -7)]
        expected = [-7 if (example.id, n) == missing else logit[example.id, n] for n in example.neg]
        assert example.neg_scores == expected
    without, _ = training_rows(pairs, targets, decisions, known)
    assert {e.pos_scores for e in without} == {None}


def test_with_a_reranker_nothing_that_it_did_not_read_is_drawn():
    scores, pairs, targets = scored()
    read = np.arange(len(scores)) % 3 == 0
    columns = {
        "rerank_score": pa.array(np.where(read, -5, 0).astype(np.float32), mask=~read),
        "positive_rerank_score": pa.array(np.ones(len(scores), np.float32)),
    }
    for name, column in columns.items():
        scores = scores.set_column(scores.column_names.index(name), name, column)
    found = decide(scores.slice(0, 20), pairs[:1], targets, negatives=20)
    chosen = {c for c, d in found.items() if d[0] == "negative"}
    assert chosen and chosen <= set(scores["candidate_id"].to_pylist()[0:20:3])
    assert ("rejected", "not-read-by-the-reranker") in found.values()


def test_a_candidate_that_answers_becomes_a_positive_and_its_copies_go():
    scores, pairs, targets = example()
    targets[4] = target(4, group="t2")
    chances = {"t2": (0.99, 1), "t3": (0.99, 0), "t4": (0.1, 0), "t5": (0.5, 1), "t6": (0.05, 0), "t7": (0.2, 1)}

    def probability(table, columns):
        found = [chances.get(c, (0.0, 0)) for c in table["candidate_id"].to_pylist()]
        return {"probability": np.array([p for p, _ in found]), "judged": np.array([float(j) for _, j in found])}

    found = decide(scores, pairs, targets, probability, negatives=9, too_few="drop", reject_at=0.3)
    assert found["t2"] == ("promoted", "judged-to-answer")
    assert found["t3"] == ("rejected", "probably-answers")  # the model's word alone makes no positive
    assert found["t4"] == ("rejected", "copy-of-another-candidate")
    assert found["t5"] == ("rejected", "judged-to-answer-perhaps")
    assert found["t6"][0] == found["t7"][0] == found["t1"][0] == "negative"
    table = pa.concat_tables(
        choose([scores], Chooser(pairs, targets, ChooseConfig(reject_at=0.3), 1, probability), len(scores))
    )
    (example_,), _ = training_rows(pairs, targets, table.to_pylist(), {})
    assert example_.pos == [targets[0].text, targets[2].text]
    assert isinstance(example_, Example) and not set(example_.pos) & set(example_.neg)
    assert decide(scores, pairs, targets, probability, promote_at=1)["t2"][0] == "rejected"


def test_the_hardest_for_the_model_come_first_and_what_only_bm25_found_comes_last():
    columns = {"rank": np.array([1.0, 2, 3, 4]), "dense_rank": np.array([np.nan, 5, 2, 1])}
    by_hardness(columns)
    assert np.argsort(columns["hardness"]).tolist() == [3, 2, 1, 0]
    columns |= {"sparse_rank": np.array([np.nan, 1, 40, np.nan])}
    by_hardness(columns)
    assert np.argsort(columns["hardness"]).tolist() == [1, 2, 3, 0]


def test_a_pair_without_any_negative_is_dropped_by_name():
    t = target(0)
    examples, dropped = training_rows([pair(0, t)], [t], [], {})
    assert not examples and (dropped[0].id, dropped[0].reason) == ("q0", "no-negative")
