"""Titles: who names one, what a passage is without its own, and how many questions may be answered by a title alone."""

import pytest

from factory.prompting import requests_for
from factory.question_titles import names_title, over_share, own_titles, unnamed, without_name
from factory.questions import Answer, Question
from tests.test_generate import config, passage
from tests.test_question_filter import Turned, asked, filter_pairs

TOWN = (
    "王江泾镇隶属于浙江省嘉兴市秀洲区。"
    + "公路自北向南贯穿全境，沿途设有三个车站，附近的丝厂在1920年代雇有五百名女工。" * 2
)


def named(identity: str, title: str, text: str = TOWN, document: str | None = None):
    return passage(identity, text, document=document).model_copy(update={"title": title, "headings": (title,)})


@pytest.mark.parametrize(
    ("query", "title", "expected"),
    [
        ("王江泾镇在哪里？", "王江泾镇", True),
        ("大曲车站有哪些路线？", "大曲车站 (秋田县)", True),
        ("大曲车站有哪些路线？", "大曲车站（秋田县）", True),
        ("西南忠魂播出前叫什么？", "《西南忠魂》", True),
        ("ＥＥＥ　Pc 是谁做的？", "Eee PC", True),
        ("哪条公路经过这个镇？", "王江泾镇", False),
        ("How does the boundary layer start?", "art", False),
        ("What is art for?", "Art", True),
        ("What is C++ used for?", "C++", True),
        ("谁写的？", "", False),
        ("我是谁？", "我", False),
        ("(哪里)？", "(哪里)", False),
    ],
)
def test_a_question_names_a_title_or_does_not(query, title, expected):
    assert names_title(query, title) is expected


def test_a_sentence_for_a_title_is_no_name_and_neither_is_one_that_others_have():
    titles = ["王江泾镇", "一个由十六个以上的汉字写成的很长的标题", "Rod Laver Arena (Melbourne)", "", "共有", "共有",
              "an experimental study of a wing in a propeller slipstream"]  # fmt: skip
    passages = [named(f"p{i}", t) for i, t in enumerate(titles)]
    assert own_titles(passages) == {"王江泾镇", "Rod Laver Arena (Melbourne)"}


def test_without_its_title_a_passage_has_no_sentence_that_names_it():
    shown = unnamed(named("p", "王江泾镇"))
    assert shown and "王江泾镇" not in shown.text and shown.text.startswith("公路自北向南") and shown.id == "p"
    assert (shown.title, shown.headings) == ("", ()) and 1 <= shown.tokens < 9
    english = named(
        "e", "Rod Laver Arena", "Rod Laver Arena lies in Melbourne. " + "The court was resurfaced in 2007. " * 8
    )
    assert unnamed(english).text.startswith("The court was resurfaced in 2007. The court")


@pytest.mark.parametrize(
    "text", ["王江泾镇在浙江。很小。", "王江泾镇" + TOWN.replace("。", "，"), TOWN[:17] * 12 + TOWN[17:]]
)
def test_a_passage_that_speaks_of_nothing_else_is_left_whole(text):
    assert unnamed(named("p", "王江泾镇", text)) is None


def test_the_llm_is_shown_the_share_of_passages_without_their_own_titles():
    def hidden(share, *passages):
        requests = requests_for(passages, config(generate={"unnamed": share}), corpus=passages)
        return ["王江泾镇" not in r.messages[-1][1] for r in requests]

    alone = named("p", "王江泾镇")
    assert hidden(0, alone) == [False] and hidden(1, alone) == [True]
    assert hidden(1, alone, named("q", "王江泾镇")) == [
        False,
        False,
    ]  # the title says the document, and not the passage
    many = [named(f"p{i}", f"王江泾镇{i}", TOWN.replace("镇", f"镇{i}")) for i in range(200)]
    half = hidden(0.5, *many)
    assert 70 < sum(half) < 130 and half == hidden(0.5, *many)


@pytest.mark.parametrize(("share", "kept"), [(1, 6), (0.5, 3), (0.4, 2), (0, 2)])
def test_no_more_than_their_share_is_answered_by_the_title_alone(share, kept):
    passages = [*(named(f"p{i}", f"王江泾{i}镇") for i in range(5)), named("q", "共有的标题"), named("r", "共有的标题")]
    titled = [asked(i, f"王江泾{i % 5}镇在哪里{i}？", f"p{i % 5}", rank=1) for i in range(6)]
    others = [
        asked(10, "王江泾0镇有几个车站？", "p0", rank=2),  # the base model does not find it at once
        asked(11, "共有的标题说了什么？", "q", rank=1),
        asked(12, "哪家工厂雇了五百人？", "p1", rank=1),
    ]
    beside = [
        asked(20, "王江泾2镇在哪里？", "p2", rank=1, split="eval"),
        asked(21, "王江泾3镇在哪里？", "p3", rank=1, origin="given", split="eval"),
    ]
    gone = over_share([*titled, *others, *beside], passages, share, 42)
    assert set(gone) <= {p.id for p in titled} and len(titled) - len(gone) == kept
    assert gone == over_share([*titled, *others, *beside], passages, share, 42)
    assert all(
        why == ("names-its-title", f"quality.names_title {share}; 王江泾{int(i[1:]) % 5}镇") for i, why in gone.items()
    )


def test_a_passage_keeps_its_only_question_as_long_as_others_have_two():
    passages = [named(f"p{i}", f"王江泾{i}镇") for i in range(4)]
    pairs = [asked(i, f"王江泾{i}镇在哪里？", f"p{i}", rank=1) for i in range(3)]
    pairs += [asked(10 + i, f"王江泾3镇在哪里{i}？", "p3", rank=1) for i in range(3)]
    pairs += [asked(20 + i, f"哪家工厂雇了{i}百人？", "p3", rank=1) for i in range(3)]
    assert set(over_share(pairs, passages, 0.5, 42)) == {"q10", "q11", "q12"}


@pytest.mark.parametrize(
    ("query", "title", "bare"),
    [
        ("龙烟铁路在胶东半岛设了哪几个车站？", "龙烟铁路", "在胶东半岛设了哪几个车站？"),
        ("为什么龙烟铁路需要预留复线条件？", "龙烟铁路", "为什么需要预留复线条件？"),
        ("《西南忠魂》的主角是怎样的人？", "西南忠魂", "主角是怎样的人？"),
        ("大曲车站，有几个站台？", "大曲车站 (秋田县)", "有几个站台？"),
        ("毒马案后，马会采取了哪些措施？", "毒马案", None),  # after what?
        ("哪几个车站在龙烟铁路上？", "龙烟铁路", None),
        ("哪家工厂雇了五百人？", "王江泾镇", None),
        ("龙烟铁路", "龙烟铁路", None),
        ("Rod Laver Arena was resurfaced when?", "Rod Laver Arena", None),
    ],
)
def test_a_chinese_question_that_begins_with_the_title_can_do_without(query, title, bare):
    assert without_name(query, title) == bare


def test_over_the_share_a_question_is_asked_without_the_title_if_a_search_still_finds_its_passage():
    passages = [named(f"p{i}", t, f"{t}：{t}的用法写在这里。") for i, t in enumerate(("焊条", "砂轮"))]
    pairs = [asked(0, "焊条受潮会开裂吗？", "p0"), asked(1, "砂轮转速能调高吗？", "p1")]
    at = {"焊条受潮会开裂吗？": 0, "砂轮转速能调高吗？": 30, "受潮会开裂吗？": 14, "转速能调高吗？": 31}
    settings = {"names_title": 0, "round_trip_k": 0}
    done = filter_pairs(pairs, passages, [], config(quality=settings), Turned(at))
    (bare,) = [p for p in done.kept if p.query not in (pairs[0].query, pairs[1].query)]
    assert bare.query in at and bare.rank == 1 and bare.id in ("q0", "q1") and len(done.kept) == 2
    assert done.tests[-1] == {"test": "titles", "asked": 2, "dropped": {}, "reworded": 1}
    held = [
        Question(id="t", query=bare.query, answers=[Answer(document="d", quote="q")])
    ]  # a test question is not trained on
    assert len(filter_pairs(pairs, passages, held, config(quality=settings), Turned(at)).kept) == 1


def test_without_the_title_a_question_that_finds_another_passage_goes(monkeypatch):
    monkeypatch.setattr("factory.question_rewording.FOUND_AMONG", 1)
    passages = [named(f"p{i}", t, f"{t}：{t}的用法写在这里。") for i, t in enumerate(("焊条", "砂轮"))]
    pairs = [asked(0, "焊条受潮会开裂吗？", "p0"), asked(1, "砂轮转速能调高吗？", "p1")]
    at = {"焊条受潮会开裂吗？": 0, "砂轮转速能调高吗？": 30, "受潮会开裂吗？": 29, "转速能调高吗？": 1}
    settings = {"names_title": 0, "round_trip_k": 0, "round_trip_by": ["dense"]}
    done = filter_pairs(pairs, passages, [], config(quality=settings), Turned(at))
    assert len(done.kept) == 1 and done.kept[0] in [p.model_copy(update={"rank": 1}) for p in pairs]
    assert [d.reason for d in done.dropped] == ["names-its-title"]


def test_the_filter_says_how_many_went():
    passages = [named(f"p{i}", t, f"{t}：{t}的用法写在这里。") for i, t in enumerate(("焊条", "砂轮"))]
    pairs = [asked(0, "焊条好用吗？", "p0"), asked(1, "砂轮好用吗？", "p1")]
    encoder = Turned({"焊条好用吗？": 0, "砂轮好用吗？": 30})
    done = filter_pairs(pairs, passages, [], config(quality={"names_title": 0, "round_trip_k": 0}), encoder)
    assert len(done.kept) == 1 and done.tests[-1] == {
        "test": "titles",
        "asked": 2,
        "dropped": {"names-its-title": 1},
        "reworded": 0,
    }
    assert len(filter_pairs(pairs, passages, [], config(quality={"names_title": 1}), encoder).kept) == 2
