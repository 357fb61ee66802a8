"""questions.json: every passage is accounted for, sameness is seen, and distances to real questions mean what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.backends import Encoded
from factory.diversity import KEPT, NO_PAIR, NONE_KEPT, NOT_GIVEN, QUESTIONS, describe, distinct
from factory.models import Encoder, load_encoder
from factory.records import Dropped, Pair, Passage
from factory.report import write_report
from factory.settings import ModelConfig
from factory.workspace import write_json
from tests.test_generate import passage


def pair(identity: str, of: Passage, query: str = "", **more: Any) -> Pair:
    return Pair.model_validate(
        {
            "id": identity, "passage_id": of.id, "query": query or f"{identity}号焊条要烘多久？", "target_id": of.id,
            "target_text": of.text, "duplicate_group": of.duplicate_group, "split": of.split,
        } | more
    )  # fmt: skip


def gone(identity: str, reason: str) -> Dropped:
    return Dropped(stage="generate", id=identity, reason=reason)


def asked(queries: Sequence[str]) -> tuple[list[Passage], list[Pair]]:
    """A passage for each question."""
    passages = [passage(f"p{i}", f"第{i}节：{q}请看下表。") for i, q in enumerate(queries)]
    return passages, [pair(f"q{i}", p, q) for i, (p, q) in enumerate(zip(passages, queries, strict=True))]


class Letters:
    """An encoder whose vectors are counts of characters: texts with the same characters are near."""

    fingerprint, modes = "letters", ("dense",)

    def key(self, role: str) -> str:
        return role

    def encode(self, texts: Sequence[str], role: str, *, modes: Sequence[str] = ("dense",)) -> Encoded:
        rows = np.zeros((len(texts), 512), np.float32)
        for row, text in zip(rows, texts, strict=True):
            np.add.at(row, [ord(c) % 512 for c in text], 1)
        return Encoded(rows / np.linalg.norm(rows, axis=1, keepdims=True))


SUBJECTS = ("焊条烘干", "焊缝裂纹", "焊丝受潮", "坡口角度", "层间温度", "焊接电流", "氩气纯度", "探伤标准")
PLACES = ("在雨天", "在高空", "在管道内", "在低温下", "在车间里")
WELDING = [f"{s}{p}有什么要求？" for s in SUBJECTS for p in PLACES]
COOKING = [
    f"{p}怎么做{s}？" for p in PLACES for s in ("红烧肉", "酸菜鱼", "馒头", "豆浆", "凉拌黄瓜", "饺子", "米饭", "汤圆")
]


def test_every_passage_is_in_one_class_with_its_reason() -> None:
    passages = [passage(f"p{i}", document=f"d{i // 3}") for i in range(10)]
    pairs = [pair("a", passages[0]), pair("b", passages[0]), pair("c", passages[1]), pair("d", passages[8])]
    reasons = {2: "held-out-for-test", 3: "copy-of-another-passage", 4: "copies-a-held-out-passage"}
    reasons |= {5: "over-max_passages", 6: "no-answer", 7: "unparsable"}
    dropped = [gone(f"p{i}", reason) for i, reason in reasons.items()]
    dropped.append(gone("the id of an item of p9's answer", "incomplete"))
    dropped.append(
        gone("p8", "unparsable")
    )  # a second answer of p8 that could not be read: it has a question all the same
    c = describe(passages, pairs, [pairs[1], pairs[3]], dropped)["coverage"]
    assert c["classes"] == {KEPT: 2, NONE_KEPT: 1, NO_PAIR: 1} | dict.fromkeys(reasons.values(), 1)
    assert sum(c["classes"].values()) == c["passages"] == 10
    assert (c["documents"], c["documents_covered"], c["passages_asked"]) == (4, 2, 3)
    assert [(d["id"], d["passages"]) for d in c["documents_listed"]] == [("d3", 1), ("d1", 3)]  # in vain, on purpose
    assert c["documents_without"] == {"copy-of-another-passage": 1, NO_PAIR: 1}


def test_the_page_counts_covered_passages_among_those_that_may_be_asked_about(tmp_path: Path) -> None:
    passages = [passage(f"p{i}") for i in range(5)]
    pairs = [pair("a", passages[0]), pair("b", passages[1])]
    held = [gone("p4", "held-out-for-test")]
    write_json(tmp_path / QUESTIONS, describe(passages, pairs, pairs[:1], held))
    (tmp_path / "run.json").write_text("{}")
    page = re.sub("<[^>]+>", "", write_report(tmp_path).read_text(encoding="utf-8"))
    assert "1 of 4 passages (25.0 %) have a kept question." in page and "4 个段落中有 1 个（25.0%）" in page


def test_a_users_own_pairs_do_not_make_the_llm_look_bad() -> None:
    passages = [passage("a"), passage("b")]
    given = [pair("q", passages[0], origin="given")]
    found = describe(passages, given, given, [])
    assert found["coverage"]["classes"] == {KEPT: 1, NOT_GIVEN: 1}
    assert [row["name"] for row in found["by_type"]] == ["given"]


def test_acceptance_by_type_and_asker_and_difficulty_by_rank() -> None:
    p = passage("p")
    types = ["fact"] * 4 + ["reason"] * 2
    ranks = [1, 2, 5, 6, None, 1]
    pairs = [
        pair(str(i), p, type=t, rank=r, asker=("焊工", "")[i % 2])
        for i, (t, r) in enumerate(zip(types, ranks, strict=True))
    ]
    found = describe([p], pairs, pairs[:5], [])
    assert [(r["name"], r["asked"], r["kept"], r["acceptance"]) for r in found["by_type"]] == [
        ("fact", 4, 4, 1.0),
        ("reason", 2, 1, 0.5),
    ]
    assert [(r["name"], r["asked"], r["kept"]) for r in found["by_asker"]] == [("焊工", 3, 3), ("", 3, 2)]
    assert found["difficulty"] == {"easy": 1, "medium": 2, "hard": 1, "not measured": 1}


def test_questions_that_all_begin_alike_are_seen_as_such() -> None:
    same = [f"“什么是{s}{i}？”" for i in range(4) for s in SUBJECTS]
    passages, pairs = asked([*same, "What is preheating?", "what's E5?", "Why dry them?"])
    found = describe(passages, pairs, pairs, [])["languages"]
    assert list(found) == ["zh", "en"]
    chinese, english = found["zh"]["openings"]["generated"], found["en"]["openings"]["generated"]
    assert chinese["distinct"] == 1
    assert chinese["top"] == [{"opening": "什么", "questions": 32, "share": 1.0, "other_share": None}]
    assert [(t["opening"], t["questions"]) for t in english["top"]] == [("what", 2), ("why", 1)]


def test_distinct_n_is_of_characters_in_chinese_and_of_words_in_english() -> None:
    assert distinct(["焊条，焊条。"], "zh") == {"distinct_1": 2 / 4, "distinct_2": 2 / 3}
    assert distinct(["How hot?", "how hot is it"], "en") == {"distinct_1": 4 / 6, "distinct_2": 3 / 4}


def test_lengths_share_their_bins_with_the_real_ones_and_lose_none() -> None:
    passages, pairs = asked([*("焊" * n for n in range(5, 25) for _ in range(10)), "焊" * 300])
    h = describe(passages, pairs, pairs, [], ["缝" * n for n in range(4, 34)])["languages"]["zh"]["lengths"]
    assert sum(h["generated"]["bins"]) == 201 and sum(h["real"]["bins"]) == 30
    assert len(h["generated"]["bins"]) == len(h["real"]["bins"]) <= 24
    assert (h["from"], h["width"]) == (4, 2)  # one long question does not widen the bins
    assert h["generated"]["bins"][-1] == 1 and h["generated"]["longest"] == 300
    assert h["generated"]["quartiles"] == [10, 15, 20]


@pytest.mark.parametrize("encoder", [Letters(), None])
def test_the_users_own_questions_are_at_no_distance_and_others_are_far(encoder: Encoder | None) -> None:
    def beside(generated: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        passages, pairs = asked(generated)
        found = describe(passages, pairs, pairs, [], WELDING, encoder)
        return found["languages"]["zh"]["openings"]["distance"], found["real"]

    same, near = beside(WELDING)
    other, far = beside(COOKING)
    for measure in ("total_variation", "js"):
        assert same[measure]["value"] == pytest.approx(0, abs=1e-6)
        assert other[measure]["value"] == pytest.approx(1)
        assert 0.05 < same[measure]["by_chance"] < 0.6 and other[measure]["by_chance"] < 0.6
    if encoder is None:
        assert near["nearest"] is None
    else:
        assert near["nearest"]["to_generated"] > 0.99
        assert near["nearest"]["to_real"] < 0.97  # a question is not its own nearest other one
        assert far["nearest"]["to_generated"] < near["nearest"]["to_any"] < near["nearest"]["to_real"]


def test_too_few_real_questions_are_said_to_be_too_few() -> None:
    passages, pairs = asked(WELDING)
    found = describe(passages, pairs, pairs, [], WELDING[:19], Letters())
    assert "19 real questions are too few" in found["real"]["missing"]
    assert found["languages"]["zh"]["openings"]["real"] is None


def topics_of_a_small_run(encoder: Encoder) -> tuple[dict[str, Any], list[Passage]]:
    """Ten passages on welding, ten on bread; only welding is asked about."""
    texts = [f"焊条在{t}℃烘干，焊条受潮会产生气孔，焊工应检查药皮。" for t in range(300, 400, 10)]
    texts += [f"Knead the dough for {m} minutes, let the dough rise, then bake the bread." for m in range(10, 20)]
    passages = [passage(f"p{i}", text) for i, text in enumerate(texts)]
    pairs = [pair(f"q{i}", passages[i]) for i in range(10)]
    return describe(passages, pairs, pairs[:5], [], encoder=encoder), passages


def test_a_subject_that_nobody_asks_about_is_named_first(e5_small: Path) -> None:
    encoder = load_encoder(
        ModelConfig(path=str(e5_small), query_instruction="query: ", passage_instruction="passage: ")
    )
    found, passages = topics_of_a_small_run(encoder)
    topics = found["topics"]["topics"]
    assert sum(t["passages"] for t in topics) == len(passages)
    bread = [t for t in topics if t["questions"] == 0]
    welding = [t for t in topics if t["questions"]]
    assert topics[: len(bread)] == bread and sum(t["passages"] for t in bread) >= 10
    assert sum(t["questions"] for t in welding) == 5 and sum(t["passages_covered"] for t in welding) == 5
    for some, text in ((bread, passages[-1].text.lower()), (welding, passages[0].text)):
        assert all(t["terms"] and all(term in text for term in t["terms"]) for t in some)


def test_the_same_run_gives_the_same_json() -> None:
    first, second = topics_of_a_small_run(Letters())[0], topics_of_a_small_run(Letters())[0]
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize("real", [[], WELDING[:5], COOKING])
def test_the_page_shows_the_section_and_runs_nothing_of_it(tmp_path: Path, real: list[str]) -> None:
    evil = "<script>alert(1)</script>"
    passages, pairs = asked([*WELDING, f"{evil} why?"])
    passages.append(passage("left", document="manual.pdf"))
    pairs = [p.model_copy(update={"type": evil if i % 3 else "fact", "rank": i + 1}) for i, p in enumerate(pairs)]
    found = describe(passages, pairs, pairs[:30], [gone("left", "over-max_passages")], real, Letters())
    write_json(tmp_path / QUESTIONS, found)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    section = page[page.index('<h2 id="questions">') : page.index('<h2 id="training">')]
    for said in (
        "<b>30</b> of 42 passages",
        '<span lang="en">over the limit max_passages</span><span lang="zh">超出上限 max_passages</span> <b>1</b>',
        '<span lang="en">hard (rank 6 or deeper)</span><span lang="zh">困难（第 6 名及以后）</span> <b>25</b>',
    ):
        assert said in section, said
    assert "焊条" in section and "distinct-2" in section and "with a question" in section
    assert (">your users' questions</span>" in section) == (len(real) >= 20)
    assert ("5 real questions are too few" in section) == (len(real) == 5)
    assert "<script" not in page and "&lt;script&gt;" in section
    assert not re.search(r"""(src|href)\s*=(?!"#)|url\(|@import|https?://""", page)


def test_the_page_does_without_questions_and_with_none_kept(tmp_path: Path) -> None:
    assert 'id="questions"' not in write_report(tmp_path).read_text(encoding="utf-8")
    write_json(tmp_path / QUESTIONS, describe([passage("p")], [], [], [gone("p", "no-answer")]))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>0</b> of 1 passages" in page and "no answer from the LLM</span>" in page
