"""Where in its passage a question's answer is to lie: sentences spread over it (`generate.focus`).

Left to itself a small LLM asks about what the passage is about as a whole, and people ask about details, too.
"""

from __future__ import annotations

import random
import re

ENDS = re.compile(r"(?<=[。！？!?；])|(?<=[.!?;])\s+|\n+")
# Characters: shorter ones are headings, names and the pieces around an abbreviation's dot; longer ones are cut.
LEAST = {"zh": 12, "en": 40}
MOST = {"zh": 100, "en": 300}


def sentences(text: str, lang: str) -> list[str]:
    """The sentences of a passage that are long enough to answer something, in order."""
    found = (" ".join(piece.split()) for piece in ENDS.split(text))
    return [s if len(s) <= MOST[lang] else s[: MOST[lang]] + "…" for s in found if len(s) >= LEAST[lang]]


def focus(text: str, lang: str, count: int, seed: str) -> list[str]:
    """`count` sentences in order, one at random out of each of `count` equal parts; "" at the end where there are too few."""
    found, draw = sentences(text, lang), random.Random(seed)
    if len(found) <= count:
        return [*found, *[""] * (count - len(found))]
    return [found[draw.randrange(i * len(found) // count, (i + 1) * len(found) // count)] for i in range(count)]


def sentence_with(answer: str, text: str, lang: str) -> str:
    """The sentence that holds these words; "" if none does."""
    return next((s for s in sentences(text, lang) if answer in s), "")
