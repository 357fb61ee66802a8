"""Prompt files, kinds of question, who asks, examples and neighbours: what reaches the LLM."""

import json
import re

import pytest

from factory.askers import propose
from factory.demonstrations import demonstrations
from factory.generate import ask, pairs_of
from factory.llm import LLM
from factory.prompt_files import PROMPTS, read_prompt
from factory.prompting import VARIABLES, context_of, prompt_for, requests_for
from factory.question_rules import rule_broken
from factory.question_types import TYPES, schedule
from factory.questions import Answer, Question, read_user_questions
from factory.records import InputError, Pair
from factory.settings import LLMConfig
from factory.settings_questions import GenerateConfig, QualityConfig
from factory.token_estimate import estimated_tokens
from tests.test_generate import answer, config, passage

ENGLISH = "Dry the electrodes at 350 C for two hours."


def test_every_prompt_of_the_package_fills_all_its_variables():
    for file in sorted(PROMPTS.glob("question-*.md")):
        prompt = read_prompt(file, VARIABLES)
        text = "\n".join(part for _, part in prompt.messages({v: f"<{v}>" for v in VARIABLES}))
        assert all(f"<{v}>" in text for v in VARIABLES) and "${" not in text
        assert prompt.header.language == file.suffixes[0][1:] and "question" in prompt.header.fields


def test_what_is_not_asked_for_leaves_no_trace_in_the_prompt():
    (request,) = requests_for([passage("a")], config())
    text = "\n".join(part for _, part in request.messages)
    assert "语气" not in text and "上文" not in text and "真实用户" not in text and "\n\n\n" not in text


@pytest.mark.parametrize(
    ("text", "head"), [("焊条使用前须烘干，空载（）时断电。", "资料："), (f"{ENGLISH} Call dry ().", "Text:")]
)
def test_a_tables_row_without_a_title_has_no_context_not_the_tables_name(text, head):
    row = passage("a", text).model_copy(update={"title": "", "headings": (), "source": "corpus.jsonl"})
    last = requests_for([row], config())[0].messages[-1][1]
    assert last.startswith(f"{head}\n{text}\n") and "corpus" not in last


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ask something about ${passage}", "## system"),
        ("## user\n${passage}\n", "got ## user; expected ## system"),
        ("## system\nx\n## user\n${passage}\n## assistant\nand then?\n", "nothing is left to be asked"),
        ("## system\nx\n## user\ny\n## user\n${passage}\n", "got ## system, ## user, ## user; expected"),
        ("## system\nx\n## user\nno passage here\n", "never names"),
        ("## system\nx\n## user\n${passage}\n## assistant\ny\n## user\nno passage here\n", "never names"),
        ("## system\nx\n## user\n${passage} ${pasage}\n", r"no such variable \$\{pasage\}.*\n.*context"),
        ("---\nlanguage: de\n---\n## system\nx\n## user\n${passage}\n", "the header: language"),
        ("---\nlangage: zh\n---\n## system\nx\n## user\n${passage}\n", "langage: is not a known key"),
        ("---\npurpose: [\n---\n## system\nx\n## user\n${passage}\n", "not valid YAML"),
        ("---\nvariables: [passage]\n---\n## system\nx\n## user\n${passage} ${count}\n", "not in the header.*count"),
        ("---\npurpose: x\n## system\nx\n## user\n${passage}\n", "has no end"),
    ],
)
def test_a_prompt_file_at_fault_is_named_with_its_fault(tmp_path, text, message):
    (tmp_path / "p.md").write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompt(tmp_path / "p.md", VARIABLES)


def test_a_prompt_of_ones_own_sets_the_schema_and_keeps_its_dollars(tmp_path):
    text = "---\nfields: {question: 33, answer: 7}\n---\n## system\n$$5 each\n## user\n${passage}\n"
    (tmp_path / "p.md").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (request,) = requests_for([passage("a")], config(generate={"prompt": str(tmp_path / "p.md")}))
    assert request.messages[0] == ("system", "$5 each")
    properties = request.schema["properties"]["items"]["items"]["properties"]
    assert {name: p["maxLength"] for name, p in properties.items()} == {"question": 33, "answer": 7}
    with pytest.raises(InputError, match="question-question needs the field 'rephrased'"):
        prompt_for(GenerateConfig(prompt=str(tmp_path / "p.md"), pairing="question-question"), "zh")


def test_demonstrations_stand_as_turns_between_the_system_part_and_the_passage(tmp_path):
    text = "## system\nask\n## user\na boiler\n## assistant\n{}\n## user\n${passage}, ${count}\n"
    (tmp_path / "p.md").write_text(text)
    messages = read_prompt(tmp_path / "p.md", VARIABLES).messages({"passage": "a pump", "count": 3})
    assert messages == (("system", "ask"), ("user", "a boiler"), ("assistant", "{}"), ("user", "a pump, 3"))


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_demonstration_keeps_the_rules_that_questions_are_held_to(lang):
    shown = demonstrations()[lang]
    assert set(shown["questions"]) == set(TYPES[lang])
    text = passage("a", shown["passage"]).model_copy(update={"title": shown["context"]})
    for kind, item in shown["questions"].items():
        for wording in (item["question"], item["rephrased"]):
            target = {"target_id": "a", "target_text": text.text, "duplicate_group": "a"}
            asked = Pair(id=kind, passage_id="a", query=wording, answer=item["answer"], split="train", **target)
            assert rule_broken(asked, text, QualityConfig(min_answer=1)) is None, wording
            assert item["answer"] not in wording


def test_each_kind_that_is_asked_for_is_demonstrated_once():
    def example(types: list[str], pairing: str = "question-document") -> tuple[str, dict]:
        (request,) = requests_for([passage("a")], config(generate={"types": types, "pairing": pairing}))
        assert [role for role, _ in request.messages] == ["system", "user", "assistant", "user"]
        return request.messages[1][1], json.loads(request.messages[2][1])["items"]

    said, items = example(["keyword", "keyword", "comparison"], "question-question")
    assert "写2个问题，第1个只写几个搜索用的关键词，第2个问两样东西有什么区别" in said
    of = demonstrations()["zh"]["questions"]
    assert [i["rephrased"] for i in items] == [of["keyword"]["rephrased"], of["comparison"]["rephrased"]]
    _, items = example(["像老师考学生那样问"])
    assert [i["question"] for i in items] == [of["fact"]["question"], of["how-to"]["question"]]


def test_a_kind_that_is_no_plain_question_is_asked_for_by_its_name(tmp_path):
    """A small LLM that is told "only keywords" in words writes a question; the field's name is what it follows."""
    kinds = ["fact", "keyword", "colloquial"]
    for text, names in (
        ("焊条使用前须烘干。", ["question", "关键词", "大白话提问"]),
        (ENGLISH, ["question", "keywords", "everyday_question"]),
    ):
        (request,) = requests_for([passage("a", text)], config(generate={"types": kinds}))
        shape = request.schema["properties"]["items"]
        assert [item["required"] for item in shape["prefixItems"]] == [["answer", name] for name in names]
        assert shape["minItems"] == shape["maxItems"] == 3 and "items" not in shape
        question, keywords, _ = (
            item["properties"][n]["maxLength"] for item, n in zip(shape["prefixItems"], names, strict=True)
        )
        assert keywords == question / 2
        shown = json.loads(request.messages[2][1])["items"]
        assert [list(item) for item in shown] == [["answer", name] for name in names]
        # what comes back so is read as questions, of the kinds that were asked for
        pairs, dropped = pairs_of(passage("a", text), kinds, answer(request.messages[2][1]), config())
        assert [(p.type, p.query) for p in pairs] == [(k, i[n]) for k, i, n in zip(kinds, shown, names, strict=True)]
        assert not dropped
    (request,) = requests_for([passage("a")], config(generate={"types": ["keyword"], "questions_per_passage": 2}))
    assert request.schema["properties"]["items"]["items"]["required"] == ["answer", "关键词"]
    # a prompt of one's own that demonstrates something else keeps its names
    (tmp_path / "p.md").write_text("## system\nask\n## user\n${passage}\n")
    (request,) = requests_for([passage("a")], config(generate={"types": kinds, "prompt": str(tmp_path / "p.md")}))
    assert request.schema["properties"]["items"]["items"]["required"] == ["question", "answer"]


@pytest.mark.parametrize(
    ("lang", "long", "short"),
    [
        ("zh", "第{}道工序完成以后要检查焊缝的外观质量。", "小结："),
        ("en", "After step {} of them all the weld is looked at once more.", "Fig. 1"),
    ],
)
def test_each_question_is_given_a_sentence_of_its_own_part_of_the_passage(lang, long, short):
    told = [long.format(i) for i in range(9)]
    text = passage("a", f"{short}\n" + " ".join(told))
    (request,) = requests_for([text], config(generate={"focus": True, "questions_per_passage": 3}))
    asked = request.messages[-1][1].removesuffix("\n").rsplit("\n", 1)[1]
    named = [
        [i for i, s in enumerate(told) if f"“{s}”" in part] for part in re.split("第[123]个|number [123]", asked)[1:]
    ]
    assert [len(n) for n in named] == [1, 1, 1] and [n[0] // 3 for n in named] == [0, 1, 2]
    # the demonstration is put in the same way, and its answers do lie in the sentences that it names
    items, said = json.loads(request.messages[2][1])["items"], request.messages[1][1].rsplit("\n", 1)[1]
    for item, part in zip(items, re.split("第[123]个|number [123]", said)[1:], strict=True):
        assert item["answer"] in part
    (plain,) = requests_for([text], config(generate={"questions_per_passage": 3}))
    assert not any(f"“{s}”" in plain.messages[-1][1] for s in told)
    few = passage("b", told[0])
    (request,) = requests_for([few], config(generate={"focus": True, "questions_per_passage": 3}))
    assert request.messages[-1][1].count(f"“{told[0]}”") == 1


def test_the_llm_is_not_shown_what_the_encoder_does_not_read():
    text = "".join(f"第{i:03}道工序完成以后要检查焊缝。" for i in range(100))
    long = passage("a", text).model_copy(update={"tokens": 800})
    for most, seen, unseen in ((200, "第024道", "第026道"), (800, "第099道", "第100道")):
        model = {"path": "m", "passage_max_length": most}
        (request,) = requests_for([long], config(generate={"focus": True}, model=model, llm={"context": 8192}))
        told = request.messages[-1][1]
        assert seen in told and unseen not in told


@pytest.mark.parametrize("run", ["dGhlIHB1bXA5", "あいうえお", "0123456789", "ปั๊มน้ำ", "😀"])
def test_a_passage_that_is_few_words_to_the_encoder_still_fits_the_llm(run):
    """WordPiece takes a word of more than 100 characters for a single [UNK]; the LLM reads all of them."""
    text = "Dry the electrodes. " + run * (10_000 // len(run))
    (request,) = requests_for([passage("a", text)], config(llm={"context": 2048}, generate={"max_tokens": 400}))
    shown = request.messages[-1][1]
    assert "Dry the electrodes." in shown and 300 < len(shown) < 2048 - 400


def test_a_passage_of_words_is_shown_whole():
    """A guess of more tokens than the encoder reads is no reason to cut what it does read."""
    text = "第二道工序完成以后要检查焊缝。" * 26
    whole = passage("a", text).model_copy(update={"tokens": 256})
    (request,) = requests_for([whole], config(model={"path": "m", "passage_max_length": 256}))
    assert text in request.messages[-1][1]


@pytest.mark.parametrize(
    ("text", "tokens"), [("weld " * 60, 101), ("焊接", 3), ("12345", 6), ("カナ", 3), ("a" * 90, 91), ("😀🎉", 7)]
)
def test_every_character_but_latin_words_counts_as_a_token(text, tokens):
    assert estimated_tokens(text) == tokens


@pytest.mark.parametrize(
    ("title", "told"),
    [
        ("2023 Annual Report", "2023 Annual Report"),
        ("3.5 寸硬盘", "3.5 寸硬盘"),
        ("3.5 mm jack", "3.5 mm jack"),
        ("1.5L 水壶", "1.5L 水壶"),
        ("7 Habits", "7 Habits"),
        ("2.1 烘干", "烘干"),
        ("2.1 The pump", "The pump"),
        ("1.2.3. 烘干", "烘干"),
        ("3. 烘干", "烘干"),
        ("12、烘干", "烘干"),
        ("第3章 烘干", "烘干"),
        ("三、烘干", "烘干"),
        ("（三） 烘干", "烘干"),
    ],
)
def test_a_heading_loses_its_numbering_and_keeps_years_and_measures(title, told):
    assert context_of(passage("a").model_copy(update={"title": title, "headings": ()})) == told


def test_a_chinese_prompt_is_not_given_english_passages(tmp_path):
    chinese = str(PROMPTS / "question-document.zh.md")
    with pytest.raises(InputError, match="for passages in zh, and there are some in en"):
        requests_for([passage("a", ENGLISH)], config(generate={"prompt": chinese}))
    requests_for([passage("a"), passage("b", ENGLISH)], config(generate={"prompt": {"zh": chinese}}))


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["fact", "reason"], ["fact", "reason"] * 6),
        ({"fact": 3, "keyword": 1}, ["fact", "fact", "keyword", "fact"] * 3),
        ({"fact": 0.5, "reason": 0.5, "keyword": 0}, ["fact", "reason"] * 6),
    ],
)
def test_every_kind_gets_its_share(types, expected):
    turns = schedule(GenerateConfig(types=types, questions_per_passage=3), 4)
    assert [kind for turn in turns for kind in turn] == expected and len(turns) == 4


def test_after_any_number_of_questions_no_kind_is_a_question_off_its_share():
    shares = {"fact": 0.45, "how-to": 0.25, "keyword": 0.2, "colloquial": 0.1}
    asked = [k for turn in schedule(GenerateConfig(types=shares, questions_per_passage=2), 50) for k in turn]
    for n in range(1, 101):
        assert all(abs(asked[:n].count(kind) - share * n) < 1 for kind, share in shares.items())


def test_who_asks_in_which_tone_after_whose_example_and_between_which_texts():
    chosen = config(
        generate={
            "asker": ["夜班护士", "家属"],
            "tone": "着急",
            "length": "10字以内",
            "examples_shown": 2,
            "neighbours": 4,
        }
    )
    corpus = [passage("a", "甲文，焊条受潮。", document="d"), passage("b", document="d"), passage("c", document="e")]
    questions = ["孩子发烧怎么办", "药能停吗", "How long?"]
    first, second, third = requests_for(corpus, chosen, corpus=corpus, examples=questions)
    system = first.messages[0][1]
    assert "夜班护士" in system and "语气：着急。" in system and "长度：10字以内。" in system
    assert "- 孩子发烧怎么办" in system and "- 药能停吗" in system and "How long" not in system
    assert "家属" in second.messages[0][1] and "夜班护士" in third.messages[0][1]
    assert "（上文：……条受潮。）\n焊条在350" in second.messages[-1][1] and "下文" not in second.messages[1][1]
    assert "（下文：焊条在3……）" in first.messages[-1][1] and "上文" not in third.messages[1][1]


def test_examples_are_read_from_any_table_and_test_questions_are_kept_out(tmp_path):
    (tmp_path / "q.csv").write_text("query\n怎么烤焊条？\n怎么 烤焊条?\n多久？\n", encoding="gb18030")
    (tmp_path / "q.txt").write_text("\ufeff怎么烤焊条？\n\n多久？\n")
    tests = [Question(id="1", query="多久?", answers=(Answer(document="d", quote="q"),))]
    said = []
    for name in ("q.csv", "q.txt"):
        assert read_user_questions(tmp_path / name, tests, said.append) == ["怎么烤焊条？"]
    assert "1 of the questions in q.csv are test questions" in said[0]
    (tmp_path / "q.txt").write_text("多久？\n")
    with pytest.raises(InputError, match="every question"):
        read_user_questions(tmp_path / "q.txt", tests, said.append)


def test_askers_are_proposed_for_each_language_and_asked_in_turn(tmp_path, start):
    def behave(handler, number, prompt):
        names = ["学徒", "质检员", "学徒"] if "资料节选" in prompt else ["an apprentice"]
        text = json.dumps({"askers": names}) if "extracts" in prompt.lower() or "资料节选" in prompt else "?"
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        handler.say(200, json.dumps({"choices": [choice]}).encode())

    chosen = config(generate={"propose_askers": 3})
    served = LLMConfig(serve="endpoint", url=start(behave).url)
    passages = [passage("a"), passage("b"), passage("c", ENGLISH)]
    with LLM(served, "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        found = propose(passages, chosen, llm)
    assert found == {"zh": ["学徒", "质检员"], "en": ["an apprentice"]}
    systems = [r.messages[0][1] for r in requests_for(passages, chosen, askers=found)]
    assert "学徒" in systems[0] and "质检员" in systems[1] and "an apprentice" in systems[2]


def test_requests_with_one_beginning_are_sent_together_and_answered_in_order(tmp_path, start):
    def behave(handler, number, prompt):
        text = json.dumps({"items": [{"question": f"{prompt.split('#')[1]}？", "answer": "x"}]})
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        handler.say(200, json.dumps({"choices": [choice]}).encode())

    server = start(behave)
    served = LLMConfig(serve="endpoint", url=server.url, concurrency=1)
    passages = [passage(str(i), f"焊条#{i}#在350℃烘干") for i in range(6)]
    requests = requests_for(passages, config(generate={"asker": ["甲", "乙"]}))
    with LLM(served, "m", tmp_path / "llm.sqlite", tmp_path / "log", print) as llm:
        answers, _ = ask(llm, requests, lambda number, answer: f"{number}")
    assert [json.loads(a.text)["items"][0]["question"] for a in answers] == [f"{i}？" for i in range(6)]
    sent = [prompt.split("#")[1] for _, prompt in server.seen]
    assert sorted(sent[:3]) in (["0", "2", "4"], ["1", "3", "5"])
