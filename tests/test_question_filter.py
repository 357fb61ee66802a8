"""Stage filter as a whole: repeats over the corpus, the round trip, the LLM's word on questions, shares, given pairs."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from factory.export import held_out, training_rows
from factory.given import given_documents, given_pairs
from factory.judge import LLMJudge
from factory.llm import LLM
from factory.models import Encoded
from factory.quality import beyond_share, filter_pairs, too_many
from factory.question_judge import nearest_others
from factory.question_repeats import repeated
from factory.records import Document, InputError
from factory.retrieve import Exclusions, targets_of
from factory.settings import LLMConfig
from factory.settings_questions import QualityConfig
from tests.handmade import circle, pair, target
from tests.test_generate import config, passage

SUBJECTS = ["焊条", "砂轮", "氩气", "钢板", "吊车", "护目镜"]


def asked(i: int, query: str, passage_id: str | None = None, **more):
    owner = passage_id or f"p{i}"
    found = pair(i, target(i), query)
    known = {
        "passage_id": owner,
        "target_id": owner,
        "duplicate_group": owner,
        "target_text": f"{owner}的正文",
        "language": "zh",
    }
    return found.model_copy(update=known | more)


def test_repeats_are_found_over_the_whole_corpus():
    pairs = [
        asked(0, "甲公司的注册资本到底一共是多少万元人民币呢？"),
        asked(1, "甲公司的注册资本到底一共是多少万元人民币？", split="eval"),  # the held-out one of two stays
        asked(2, "2019年甲公司的注册资本到底一共是多少万元人民币？"),  # another number is another question
        asked(3, "合同的主要内容有哪些？"),
        asked(4, "合同的主要内容有哪些？"),
        asked(5, "合同的主要内容有哪些"),
        asked(6, "焊条怎么烘干才好呢？"),
        asked(7, "焊条怎么烘干才好？", "p6"),
        asked(8, "测试里的问题？"),
        asked(9, "砂轮裂了还能用吗？", origin="given"),
        asked(10, "砂轮裂了还能用吗？"),
        asked(11, "氩气瓶怎么存放？", split="eval", origin="given"),
        asked(12, "氩气瓶怎么存放？", origin="given"),  # another answer to a question that is held out
        asked(13, "氩气瓶 怎么存放?", split="dev", origin="given"),
    ]
    found = repeated(pairs, ["测试里的 问题?"], QualityConfig())
    assert {i: reason for i, (reason, _) in found.items()} == {
        "q0": "duplicate-question",
        "q3": "asked-of-many-passages",
        "q4": "asked-of-many-passages",
        "q5": "asked-of-many-passages",
        "q7": "duplicate-question",
        "q8": "equals-a-test-question",
        "q10": "duplicate-question",
        "q12": "equals-a-held-out-question",
        "q13": "equals-a-held-out-question",
    }


def test_the_users_own_question_stays_and_the_generated_one_on_its_passage_goes():
    pairs = [asked(0, "水泵的滤芯多久更换一次？"), asked(1, "水泵的滤芯多久更换一次", "p0", origin="given")]
    assert list(repeated(pairs, [], QualityConfig())) == ["q0"]


@pytest.mark.parametrize("test", ["水泵的滤芯多久更换一次", "水泵的滤芯多久更换一次。", "水泵的滤芯多久更换一次？"])
@pytest.mark.parametrize("mark", ["", "？", "?", "！"])
def test_a_question_is_the_same_without_its_mark(test, mark):
    query = "水泵的滤芯多久更换一次" + mark
    assert repeated([asked(0, query)], [test], QualityConfig()) == {"q0": ("equals-a-test-question", "")}
    given = [asked(0, query, origin="given"), asked(1, test, split="eval", origin="given")]
    assert repeated(given, [], QualityConfig()) == {"q0": ("equals-a-held-out-question", "")}


def test_a_held_out_question_with_several_answers_is_one_query_to_which_all_are_relevant():
    targets = [target(i) for i in range(4)]
    texts = ["护目镜戴多久换？", "护目镜戴多久 换?", "砂轮多久换？", "护目镜戴多久换？"]
    splits = ["eval", "eval", "eval", "train"]
    pairs = [
        pair(i, t, q).model_copy(update={"split": s})
        for i, (t, q, s) in enumerate(zip(targets, texts, splits, strict=True))
    ]
    queries, relevant = held_out(pairs, targets, "eval")
    assert [q["_id"] for q in queries] == ["q0", "q2"]
    assert relevant == {"q0": ["t0", "t1", "t3"], "q2": ["t2"]}


class Turned:
    """An encoder in the plane: passage i lies at 30·i degrees, a question where its number says."""

    modes = ("dense",)

    def __init__(self, at):
        self.at = at

    def encode(self, texts, kind):
        return Encoded(
            dense=circle([30 * SUBJECTS.index(t.split("：")[0]) if kind == "passage" else self.at[t] for t in texts])
        )


@pytest.fixture
def corpus():
    return [passage(f"p{i}", f"{s}：{s}的用法写在这里。") for i, s in enumerate(SUBJECTS)]


def question(i: int, text: str, corpus):
    p = corpus[i]
    return asked(i, text, p.id, target_text=p.text, duplicate_group=p.duplicate_group, answer="")


@pytest.mark.parametrize(
    ("by", "dropped"), [(["dense", "bm25"], ["q2"]), (["dense"], ["q1", "q2"]), (["bm25"], ["q2"])]
)
def test_the_round_trip_drops_what_no_search_finds_and_keeps_the_base_models_rank(corpus, by, dropped):
    """The second question has its passage's words, and lies far from it; the third has neither."""
    pairs = [
        question(0, "焊条好用吗？", corpus),
        question(1, "砂轮怎么挑？", corpus),
        question(2, "谁签的合同？", corpus),
    ]
    encoder = Turned({"焊条好用吗？": 20, "砂轮怎么挑？": 150, "谁签的合同？": 150})
    chosen = config(quality={"round_trip_k": 3, "round_trip_by": by})
    done = filter_pairs(pairs, corpus, [], chosen, encoder)
    assert [(p.id, p.rank) for p in done.kept] == [("q0", 2), ("q1", 5)][: 3 - len(dropped)]
    assert [d.id for d in done.dropped] == dropped and {d.reason for d in done.dropped} == {"round-trip"}
    assert done.tests[-2] == {"test": "round trip", "asked": 3, "dropped": {"round-trip": len(dropped)}}


def says(p: float) -> bytes:
    """An answer whose first word is 是 with probability p."""
    words = [{"token": "是", "logprob": math.log(p)}, {"token": "否", "logprob": math.log(1 - p)}]
    choice = {"message": {"content": "是"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": words}]}}
    return json.dumps({"choices": [choice]}).encode()


def test_the_judge_drops_what_its_passage_does_not_answer_or_what_names_nothing(corpus, tmp_path, start):
    """The judge affirms a passage on the question's own subject; 钢板 is answered by the first two others as well."""

    def behave(handler, number, prompt):
        asked = prompt.split("问题：")[1].split("\n")[0]
        if "资料" not in prompt.split("问题：")[0]:
            handler.say(200, says(0.9 if any(s in asked for s in SUBJECTS) else 0.1))
            return
        body = prompt.split("资料：")[1].split("问题：")[0]
        own = next((s for s in SUBJECTS if s in asked), "焊条")
        told = own in body and "谣言" not in asked
        told = told or ("钢板" in asked and ("焊条" in body or "砂轮" in body))
        told = told or ("吊车" in asked and "氩气" in body)
        handler.say(200, says(0.9 if told else 0.2))

    texts = [
        "焊条好用吗？",
        "砂轮的谣言有哪些？",
        "氩气瓶放在哪里？",
        "钢板要多厚？",
        "吊车谁来开？",
        "哪一种比较贵呢？",
    ]
    pairs = [question(i, t, corpus) for i, t in enumerate(texts)]
    encoder = Turned({t: 30 * i for i, t in enumerate(texts)})
    chosen = config(quality={"judge": "on", "elsewhere": 5, "max_elsewhere": 1})
    served = LLMConfig(serve="endpoint", url=start(behave).url)
    with LLM(served, "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        done = filter_pairs(pairs, corpus, [], chosen, encoder, LLMJudge(llm), lambda text: None)
    assert {d.id: d.reason for d in done.dropped} == {
        "q1": "not-answered-by-its-passage",
        "q3": "answered-elsewhere",
        "q5": "not-answered-by-its-passage",
    }
    assert {p.id: p.also for p in done.kept} == {"q0": (), "q2": (), "q4": ("p2",)}
    assert set(done.judge) == {"answerable", "specific, zh"}
    # what answers as well is a positive, never a candidate, and relevant in a held-out set
    crane, targets = done.kept[2], targets_of(corpus, done.kept)
    rows = np.array([[i for i, t in enumerate(targets) if t.id in ("p0", "p2")]])
    assert Exclusions([crane], targets).allowed(0, rows).tolist() == [[True, False]]
    decision = {"pair_id": "q4", "candidate_id": "p0", "decision": "negative", "rerank_score": None}
    (row,), _ = training_rows([crane], targets, [decision], {})
    assert row.pos == [corpus[4].text, corpus[2].text] and row.neg == [corpus[0].text]
    _, relevant = held_out([crane.model_copy(update={"split": "eval"})], targets, "eval")
    assert relevant == {"q4": ["p4", "p2"]}


def test_a_judge_that_affirms_everything_is_not_believed(corpus, tmp_path, start):
    pairs = [question(i, f"{s}好用吗？", corpus) for i, s in enumerate(SUBJECTS)]
    served = LLMConfig(serve="endpoint", url=start(lambda handler, n, prompt: handler.say(200, says(0.8))).url)
    encoder, said = Turned({p.query: 180 for p in pairs}), []
    chosen = config(quality={"judge": "on", "round_trip_k": 3, "round_trip_by": ["dense"], "unreachable": "judge"})
    with LLM(served, "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        done = filter_pairs(pairs, corpus, [], chosen, encoder, LLMJudge(llm), said.append)
    assert {d.reason for d in done.dropped} == {"round-trip"} and len(done.kept) == 3
    assert "too little to go by it" in said[0]


def test_a_judge_that_fails_its_controls_is_asked_nothing_more(corpus, tmp_path, start, monkeypatch):
    monkeypatch.setattr("factory.question_judge.CONTROLS", 2)
    pairs = [question(i, f"{s}好用吗？", corpus) for i, s in enumerate(SUBJECTS)]
    prompts = []

    def behave(handler, number, prompt):
        prompts.append(prompt)
        handler.say(200, says(0.8))

    served = LLMConfig(serve="endpoint", url=start(behave).url)
    with LLM(served, "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        encoder = Turned({p.query: 0 for p in pairs})
        done = filter_pairs(pairs, corpus, [], config(quality={"judge": "on"}), encoder, LLMJudge(llm), lambda t: None)
    assert len(done.kept) == len(pairs) and set(done.judge) == {"answerable", "specific, zh"}
    assert len([p for p in prompts if "资料：" in p]) == 4  # two with their own passages, two with others'
    assert len([p for p in prompts if "好用吗" in p and "资料：" not in p]) == 2


@pytest.mark.parametrize(
    ("at_most", "left"),
    [
        ({"easy": 0.5}, {1: 4, 3: 3, 9: 1}),
        ({"easy": 0.25, "medium": 0.5}, {1: 1, 3: 2, 9: 1}),
        ({"hard": 0}, {1: 8, 3: 3}),
        ({"easy": 1}, {1: 8, 3: 3, 9: 1}),
    ],
)
def test_no_difficulty_takes_more_than_its_share(at_most, left):
    ranks = [1] * 8 + [3] * 3 + [9]
    pairs = [asked(i, f"问题{i}", rank=rank) for i, rank in enumerate(ranks)]
    pairs.append(asked(99, "考题", rank=1, split="eval"))
    gone = too_many(pairs, at_most, 42)
    kept = [p.rank for p in pairs if p.id not in gone and p.split == "train"]
    assert {rank: kept.count(rank) for rank in sorted(set(kept))} == left and "q99" not in gone
    assert gone == too_many(pairs, at_most, 42)


def test_shares_that_leave_nothing_are_refused():
    with pytest.raises(ValidationError, match=r"make 0\.9, expected at least 1"):
        QualityConfig(at_most={"easy": 0.3, "medium": 0.3, "hard": 0.3})


def test_given_pairs_keep_to_their_share():
    pairs = [asked(i, f"问题{i}", origin="given" if i < 20 else "generated") for i in range(30)]
    assert len(beyond_share(pairs, 0.5, 1)) == 10 and not beyond_share(pairs, 1, 1)


def test_given_pairs_find_their_passage_or_bring_it_along(tmp_path):
    (tmp_path / "faq.csv").write_text(
        "query,text,answer\n"
        "甲怎么办？,第一句话。 第二句话。,\n"  # stands across two passages, mostly in the second
        "乙怎么办？,第一句话,\n"
        "丙怎么办？,别处没有的一段话。,答\n"
        ",第一句话,\n"
    )
    documents = [Document(id="d", source="d.txt", text="第一句话。第二句话。第三句话。")]
    (new,) = given_documents(str(tmp_path / "faq.csv"), documents)
    assert new.whole and new.text == "别处没有的一段话。" and new.source == "given:faq.csv"
    passages = [
        passage("a", "开头。第一", document="d"), passage("b", "句话。第二句话。第三句话。", document="d"),
        passage("c", new.text).model_copy(update={"source": new.source}),
    ]  # fmt: skip
    pairs, dropped = given_pairs(passages, str(tmp_path / "faq.csv"))
    assert [(p.query, p.passage_id, p.answer) for p in pairs] == [
        ("甲怎么办？", "b", ""), ("乙怎么办？", "a", ""), ("丙怎么办？", "c", "答")
    ]  # fmt: skip
    assert [(d.id, d.reason) for d in dropped] == [("faq.csv#5", "no-query")]
    (tmp_path / "bad.csv").write_text("question,text\na,b\n")
    with pytest.raises(
        InputError, match=r"bad.csv:2.*query and text, got question, text|query and text, got question, text"
    ):
        given_pairs(passages, str(tmp_path / "bad.csv"))


def test_of_copies_of_another_passage_the_judge_is_asked_about_one():
    targets = [target(0), target(1, group="t1"), target(2, group="t1"), target(3, group="t1"), target(4), target(5)]
    nearest = nearest_others(targets, {"q0": circle([0])[0]}, circle([0, 1, 2, 3, 4, 5]))
    assert nearest([pair(0, targets[0])], 2) == [[1, 4]]
    assert nearest([pair(0, targets[0])], 9) == [[1, 4, 5]]
