"""The rules for a question, in both languages."""

import pytest

from factory.question_rules import not_in, rule_broken
from factory.records import Passage
from factory.settings_questions import QualityConfig
from tests.handmade import pair, target

PASSAGE = (
    "焊条使用前应在350℃烘干两小时，随后放入保温筒内，当天用完。低氢焊条受潮后，扩散氢含量升高，焊缝容易产生冷裂纹。"
)


def passage(text: str) -> Passage:
    return Passage(
        id="p", document_id="d", source="s", text=text, start=0, end=len(text), tokens=9, document_group="g",
        duplicate_group="p", split="train",
    )  # fmt: skip


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
        ("为什么它要当天用完？", "no-subject"),
        ("其烘干温度是多少？", "no-subject"),
        ("他毕业于哪里？", "no-subject"),
        ("他汀类药物会影响焊工吗？", None),
        ("本书讲了哪几种焊条？", "dangling-reference"),
        ("日本书上的焊条叫什么？", None),
        ("应该怎么做？", "no-subject"),
        ("这是为什么呢？", "no-subject"),
        ("焊条受潮，其他焊材会受影响吗？", None),
        ("焊条要先烘干才能用，这是工地的老规矩。", "statement"),
        ("焊条 烘干 温度", None),
        ("低氢焊条说明书写着烘几小时？", None),
        ("我应该研究哪些焊条？", None),
        ("该研究用了哪些焊条？", "dangling-reference"),
        ("英文中焊条怎么说？", None),
        ("文中的焊条怎么烘？", "dangling-reference"),
        ("那不勒斯的焊条多久烘一次？", None),
        ("那焊条要烘多久？", "no-subject"),
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
        ("What kind of grinder does the paper describe?", "dangling-reference"),
        ("Which coffee machines were used in the study?", "dangling-reference"),
        ("How did the researchers make the espresso?", "dangling-reference"),
        ("At what pressure did the pump run during the tests?", "dangling-reference"),
        ("How long should a shot of espresso take in this situation?", "dangling-reference"),
        ("Why is the crema of these two machines thin?", "dangling-reference"),
        ("My espresso runs in ten seconds, what helps against this problem?", None),
        ("Which coffee beans are fresh at this time of the year?", None),
        ("Do the researchers at a coffee lab drink espresso?", None),
        ("What is measured in the analysis of coffee grounds?", None),
        ("Does the study of latin need coffee?", None),
        ("Why does the paper in a coffee filter go soft?", None),
        ("Does the water in the paper filter slow the shot down?", None),
        ("Espresso that runs too fast is sour, why is that the case?", None),
        ("Grind finer until the shot takes 25 to 30 seconds, is that right?", "copied"),
        ("为什么咖啡发酸？", "wrong-language"),
        ("What should they do?", "no-subject"),
        ("How was it made?", None),  # "it" is too often harmless to be a rule
        ("What happened?", "no-subject"),
        ("Why does espresso lose its crema?", None),
        ("Sour espresso comes from a grind that is coarse.", "statement"),
        ("sour espresso fix", None),
    ],
)
def test_english_rules(query, reason):
    text = "Espresso that runs too fast is sour. Grind finer until the shot takes 25 to 30 seconds."
    p = passage(text)
    broken = rule_broken(pair(0, target(0), query), p, QualityConfig())
    assert (broken[0] if broken else None) == reason


@pytest.mark.parametrize(
    ("answer", "passage", "fits"),
    [
        ("350℃", PASSAGE, True),
        ("380℃", PASSAGE, False),
        ("2小时", PASSAGE, True),  # 两小时
        ("20多场", "共开设流动赌场二十多场", True),
        ("1000000元", "涉案金额共计100万元", True),
        ("１２．５万元", "涉案金额共计12.5万元", True),
        ("是的", PASSAGE, True),
        ("不需要", PASSAGE, True),
        ("因为潮气会让药皮里的碳酸盐分解", PASSAGE, False),
        ("容易产生冷裂纹", PASSAGE, True),
        ("25 to 30 seconds", "Grind finer until the shot takes 25 to 30 seconds.", True),
        ("grinding finer", "Grind finer until the shot takes 25 to 30 seconds.", True),
        ("use softer water with bicarbonate", "Grind finer until the shot takes 25 to 30 seconds.", False),
        ("1,200 bar", "The pump reaches 1200 bar.", True),
        ("three bars", "The pump reaches 3 bars.", True),
        ("yes", "The pump reaches 3 bars.", True),
    ],
)
def test_an_answer_comes_from_its_passage_or_the_question_goes(answer, passage, fits):
    assert (not_in(answer, passage, 0.4) == "") == fits


@pytest.mark.parametrize(
    ("query", "answer", "reason"),
    [
        ("低氢焊条潮了为什么会出冷裂纹？", "扩散氢含量升高", None),
        ("为什么焊条当天用完？", "当天用完", "answer-in-question"),
        ("保温筒里的焊条是当天用完还是隔天？", "当天用完", None),
        ("焊条要当天用完吗？", "当天用完", None),
        ("烘干两小时的焊条放到哪儿？", "保温筒内", None),
        ("家里电热水器的焊条多久要换？", "当天用完", "from-the-demonstration"),
        ("受潮的焊条要立即停用吗？", "扩散氢含量升高", None),
    ],
)
def test_a_question_neither_says_its_answer_nor_asks_about_the_prompts_demonstration(query, answer, reason):
    asked = pair(0, target(0), query).model_copy(update={"answer": answer})
    broken = rule_broken(asked, passage(PASSAGE), QualityConfig())
    assert (broken[0] if broken else None) == reason


@pytest.mark.parametrize(
    ("query", "broken"),
    [
        ("焊条 烘干 焊条 烘干 焊条 烘干 焊条 烘干 焊条 烘干", True),
        ("低氢焊条和酸性焊条的烘干温度和烘干时间各是多少？", False),
        ("electrode drying electrode drying temperature electrode drying", False),  # too short to tell
        ("wing span 15 feet wing span 15 feet wing span 15 feet", True),
        ("What is the drying temperature, and what the drying time, of a low hydrogen electrode?", False),
    ],
)
def test_a_query_that_runs_in_a_circle_goes(query, broken):
    text = passage(PASSAGE if query[0] > "z" else "Dry low hydrogen electrodes for two hours.")
    found = rule_broken(pair(0, target(0), query), text, QualityConfig())
    assert (found is not None and found[0] == "repeats-itself") == broken


def test_a_keyword_query_may_hold_its_answer():
    """It looks for the passage, and has no other words than the passage's subject."""
    asked = pair(0, target(0), "低氢焊条 当天用完 保温筒").model_copy(update={"answer": "当天用完"})
    assert rule_broken(asked, passage(PASSAGE), QualityConfig())[0] == "answer-in-question"
    query = asked.model_copy(update={"type": "keyword"})
    assert rule_broken(query, passage(PASSAGE), QualityConfig()) is None


def test_a_passage_about_the_demonstrations_subject_may_be_asked_about():
    text = passage("电热水器的内胆为搪瓷，保修八年。")
    assert rule_broken(pair(0, target(0), "电热水器内胆保几年？"), text, QualityConfig()) is None
    english = passage("Valves for a cooking range close in 30 seconds when the flame goes out.")
    wrong = pair(0, target(0), "How fast do a water heater's valves close?")
    assert rule_broken(wrong, english, QualityConfig())[0] == "from-the-demonstration"
