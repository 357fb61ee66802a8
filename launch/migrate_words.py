"""A shell script as it stands on a web page → its commands as words, each with its line.

More lenient than a shell where pages break commands: typographic dashes, quotes and blanks, lost
backslashes, remarks after a value. Nothing is executed: no `$(…)`, no condition, no loop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

CJK = r"[\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]"
DASH = "[-‐‑‒–—―−﹣－]"
DOUBLE, SINGLE = '"“”„‟＂', "'‘’‚＇"
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
TYPOGRAPHIC = re.compile(  # what a page made of plain characters: a word's dash, its quotes, blanks
    r"(?<!\S)[‐-―−﹣－](?=[-‐-―−－A-Za-z\d])|(?<=[\s=])[“”„‟＂‘’‚＇]|[\u00a0\u2000-\u200b\u202f\u3000\ufeff＼]"
)
KEYWORDS = {"if", "then", "elif", "else", "fi", "do", "done", "while", "{", "}", "(", ")", "$", "!"}
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
OPTION = re.compile(r"--?([A-Za-z][\w.-]*)(?:=(.*)|([/／(（#＃].*))?\Z", re.DOTALL)  # also `--fp16/半精度`
MARKED = re.compile(r"[/／(（#＃←]")  # how people begin a remark after a value
GLUED = re.compile(r"(-?[\d.]+(?:[eE]-?\d+)?|[Tt]rue|[Ff]alse)([/／(（#＃].*)", re.DOTALL)  # `1/显卡数量`
BETWEEN = {"join", "slash", "comment", "redirect", "end", "newline", "blank"}  # tokens that are part of no word
NESTED = 100  # expansions to something with a $ in it; more is a variable that names itself

TOKEN = re.compile(
    r"""
      (?P<join>(?:[\\＼]|(?<=\s)[\^`])[^\S\n]*\n)    # a line goes on: \, and ^ or ` on Windows
    | (?P<slash>(?<!\S)[\\＼](?=[^\S\n]))                   # the same, with a remark behind it
    | (?P<escape>\\\W)                                      # not D:\models
    | (?P<comment>(?<!\S)\#[^\n\r]*)
    | (?P<list>(?<!\S)[A-Za-z_]\w*\+?=\([^)]*\))
    | (?P<placeholder>(?<!\S)\{\w[^{}"'\n]*\}(?!\S))        # one word, with blanks and ; in it
    | (?P<splice>"\$\{\w+\[[@*]\]\}"|\$\{\w+(?:\[[@*]\]|:?-[^}]*)?\}|\$[A-Za-z_]\w*|%[A-Za-z_]\w*%)
    | (?P<call>\$\([^()]*\))
    | (?P<quote>["“”„‟＂'‘’‚＇])
    | (?P<redirect>(?<!\S)(?:\d|&)?>>?(?:&\d)?)
    | (?P<end>&&|\|\|?|;|&)
    | (?P<newline>\n)
    | (?P<blank>[^\S\n]+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
IN_DOUBLE = re.compile(
    r"(?P<join>\\[^\S\n]*\n)|\\(?P<escape>[\"\\$`])|(?P<splice>\$\{\w+(?::?-[^}]*)?\}|\$\w+|%\w+%)|(?P<other>.)",
    re.DOTALL,
)
NEXT_IS_OPTION = re.compile(rf"(?:\s|#[^\n]*\n)*(?:{DASH}+[A-Za-z]|[/／]{CJK})")

Char = tuple[str, int]  # a character and the line it stands on; "\r": a line's end within quotes, a blank


def plain(chars: tuple[Char, ...]) -> str:
    """The text of characters."""
    return "".join(c for c, _ in chars if c != "\r")


class Word(NamedTuple):
    """One word of a command. `quoted`: it began with a quote, so it is no option and no remark."""

    chars: tuple[Char, ...]
    line: int
    quoted: bool

    @property
    def text(self) -> str:
        """The word as the shell would pass it on; typographic dashes before it are `-` or `--`."""
        return plain(self.chars) if self.quoted else _plain_dash(plain(self.chars))


class Option(NamedTuple):
    """`--name` and the words up to the next option; a name's hyphens are underscores."""

    name: str
    values: tuple[Word, ...]
    line: int

    @property
    def given(self) -> str:
        """As it was written, on one line, shortened."""
        return shown(["-" * min(len(self.name), 2) + self.name, *(w.text or '""' for w in self.values)])


@dataclass
class Script:
    """What a script says. `commands`: all but assignments and exports; `joined`: lines that lost a backslash."""

    commands: list[list[Word]] = field(default_factory=list)
    variables: dict[str, tuple[Char, ...]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    comments: list[tuple[int, str]] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)
    nested: int = 0


def read_script(text: str) -> Script:
    """The commands of a script. Never fails: an unclosed quote is a character like others."""
    script = Script()
    text = INVISIBLE.sub("", re.sub(r"\r\n?", "\n", text))
    lines = re.sub(r"(?m)^[ \t]*(```|~~~).*$", "", text).split("\n")  # without a Markdown page's fences
    for words in _Reader([(c, n) for n, line in enumerate(lines, 1) for c in line + "\n"], script).commands():
        _take(script, words)
    return script


def read_words(chars: tuple[Char, ...], script: Script) -> list[Word]:
    """The words of a variable's value, or of eval's argument, whatever lines it spans."""
    one_line = [("\r" if c == "\n" else c, line) for c, line in chars]
    return [w for words in _Reader([*one_line, ("\n", 0), ("\n", 0)], script).commands() for w in words]


def options(words: list[Word]) -> tuple[list[Option], list[Word]]:
    """Options with their values, in order, and the words before the first option."""
    found: list[Option] = []
    loose: list[Word] = []
    for word in words:
        match = None if word.quoted else OPTION.match(word.text)
        if match:
            value = match[2] if match[3] is None else match[3]
            values = () if value is None else (Word(word.chars[len(word.chars) - len(value) :], word.line, False),)
            found.append(Option(match[1].replace("-", "_"), values, word.line))
        elif found:
            found[-1] = found[-1]._replace(values=(*found[-1].values, word))
        else:
            loose.append(word)
    return found, loose


def without_remarks(words: tuple[Word, ...], *, paths: bool, prose: bool, folder: Path) -> tuple[list[Word], list[str]]:
    """An option's values, and the remarks that people wrote after them, such as `/学习率`.

    Where values are `paths`, the first word is one even when it starts with `/`, and so is what
    exists in `folder`; where they are `prose`, a bare Chinese word is no remark.
    """
    values: list[Word] = []
    remarks: list[list[str]] = []
    remark_on = 0  # a remark goes on to the end of its line
    for word in words:
        glued = None if word.quoted or paths or prose else GLUED.fullmatch(word.text)
        if glued:
            values.append(word._replace(chars=word.chars[: len(glued[1])]))
            remarks.append([glued[2]])
        elif word.line == remark_on and not word.quoted:
            remarks[-1].append(word.text)
        elif _is_remark(word, first=not values, paths=paths, prose=prose, folder=folder):
            remarks.append([word.text])
        else:
            values.append(word)
            continue
        remark_on = word.line
    return values, [" ".join(r) for r in remarks]


def assignment(word: Word) -> tuple[str, bool, tuple[Char, ...]] | None:
    """NAME=value as (name, whether it is +=, value); None for another word."""
    match = None if word.quoted else ASSIGNMENT.match("".join(c for c, _ in word.chars))
    return (match[1], bool(match[2]), word.chars[match.end() :]) if match else None


def shown(words: list[str], width: int = 90) -> str:
    """Words on one line, shortened."""
    line = " ".join(" ".join(words).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _is_remark(word: Word, *, first: bool, paths: bool, prose: bool, folder: Path) -> bool:
    text = word.text
    a_path = paths and (first or re.search(r"\.[A-Za-z]\w*/?$", text) or os.path.exists(folder / text))
    if word.quoted or a_path or (prose and first):
        return False
    chinese = re.search(CJK, text) is not None
    if MARKED.match(text):
        return chinese or not (first or paths)
    return chinese and not first and not prose and "/" not in text


def _plain_dash(text: str) -> str:
    text = re.sub(rf"^({DASH}?[\d.]+[eE]){DASH}(?=\d+$)", r"\1-", text)
    match = re.match(rf"{DASH}+(?=([A-Za-z][\w.-]*)|\.?\d)", text)
    if not match or match[0] in ("-", "--"):
        return text
    return ("--" if match[1] and len(match[1]) > 1 else "-") + text[match.end() :]


def _take(script: Script, words: list[Word]) -> None:
    """Adds one command to the script, or does what it says to the variables."""
    while words and not words[0].quoted and words[0].text in KEYWORDS:
        words = words[1:]
    parts = [assignment(w) for w in words]
    exported = bool(words) and words[0].text in ("export", "set", "declare")
    if exported or all(parts):
        for word, part in zip(words, parts, strict=True):
            name, more, value = part or (word.text, False, ())
            if part:
                script.variables[name] = (*(script.variables.get(name, ()) if more else ()), *value)
            if exported and name in script.variables:
                script.environment[name] = plain(script.variables[name])
    elif words[0].text == "eval" or [w.text for w in words[:2]] in (["bash", "-c"], ["sh", "-c"]):
        inner = words[1:] if words[0].text == "eval" else words[2:]
        if len(inner) == 1 and inner[0].quoted:
            inner = read_words(inner[0].chars, script)
        _take(script, inner)
    else:
        script.commands.append(words)


class _Reader:
    """Goes through characters once; variables are expanded with what they hold by then."""

    def __init__(self, chars: list[Char], script: Script):
        self.script = script
        self.text = "".join(c for c, _ in chars)
        self.lines = [line for _, line in chars]

    def commands(self) -> Iterator[list[Word]]:
        words: list[Word] = []
        open_word: Word | None = None
        joining = skip = False  # until the line's end, after a lone backslash; the file after `>`
        at = 0
        while at < len(self.text):
            match = TOKEN.match(self.text, at)
            assert match, "the pattern takes any character"
            kind, end, line = match.lastgroup or "", match.end(), self.lines[at]
            value = self._value(match[0], line) if kind == "splice" else None
            if value is not None:
                self.text = self.text[:at] + "".join(c for c, _ in value).replace("\n", "\r") + self.text[end:]
                self.lines[at:end] = [n for _, n in value]
                continue
            if kind == "newline" and (words or open_word) and (joining or NEXT_IS_OPTION.match(self.text, end)):
                self.script.joined += [] if joining else [line]
                kind, joining = "blank", False
            close = self._closing(at) if kind == "quote" else None
            if kind not in BETWEEN:
                found, end = (self._inside(at, close), close + 1) if close else (self._plain(kind, at, end), end)
                word = open_word or Word((), line, close is not None)
                open_word = word._replace(chars=(*word.chars, *found))
            else:
                words += [open_word] if open_word and not skip else []
                skip = (skip and not open_word) or (kind == "redirect" and "&" not in match[0][1:])
                open_word = None
                joining = (joining or kind == "slash") and "\r" not in match[0]
            if kind == "comment":
                self.script.comments.append((line, match[0]))
            if kind in ("end", "newline"):
                if words:
                    yield words
                words, skip = [], False
            at = end

    def _plain(self, kind: str, start: int, end: int) -> list[Char]:
        """The characters of a piece of a word; an array's `(` and `)` and an escape's backslash are not."""
        found = list(zip(self.text[start:end], self.lines[start:end], strict=True))
        if kind == "list":
            found.remove(next(c for c in found if c[0] == "("))
            return found[:-1]
        return found[1:] if kind == "escape" else found

    def _value(self, reference: str, line: int) -> tuple[Char, ...] | None:
        """What a `$NAME`, `${NAME:-other}` or `%NAME%` stands for; None where the script does not say."""
        name = re.search(r"\w+", reference)
        default = re.search(r":?-([^}]*)\}$", reference)
        other = tuple((c, line) for c in default[1]) if default else None
        value = self.script.variables.get(name[0], other) if name else None
        self.script.nested += "$" in plain(value or ())
        return value if self.script.nested <= NESTED else None

    def _closing(self, start: int) -> int | None:
        """Where the quote that opens at `start` closes; None if it is only a character."""
        opener = self.text[start]
        kind = DOUBLE if opener in DOUBLE else SINGLE
        if kind is SINGLE and start and self.text[start - 1].isalnum():
            return None  # an apostrophe
        either = self._find(start + 1, kind, kind)
        if not opener.isascii():
            return either
        same, line_end = self._find(start + 1, opener, kind), self.text.find("\n", start)
        only_one_is_plain = same is None or (either is not None and either < line_end < same)
        return either if only_one_is_plain else same

    def _find(self, at: int, wanted: str, kind: str) -> int | None:
        pattern = rf"(?:[^\\{wanted}]|\\.)*" if kind is DOUBLE else f"[^{wanted}]*"
        match = re.compile(pattern, re.DOTALL).match(self.text, at)
        return match.end() if match and self.text[match.end() :][:1] in set(wanted) else None

    def _inside(self, start: int, close: int) -> list[Char]:
        if self.text[start] in SINGLE:
            return self._plain("quote", start + 1, close)
        found: list[Char] = []
        for match in IN_DOUBLE.finditer(self.text, start + 1, close):
            line = self.lines[match.start()]
            value = self._value(match[0], line) if match.lastgroup == "splice" else None
            text = "\r" if match.lastgroup == "join" else match["escape"] or match[0]
            found += [(c, line) for c in text] if value is None else value
        return found
