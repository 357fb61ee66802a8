"""How many tokens a text is for an LLM whose tokenizer is not here: a guess, on the safe side."""

from __future__ import annotations

import re

UNBROKEN = re.compile(r"[!-~]{40,}")  # base64, an address: a token for each one or two of its characters
CHEAP = re.compile(r"[A-Za-z\u00c0-\u024f\s]")  # Latin letters and blanks: three to a token
ASTRAL = re.compile(r"[\U00010000-\U0010ffff]")  # emoji and rare Han characters: three tokens each


def estimated_tokens(text: str) -> int:
    """Three Latin letters or blanks are one token, emoji and rare Han characters three each, every other character (Han,
    kana, Thai, a digit, a full stop, what stands in a long unbroken run) one. LLMs of today take two thirds for a Chinese one."""
    cheap = len(CHEAP.findall(UNBROKEN.sub("", text)))
    return len(text) - cheap + cheap // 3 + 2 * len(ASTRAL.findall(text)) + 1


def crop_to(text: str, room: int) -> str:
    """The text, or as much of its beginning as makes at most `room` tokens; at least a character."""
    while (needed := estimated_tokens(text)) > room and len(text) > 1:
        text = text[: max(1, len(text) * room // needed)]
    return text
