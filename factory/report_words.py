"""The page's words in both languages: `templates/report_words.yaml`, and how an entry of it becomes HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

WORDS = Path(__file__).parent / "templates" / "report_words.yaml"
SAID = "said."  # begins the keys of sentences that other parts of the program write into a run's files


@dataclass(frozen=True)
class Text:
    """One text in both languages, as HTML. On the page it is two spans, one of which the reader's choice hides."""

    en: Markup
    zh: Markup

    def __html__(self) -> str:
        if self.en == self.zh:
            return self.en
        return f'<span lang="en">{self.en}</span><span lang="zh">{self.zh}</span>'

    def plain(self) -> str:
        """Both at once, where no HTML can be: what a screen reader is told."""
        en, zh = self.en.striptags(), self.zh.striptags()
        return en if en == zh else f"{en} / {zh}"


@cache
def table() -> dict[str, dict[str, str]]:
    """Every entry of the file: key → language → text."""
    import yaml

    return yaml.safe_load(WORDS.read_text(encoding="utf-8"))


def say(key: str, **values: Any) -> Text:
    """The entry `key` with its `{placeholders}` filled in: plain values are escaped, a `Text` comes in its language."""
    entry = table()[key]

    def filled(lang: str) -> Markup:
        return Markup(entry[lang]).format(**{n: getattr(v, lang, v) for n, v in values.items()})

    return Text(filled("en"), filled("zh"))


def same(value: Any) -> Text:
    """A name, a number or a user's text, which is not translated."""
    return Text(escape(value), escape(value))


def known(prefix: str, name: str) -> Text:
    """The entry `prefix.name`; a name that the table does not have, such as a user's own, stays what it is."""
    key = f"{prefix}.{name}"
    return say(key) if key in table() else same(name)


def join(texts: Iterable[Text | str], en: str = ", ", zh: str = "，") -> Text:
    """The texts as one, in both languages."""
    parts = [t if isinstance(t, Text) else same(t) for t in texts]
    return Text(Markup(en).join(p.en for p in parts), Markup(zh).join(p.zh for p in parts))


def said(sentence: str) -> Text:
    """A sentence from a run's file: in both languages if an entry `said.…` reads like it, else as it stands there."""
    for key, entry in table().items():
        if key.startswith(SAID):
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(entry["en"]))
            if found := re.fullmatch(pattern, sentence):
                return say(key, **found.groupdict())
    return same(sentence)


def metric_name(metric: str) -> Text:
    """`ndcg@10` as a reader knows it."""
    name, at, k = metric.partition("@")
    return join([known("metric", name), at + k], "", "")


def percent(value: float, digits: int = 0) -> Text:
    """As each language writes it: English as this project does, with a space, Chinese without."""
    number = "< 1" if not digits and 0 < value < 0.5 else f"{value:.{digits}f}"
    return Text(escape(f"{number}\u00a0%"), escape(f"{number}%"))


def duration(seconds: float) -> Text:
    if seconds < 60:
        return say("duration.seconds", s=seconds)
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return say("duration.hours", h=minutes // 60, m=minutes % 60)
    return say("duration.minutes", m=minutes, s=rest)
