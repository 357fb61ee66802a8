"""Questions: what small models really send back is parsed or kept with a reason; leaks are refused before asking."""

import json

import pytest

from factory.answers import Answer
from factory.config import Config
from factory.generate import ask, draw_evenly, generate, llm_identity, once_more, pairs_of, to_ask
from factory.given import given_pairs
from factory.languages import language
from factory.llm import LLM, Request
from factory.prompting import requests_for
from factory.records import Passage


def config(**parts) -> Config:
    return Config.model_validate({"input": {"path": "x"}, "model": {"path": "m"}} | parts)


def passage(identity: str, text: str = "焊条在350℃烘干两小时。", split="train", group=None, document=None) -> Passage:
    return Passage(
        id=identity, document_id=document or identity, source="a.md", title="焊材", headings=("焊材", "烘干"), text=text, start=0,
        end=len(text), tokens=9, document_group="g", duplicate_group=group or identity, split=split,
    )  # fmt: skip


def answer(text: str) -> Answer:
    return Answer(text, "stop", 1, 1, 0.1)


ITEM = {"question": "焊条要烤多久？", "answer": "两小时"}


@pytest.mark.parametrize(
    "text", ["", "对不起，我不能回答。", "{}", '{"items": []}', '{"items": "焊条"}', '{"items": [{"q": 1}]}']
)
def test_an_answer_without_a_question_is_kept_with_its_text(text):
    pairs, dropped = pairs_of(passage("p"), [], answer(text), config())
    assert not pairs
    assert (dropped[0].reason, dropped[0].text) == ("unparsable", text)


@pytest.mark.parametrize(
    ("pairing", "item", "query", "target"),
    [
        ("question-document", ITEM, "焊条要烤多久？", "焊条在350℃烘干两小时。"),
        ("question-answer", ITEM, "焊条要烤多久？", "两小时"),
        (
            "question-question",
            ITEM | {"rephrased": "药皮潮了得烘几个钟头？"},
            "药皮潮了得烘几个钟头？",
            "焊条要烤多久？",
        ),
    ],
)
def test_each_pairing_trains_on_what_it_says(pairing, item, query, target):
    chosen = config(generate={"pairing": pairing})
    (pair,), _ = pairs_of(passage("p"), [], answer(json.dumps({"items": [item]})), chosen)
    assert (pair.query, pair.target_text) == (query, target)


def test_an_item_without_what_its_pairing_needs_is_dropped():
    pairs, dropped = pairs_of(
        passage("p"), [], answer('{"items": [{"question": "q?"}]}'), config(generate={"pairing": "question-answer"})
    )
    assert not pairs and dropped[0].reason == "incomplete"


def test_the_prompt_is_in_the_passages_language_and_carries_its_headings():
    chinese, english = requests_for(
        [passage("a"), passage("b", "Dry the electrodes at 350 C for two hours.")], config()
    )
    assert "焊条在350℃烘干两小时。" in chinese.messages[-1][1] and "焊材 > 烘干" in chinese.messages[-1][1]
    assert language(chinese.messages[0][1]) == "zh" and language(english.messages[0][1]) == "en"
    assert chinese.schema["properties"]["items"]["minItems"] == 3


def test_who_asks_and_what_is_asked_come_from_the_configuration():
    asked = config(generate={"asker": "夜班护士", "types": ["reason", "问剂量"]})
    (request,) = requests_for([passage("a")], asked)
    assert request.messages[0][1].startswith("你是夜班护士，")
    assert "第1个问为什么，第2个问剂量，第3个问为什么" in request.messages[-1][1]


def test_a_passage_that_would_not_fit_the_llm_is_asked_about_by_its_beginning():
    long = passage("a", "焊" * 10_000).model_copy(update={"tokens": 10_000})
    (request,) = requests_for([long], config(llm={"context": 1024}, generate={"max_tokens": 200}))
    assert 200 < request.messages[-1][1].count("焊") < 1024 - 200 - 400


def test_copies_and_leaks_are_not_asked_about_and_are_counted():
    passages = [
        passage("a"), passage("b", group="a"), passage("c", split="eval"), passage("d", group="c"), passage("e", text="别的"),
    ]  # fmt: skip
    asked, dropped = to_ask(passages, config())
    assert [p.id for p in asked] == ["a", "c", "e"]
    assert {d.id: d.reason for d in dropped} == {"b": "copy-of-another-passage", "d": "copies-a-held-out-passage"}
    asked, _ = to_ask(passages, config(test={"questions": "q.jsonl"}))
    assert [p.id for p in asked] == ["a", "e"]


def test_a_limit_asks_every_document_before_any_twice():
    passages = [passage(f"{d}-{i}", document=f"d{d}") for d in range(5) for i in range(10)]
    chosen, left = draw_evenly(passages, 7, seed=1)
    assert (len(chosen), len(left)) == (7, 43)
    assert {p.document_id for p in chosen} == {f"d{d}" for d in range(5)}
    assert chosen == draw_evenly(passages, 7, seed=1)[0]


def test_given_pairs_keep_their_split_and_bad_rows_are_dropped_by_number(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "query,text\n怎么烘焊条？,焊条在350℃烘干两小时。\n,焊条在350℃烘干两小时。\n什么？,别处的话\n",
        encoding="gb18030",
    )
    pairs, dropped = given_pairs([passage("p", split="eval")], str(tmp_path))
    assert [(p.query, p.split, p.origin) for p in pairs] == [("怎么烘焊条？", "eval", "given")]
    assert {d.id: d.reason for d in dropped} == {"pairs.csv#3": "no-query", "pairs.csv#4": "no-passage"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("焊缝发黑怎么办", "zh"),
        ("E5015焊条的preheat温度", "zh"),
        ("How to preheat Q345R?", "en"),
        ("12.5 %", "en"),
        ("The brand 三一 sells cranes", "en"),
    ],
)
def test_mixed_text_goes_to_the_language_that_carries_it(text, expected):
    assert language(text) == expected


def test_what_cannot_be_read_is_asked_once_more_and_then_kept_with_both_texts(tmp_path, start):
    """Passage a is answered at the second time, b never; c is refused by the server; d at once."""

    def behave(handler, number, prompt):
        body = next(b for b in ("a", "b", "c", "d") if f"焊条{b}" in prompt)
        good = json.dumps({"items": [ITEM]})
        times[body] = times.get(body, 0) + 1
        if body == "c":
            handler.say(400, b"too long")
        else:
            text = good if body == "d" or (body == "a" and times[body] == 2) else f"sorry {times[body]}"
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            handler.say(200, json.dumps({"choices": [choice]}).encode())

    times = {}
    url = start(behave).url
    asked = config(llm={"serve": "endpoint", "url": url}, generate={"questions_per_passage": 1})
    passages = [passage(b, f"焊条{b}在350℃烘干两小时。") for b in "abcd"]
    for sent in (6, 1):  # the second run asks again only for what was refused
        with LLM(asked.llm, llm_identity(asked), tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
            made = generate(passages, asked, llm, print)
        assert [p.passage_id for p in made.pairs] == ["a", "d"] and made.usage.sent == sent
        reasons = {d.id: (d.reason, d.text if d.reason == "unparsable" else d.detail) for d in made.dropped}
        assert reasons == {
            "b": ("unparsable", "sorry 1\n\n--- asked again ---\nsorry 2"),
            "c": ("no-answer", "refused: HTTP 400: too long"),
        }


def test_a_server_without_room_for_longer_answers_does_not_end_the_run(tmp_path, start):
    """One answer in ten is cut off, and the context has little more room than was asked for at first."""

    def behave(handler, number, prompt):
        i = int(prompt)
        text = "<think>hm" if i % 10 == 0 else json.dumps({"items": [ITEM]})
        choice = {"message": {"content": text}, "finish_reason": "stop" if i % 10 else "length"}
        if number > 100:
            handler.say(400, b"max_tokens is too large")
        else:
            handler.say(200, json.dumps({"choices": [choice], "usage": {"prompt_tokens": 96}}).encode())

    settings = config(llm={"serve": "endpoint", "url": start(behave).url, "context": 4096}).llm
    requests = [Request((("user", str(i)),), max_tokens=3000, temperature=0.7, seed=1) for i in range(100)]
    for sent in (110, 10):
        with LLM(settings, "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
            answers, usage = ask(llm, requests, lambda n, a: "")
        assert (usage.sent, usage.failed) == (sent, 10) and sum(a.text.startswith('{"items"') for a in answers) == 90


@pytest.mark.parametrize(("finish", "prompt", "room"), [("length", 200, 450), ("length", 600, 400), ("stop", 200, 300)])
def test_a_cut_off_answer_gets_as_much_more_room_as_the_context_has(finish, prompt, room):
    request = Request((("user", "q"),), max_tokens=300, temperature=0.7, seed=1)
    assert once_more(request, Answer("", finish, prompt, 300, 0.1), 1000).max_tokens == room
