"""What small models really write, and what is to be read from it."""

import json

import pytest

from factory.parsing import parse_answer

ONE = [{"question": "怎么预热？", "answer": "先烘干"}]
TWO = [{"question": "How hot?", "answer": "90 °C"}, {"question": "How long?", "answer": "30 s"}]
JSON = json.dumps({"items": TWO})

READ = {
    "as it was asked for": (JSON, TWO),
    "in a fence": (f"Here you are:\n```json\n{JSON}\n```\nGood luck!", TWO),
    "after a sentence": (f"好的，以下是问题：\n{JSON}", TWO),
    "without its last brackets": (JSON[:-3], TWO),
    "a bare list": (json.dumps(TWO), TWO),
    "one object": (json.dumps(TWO[0]), TWO[:1]),
    "a comma too many": ('{"items": [{"question": "How hot?", "answer": "90 °C",},]}', TWO[:1]),
    "single quotes": ("{'items': [{'question': 'How hot?', 'answer': '90 °C'}]}", TWO[:1]),
    "cut off in the second item": (JSON[: JSON.index("How long") + 4], TWO[:1]),
    "cut off in the second answer": (JSON[: JSON.index("30 s") + 2], [TWO[0], TWO[1] | {"answer": "30"}]),
    "cut off in the second question, after its answer": (
        '{"items":[{"answer":"90 °C","question":"How hot?"},{"answer":"30 s","question":"How lo',
        TWO[:1],
    ),
    "cut off in the second wording": (
        '{"items":[{"question":"How hot?","rephrased":"How warm?"},{"question":"How long?","rephrased":"For wha',
        [{"question": "How hot?", "rephrased": "How warm?"}],
    ),
    "a keyword query that is whole, and a comma too many": (
        '{"items":[{"answer":"90 °C","keywords":"pump inlet temperature",},]}',
        [{"question": "pump inlet temperature", "answer": "90 °C"}],
    ),
    "Chinese quotes": ("{“items”:[{“question”:“怎么预热？”,“answer”:“先烘干”}]}", ONE),
    "Chinese quotes, colons and commas": ("{“items”：[{“question”：“怎么预热？”，“answer”：“先烘干”}]}", ONE),
    "full-width braces": ('｛"items"：［｛"question"："怎么预热？"，"answer"："先烘干"｝］｝', ONE),
    "Chinese keys": ('{"问题列表": [{"问题": "怎么预热？", "答案": "先烘干"}]}', ONE),
    "other keys": ('{"questions": [{"Q": "How hot?", "A": "90 °C"}]}', TWO[:1]),
    "a list of strings": ('["How hot?", "How long?"]', [{"question": "How hot?"}, {"question": "How long?"}]),
    "a number for an answer": (
        '{"items": [{"question": "几度？", "answer": 90}]}',
        [{"question": "几度？", "answer": "90"}],
    ),
    "a Chinese quote within a question": (
        '{"items":[{"question":"“热影响区”，指什么？","answer":"焊缝旁"}]}',
        [{"question": "“热影响区”，指什么？", "answer": "焊缝旁"}],
    ),
    "a numbered list": ("1. How hot?\n2) How long?", [{"question": "How hot?"}, {"question": "How long?"}]),
    "a Chinese numbered list": ("1、怎么预热？\n答案：先烘干\n2、几度？", [*ONE, {"question": "几度？"}]),
    "questions and answers": ("Q1: How hot?\nA1: 90 °C\n\nQ2: How long?\nA2: 30 s", TWO),
    "bold": ("**问题1：** 怎么预热？\n**答案：** 先烘干", ONE),
    "bullets": ("- How hot?\n- How long?", [{"question": "How hot?"}, {"question": "How long?"}]),
    "an empty item is no item": (
        '{"items": [{"question": " "}, {"question": "How hot?"}]}',
        [{"question": "How hot?"}],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_meant_is_read(name: str) -> None:
    text, items = READ[name]
    assert parse_answer(text) == items


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "I cannot help with that.",
        "1. Dry it.\n2. Weld it.",
        '{"items": []}',
        '{"items": [3]}',
        "\x00" * 9,
    ],
)
def test_where_there_is_no_question_that_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="no question"):
        parse_answer(text)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2. 为什么在补喷两遍后冒泡？", "为什么在补喷两遍后冒泡？"),
        ("3、焊条烤多久？", "焊条烤多久？"),
        ("Q1: How long?", "How long?"),
        ("2.5 mm 的焊条用多大电流？", "2.5 mm 的焊条用多大电流？"),
        ("15 L/min够不够？", "15 L/min够不够？"),
        ("2024年哪个月？", "2024年哪个月？"),
    ],
)
def test_a_number_before_a_question_is_a_count_and_goes_but_a_quantity_stays(written, read):
    text = json.dumps({"items": [{"question": written, "answer": "1. x"}]}, ensure_ascii=False)
    assert parse_answer(text) == [{"question": read, "answer": "1. x"}]
