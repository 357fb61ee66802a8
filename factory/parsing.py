"""What a small model meant: the questions in its answer, whatever form it took."""

from __future__ import annotations

import json
import re
from typing import Any

from factory.question_types import CALLED
from factory.records import loads

KINDS = [name for names in CALLED.values() for name in names.values()]
# Names that models give to the keys, beside the ones that they were asked for.
NAMES = {
    "question": ("question", "q", "query", "问题", "问", "提问", *KINDS),
    "answer": ("answer", "a", "答案", "答", "回答"),
    "rephrased": ("rephrased", "rephrase", "paraphrase", "改写", "换一种问法"),
}
LISTS = ("items", "questions", "pairs", "data", "问题列表", "问答")
_QUOTES = re.compile(r"(?<=[{\[,:，：])\s*[“”„‟＂]|[“”„‟＂]\s*(?=[}\],:，：])")
_OUTSIDE = str.maketrans("｛｝［］：，", "{}[]:,")
_NUMBER = re.compile(
    r"^\s*(?:[-*•]|\(?\d{1,2}\s*[.、)）:：]|(?:Q|问题?|Question)\s*\d*\s*[.:：、])\s*(?P<text>\S.*)$", re.I
)
_ANSWER = re.compile(r"^\s*(?:[-*•]\s*)?(?:A|答案?|Answer)\s*\d*\s*[.:：]\s*(?P<text>\S.*)$", re.I)
_LABEL = re.compile(r"^(?:Q|问题?|Question)\s*\d*\s*[:：]\s*", re.I)
_COUNTED = re.compile(r"^(?:\(?\d{1,2}\s*[.、)）]|(?:Q|问题?|Question)\s*\d+\s*[:：.])\s*(?=\D)", re.I)
_START = re.compile(r"""[{\[｛［](?=\s*["'“”„‟＂{\[｛［])|[{｛](?=\s*\w+\s*[:：])""")  # of JSON; [1] and {x} are prose
_BOLD = re.compile(r"\*\*|__|^#+\s*", re.M)


def parse_answer(text: str) -> list[dict[str, str]]:
    """The items of an answer: each has `question`, and `answer` and `rephrased` if they were there.

    JSON is read as it is, whatever stands around it; else repaired (json-repair: fences, commas too many, a cut end), with Chinese quotes, colons and
    braces made ASCII where they stand for JSON's own; else a numbered list is taken, with answers below the questions. What
    begins as such a list is not repaired.

    Raises:
        ValueError: there is no question in it; the message is the reason.
    """
    try:
        items = _read(text)
    except RecursionError:  # brackets in brackets, without end
        items = []
    if not items:
        raise ValueError("no question could be found in the answer")
    return items


def readable(text: str) -> bool:
    """Whether `parse_answer` finds a question in it."""
    try:
        return bool(parse_answer(text))
    except ValueError:
        return False


def parse_names(text: str) -> list[str]:
    """The strings of the first list in an answer, without blanks and repeats; none if there is no list."""
    try:
        value = _repaired(text[text.find("{") :] if "{" in text else text)
    except RecursionError:
        return []
    lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else [value]
    names = lists[0] if lists and isinstance(lists[0], list) else []
    return list(dict.fromkeys(n.strip() for n in names if isinstance(n, str) and n.strip()))


def _read(text: str) -> list[dict[str, str]]:
    items, broken = _written(text)
    if items and not broken:
        return items
    first = _NUMBER.match(_BOLD.sub("", text).strip().partition("\n")[0])
    listed = _in_lines(text) if first and not items and first["text"][0] not in "{[｛［" else []
    return listed or max(items, _mended(text), key=len) or _in_lines(text)


def _written(text: str) -> tuple[list[dict[str, str]], bool]:
    """The items of all JSON in the text that needs no repair, and whether there is some that does."""
    items, broken, at = [], False, 0
    while start := _START.search(text, at):
        try:
            end = json.JSONDecoder().raw_decode(text, start.start())[1]
            value = loads(text[start.start() : end])
            items += _items([row for row in _rows(value) if isinstance(row, dict)])
            at = end
        except ValueError:
            broken, at = True, start.end()
    return items, broken


def _mended(text: str) -> list[dict[str, str]]:
    """The items of JSON that has to be repaired."""
    start = _START.search(text)
    if not start:
        return []
    body = text[start.start() :]
    cut = not body.rstrip("` \n").endswith(("}", "]", "｝", "］"))
    for tried in (body, _ascii(body)):
        value = _repaired(tried)
        found, rows = _items(value), _rows(value)
        key, written = _last(value)
        if found and cut and _items(rows[-1:]) and key not in NAMES["answer"] and not _asks(written):
            found.pop()  # the answer was cut off within this question
        if found:
            return found
    return []


def _repaired(text: str) -> Any:
    from json_repair import repair_json

    try:
        return loads(str(repair_json(text)) or "null")
    except ValueError:
        return None


def _last(value: Any, key: str = "") -> tuple[str, str]:
    """What was written last, and the key that it stands under."""
    if isinstance(value, dict) and value:
        return _last(*[(v, str(k)) for k, v in value.items()][-1])
    if isinstance(value, list) and value:
        return _last(value[-1], key)
    return key.strip().lower(), str(value)


def _ascii(body: str) -> str:
    """JSON's own punctuation in ASCII; inside strings everything stays."""
    parts = re.split(r'("(?:[^"\\]|\\.)*"?)', _QUOTES.sub('"', body))
    return "".join(p if p.startswith('"') else p.translate(_OUTSIDE) for p in parts)


def _rows(value: Any) -> list[Any]:
    if isinstance(value, dict):
        lists = [value[name] for name in LISTS if isinstance(value.get(name), list)]
        value = lists[0] if lists else [value]
    return value if isinstance(value, list) else []


def _items(value: Any) -> list[dict[str, str]]:
    rows = [{"question": v} if isinstance(v, str) else v for v in _rows(value)]
    return [item for item in (_item(row) for row in rows if isinstance(row, dict)) if item.get("question")]


def _item(row: dict[str, Any]) -> dict[str, str]:
    known = {str(k).strip().lower(): v for k, v in row.items()}
    found = {}
    for name, others in NAMES.items():
        kinds = str | int | float if name == "answer" else str
        value = next((known[o] for o in others if isinstance(known.get(o), kinds)), None)
        if value is not None and str(value).strip():
            found[name] = str(value).strip() if name == "answer" else _COUNTED.sub("", str(value).strip())
    return found


def _in_lines(text: str) -> list[dict[str, str]]:
    """A list of questions, numbered or with bullets; nothing unless one of them is a question by its mark."""
    items: list[dict[str, str]] = []
    for line in _BOLD.sub("", text).splitlines():
        if (answer := _ANSWER.match(line)) and items:
            items[-1].setdefault("answer", answer["text"].strip())
        elif question := _NUMBER.match(line):
            items.append({"question": _LABEL.sub("", question["text"]).strip()})
    return items if any(_asks(i["question"]) for i in items) else []


def _asks(text: str) -> bool:
    return text.rstrip("”\"'").endswith(("?", "？"))
