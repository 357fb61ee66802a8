"""Questions that name their passage's title: many of them teach a model to look for names, and little else.

On CMRC 2018, where passages are encyclopaedia pages and the base model finds nearly all, 73 % of the questions of an LLM name the page,
and training on them costs queries that do not name it three points of nDCG@10; training on the others costs nothing
(benchmarks/README.md).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from factory.focus import ENDS
from factory.languages import HAN, language, squeeze
from factory.question_types import EASY
from factory.records import Pair, Passage

QUALIFIER = re.compile(r"\s*[(（][^()（）]*[)）]\s*$")  # 大曲车站 (秋田县)
QUOTED = re.compile(r"^[《「『“\"'‘]+|[》」』”\"'’]+$")
LEAST = {"zh": 2, "en": 3}  # characters of a title that a question can be said to name
# Longest title that is a name: Chinese characters, words. A sentence for a title is not what anybody would search by.
NAME = {"zh": 15, "en": 5}
# Of a passage that is left without its title: characters, and share of the whole.
ENOUGH, ENOUGH_OF = {"zh": 60, "en": 200}, 1 / 3
NOT_FIRST = "后前中时内外和与及或至等里上下"  # a question that begins so has lost what it stands on


def own_titles(passages: Iterable[Passage]) -> set[str]:
    """The titles that are names and that one passage alone has: they say where to look."""
    return {title for title, n in Counter(p.title for p in passages).items() if n == 1 and is_name(title)}


def is_name(title: str) -> bool:
    name = _name(title)
    return 0 < len(HAN.findall(name)) <= NAME["zh"] or (not HAN.search(name) and 0 < len(name.split()) <= NAME["en"])


def unnamed(passage: Passage) -> Passage | None:
    """The passage without its title, its headings and the sentences that name the title; None if too little is left."""
    lang = language(passage.text)
    pieces = [s for s in ENDS.split(passage.text) if s and not names_title(s, passage.title)]
    text = {"zh": "", "en": " "}[lang].join(pieces)
    if len(text) < max(ENOUGH[lang], ENOUGH_OF * len(passage.text)):
        return None
    tokens = max(1, passage.tokens * len(text) // len(passage.text))
    return passage.model_copy(update={"text": text, "title": "", "headings": (), "tokens": tokens})


def names_title(query: str, title: str) -> bool:
    """Whether the question holds the title, without what stands in brackets behind it; in Latin letters as whole words."""
    name = _name(title)
    if len(name) < LEAST["zh" if HAN.search(name) else "en"]:
        return False
    if HAN.search(name):
        return squeeze(name) in squeeze(query)
    return re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", _plain(query)) is not None


def without_name(query: str, title: str) -> str | None:
    """A Chinese question that begins with the title, without it: a subject that is understood is left out there.

    None where it does not begin so, and in English, which needs its subject.
    """
    name = re.escape(_name(title))
    opened = rf"^(为什么|为何|请问)?[《「『“\"']?{name}[》」』”\"']?(?:[\s,，、]|的)*"
    bare, times = re.subn(opened, lambda m: m[1] or "", query.strip(), flags=re.I)
    if not times or not bare or language(query) != "zh" or bare[0] in NOT_FIRST or names_title(bare, title):
        return None
    return bare


def _name(title: str) -> str:
    return QUOTED.sub("", QUALIFIER.sub("", _plain(title)))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def over_share(
    pairs: Sequence[Pair], passages: Sequence[Passage], share: float, seed: int
) -> dict[str, tuple[str, str]]:
    """Training questions that go, so that those that the title of their passage alone answers are at most this share of what
    is left: they name it, no other passage has it, and the base model ranks the passage first. Drawn at random; as far as
    can be, each passage keeps a question. Half of all training questions stay, whatever the share.
    """
    title = {p.id: p.title for p in passages}
    own = own_titles(passages)
    training = [p for p in pairs if p.split == "train"]
    named = [
        p
        for p in training
        if p.rank == EASY
        and p.origin == "generated"
        and title[p.passage_id] in own
        and names_title(p.query, title[p.passage_id])
    ]
    others = len(training) - len(named)
    room = len(named) if share == 1 else max(int(others * share / (1 - share)), (len(training) + 1) // 2 - others)
    left = Counter(p.passage_id for p in training)
    gone: dict[str, Pair] = {}
    shuffled = random.Random(f"{seed}:titles").sample(named, len(named))
    for last_ones in (False, True):
        for pair in shuffled:
            if len(named) - len(gone) > room and pair.id not in gone and (last_ones or left[pair.passage_id] > 1):
                gone[pair.id] = pair
                left[pair.passage_id] -= 1
    return {i: ("names-its-title", f"quality.names_title {share}; {title[p.passage_id]}") for i, p in gone.items()}
