"""Which arguments the installed trainer takes, read from its source: nothing of it is imported.

Importing FlagEmbedding and transformers takes ten seconds and brings in torch; parsing the few
files that declare the arguments takes a tenth of one. What a field becomes on the command line
follows transformers' HfArgumentParser; what the words then mean is left to argparse itself.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from factory.errors import InputError
from launch.config import Frozen
from launch.sources import ArgumentSpec, Sources

ENTRIES = {
    "base": "FlagEmbedding.finetune.embedder.encoder_only.base",
    "m3-unified": "FlagEmbedding.finetune.embedder.encoder_only.m3",
    "matryoshka": "launch.matryoshka",
    "reranker": "FlagEmbedding.finetune.reranker.encoder_only.base",
}


class Signature(Frozen):
    """Every argument of a recipe's trainer, in its own order, and the versions they were read from."""

    recipe: str
    versions: dict[str, str | None]
    arguments: tuple[ArgumentSpec, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names, with underscores."""
        return frozenset(a.name for a in self.arguments)

    def get(self, name: str) -> ArgumentSpec | None:
        """The argument of that name, None if there is none."""
        return next((a for a in self.arguments if a.name == name), None)

    def refusal(self, words: Sequence[str]) -> list[str]:
        """What the trainer would say against a command line: every problem, none if it takes it.

        A unique beginning of a name is no problem: argparse takes it, and so does HfArgumentParser.
        """
        parser = self._parser()
        known = {option: a.name for a in self.arguments for option in (*a.options, *a.negations)}
        problems: list[str] = []
        given: set[str] = set()
        for group in _groups(words, known):
            given.add(known.get(group[0].partition("=")[0], ""))
            try:
                values, unused = parser.parse_known_args(group)
            except _Refused as e:
                problems.append(str(e))
                continue
            given |= vars(values).keys()
            problems += [p for name, value in vars(values).items() for p in self._bad_json(name, value)]
            problems += [self._unused(unused)] if unused else []
        missing = [a.name for a in self.arguments if a.required and a.name not in given]
        return problems + [f"argument --{name}: required, and not given" for name in missing]

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
        for a in self.arguments:
            choices = [str(c) for c in a.choices] if a.choices and a.word == "choice" else a.choices
            parser.add_argument(*a.options, dest=a.name, type=_READERS[a.word], nargs=a.nargs, choices=choices)
            if a.negations:
                parser.add_argument(*a.negations, dest=a.name, action="store_false")
        return parser

    def _bad_json(self, name: str, value: Any) -> Iterator[str]:
        """TrainingArguments parses what begins with a brace; anything else is a path to it."""
        spec = self.get(name)
        if spec and spec.kind == "json" and isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except ValueError as e:
                yield f"argument --{name}: not valid JSON: {e}"

    def _unused(self, words: list[str]) -> str:
        option = words[0].partition("=")[0]
        if not option.startswith("--"):
            return f"{shlex.join(words)}: belongs to no argument"
        near = difflib.get_close_matches(option[2:].replace("-", "_"), self.names, n=1, cutoff=0.5)
        return f"argument {option}: unknown" + (f"; did you mean --{near[0]}?" if near else "")


def signature(recipe: str, site: Path | None = None) -> Signature:
    """What the installed trainer of a recipe accepts.

    Args:
        recipe: a key of ENTRIES.
        site: the site-packages folder to read; by default, where this Python would import from.

    Raises:
        InputError: no such recipe, or a package, a file or a class is not where it is expected.
    """
    if recipe not in ENTRIES:
        raise InputError(f"unknown recipe {recipe!r}", fix=f"one of {', '.join(ENTRIES)}")
    sources = Sources(site)
    found: dict[str, ArgumentSpec | None] = {}
    entry = ENTRIES[recipe] if recipe == "matryoshka" else f"{ENTRIES[recipe]}.__main__"
    for node, module in sources.parsed_by(entry):
        found |= sources.fields(node, module)
    versions: dict[str, str | None] = {}
    trainer = "sentence-transformers" if recipe == "matryoshka" else "FlagEmbedding"
    for name in (trainer, "transformers", "deepspeed"):
        installed = metadata.distributions(name=name, path=[str(site)] if site else sys.path)
        versions[name] = next((d.version for d in installed), None)
    return Signature(recipe=recipe, versions=versions, arguments=tuple(a for a in found.values() if a))


# The command line


class _Refused(Exception):
    """What argparse says before it would end the process."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)


def _truth(word: str) -> bool:
    if word.lower() not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {word!r}")
    return word.lower() in ("yes", "true", "t", "y", "1")


_READERS: dict[str, Any] = {"bool": _truth, "int": int, "float": float, "str": str, "choice": str, "other": str}
_READERS["dict"] = dict  # as HfArgumentParser has it: it takes no word but ""


def _groups(words: Sequence[str], known: dict[str, str]) -> list[list[str]]:
    """Each option with the words after it. What argparse may take for a value starts no group."""
    groups: list[list[str]] = []
    for word in words:
        starts = word.partition("=")[0] in known or re.fullmatch(r"--[A-Za-z][\w-]*(=\S*)?", word)
        if groups and (not starts or "--" in groups[-1]):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups
