"""What small models really write, and what is to be read from it."""

import json

import pytest

from factory.parsing import parse_answer, parse_names, readable

ONE = [{"question": "怎么预热？", "answer": "先烘干"}]
TWO = [{"question": "How hot?", "answer": "90 °C"}, {"question": "How long?", "answer": "30 s"}]
QUESTIONS = [{"question": item["question"]} for item in TWO]
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
    "after a reference in brackets": (f"Based on [the passage], [1] and {{x}}, here you are: {JSON}", TWO),
    "after a reference, with a comma too many": (f"Based on [the passage]: {JSON[:-1]},}}", TWO),
    "before a note in brackets": (f"{JSON}\n注意：[仅供参考]", TWO),
    "an object on each line": ("\n".join(json.dumps(item) for item in TWO), TWO),
    "an object on each line, in a fence": ("```json\n" + "\n".join(json.dumps(item) for item in TWO) + "\n```", TWO),
    "an object on each line, cut off": (f'{json.dumps(TWO[0])}\n{json.dumps(TWO[1])}\n{{"quest', TWO),
    "one item broken, one whole": ('{"items":[{"question":"How hot?",},{"question":"How long?"}]}', QUESTIONS),
    "cut off in a key": (f'{{"items":[{json.dumps(TWO[0])},{{"quest', TWO[:1]),
    "cut off in a key, after Chinese quotes": (
        "{“items”：[{“answer”：“先烘干”，“question”：“预热方法”}，{“quest",
        [{"question": "预热方法", "answer": "先烘干"}],
    ),
    "a numbered list with braces": (
        '1. What does {x} mean?\n2. Which of ["a", "b"] is right?',
        [{"question": "What does {x} mean?"}, {"question": 'Which of ["a", "b"] is right?'}],
    ),
    "a numbered list with braces, after a sentence": (
        "Here you are:\n1. What does {x} mean?\n2. Why is it used?",
        [{"question": "What does {x} mean?"}, {"question": "Why is it used?"}],
    ),
    "a numbered list of objects": (f"1. {json.dumps(TWO[0])}\n2. {json.dumps(TWO[1])}", TWO),
    "keys without quotes": ("{question: 'How hot?', answer: '90 °C'}", TWO[:1]),
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
        "[" * 1000,
        "[" * 100_000,
        '{"a":' * 2000,
        '{"items":[' * 2000,
    ],
)
def test_where_there_is_no_question_that_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="no question"):
        parse_answer(text)
    assert not readable(text)


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


def test_a_list_of_names_in_endless_brackets_is_none():
    assert parse_names("[" * 1000) == parse_names('{"a":' * 2000) == []
    assert parse_names('{"names": ["a", "b", "a"]}') == ["a", "b"]
