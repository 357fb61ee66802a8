"""Which of the two languages a text is in, by its script, and how to normalise it for comparison."""

from __future__ import annotations

import re
import unicodedata

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
LATIN = re.compile(r"[A-Za-z]")
SPACE = re.compile(r"\s+")


def language(text: str) -> str:
    """`zh` or `en`; one Chinese character weighs as much as four Latin letters, about a word.

    A Chinese sentence full of product names and units stays Chinese; text with neither is `en`.
    """
    han, latin = len(HAN.findall(text)), len(LATIN.findall(text))
    return "zh" if han and han * 4 >= latin else "en"


def question_key(query: str) -> str:
    """What two wordings share that are one question: `squeeze`d, and without the mark at the end, which users leave out."""
    return squeeze(query).rstrip("?。.!")


def squeeze(text: str) -> str:
    """NFKC, lower case, no white space: what remains is compared to find copies and quotes."""
    return SPACE.sub("", unicodedata.normalize("NFKC", text)).lower()
