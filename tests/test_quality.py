"""The rules for a question, in both languages."""

import pytest

from factory.quality import rule_broken
from factory.records import Passage
from factory.settings import QualityConfig
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
