"""A launch.yaml as the build's rounds need it: does it train the model of factory.yaml, and what of it is each round's own.

Only `bge-launch` knows what the keys mean, and it has the last word; here are those that both files must agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from factory.config import expand
from factory.records import InputError
from factory.settings import ModelConfig


@dataclass(frozen=True)
class LaunchFile:
    """The keys of a launch.yaml, and in which line each of them stands."""

    path: Path
    settings: dict[str, Any]
    lines: dict[str, int]

    def where(self, key: str) -> str:
        """file:line of a key; the file where it is not there."""
        return f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)

    def absolute(self, key: str, path: Any) -> str:
        """A path in the file, with `~` and variables replaced; relative ones are from the file's folder."""
        try:
            return expand(str(path), self.path.resolve().parent)
        except InputError as e:
            raise InputError(e.what, where=self.where(key), fix="export it, or write the path out") from e


def read_launch_file(path: Path) -> LaunchFile:
    """Raises an InputError if there is no such file, or it is not YAML with keys and values; names file:line."""
    if not path.is_file():
        fix = "rounds.launch: the file that `bge-launch run` trains this model with; samples/ has some to begin with"
        raise InputError("no such file, and rounds train a model", where=path, fix=fix)
    try:
        text = path.read_text(encoding="utf-8-sig")
        node, settings = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise InputError(f"not valid YAML: {e.problem}", where=f"{path}{line}") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"not valid YAML: {e}", where=path) from e
    if not isinstance(node, yaml.MappingNode) or not isinstance(settings, dict):
        raise InputError("expected keys and values such as model: and batch_size:", where=path)
    return LaunchFile(path, settings, {str(key.value): key.start_mark.line + 1 for key, _ in node.value})


def agree(file: LaunchFile, model: ModelConfig) -> None:
    """See that the file trains an embedding model, this one, with these instructions.

    Raises:
        InputError: it does not; names file:line of the key.
    """
    if file.settings.get("recipe") == "reranker":
        raise InputError(
            "recipe reranker makes no model that could mine the next round",
            where=file.where("recipe"),
            fix="a recipe for embedding models: base, m3-unified or matryoshka",
        )
    named = file.settings.get("model")
    if named is None:
        raise InputError("no model is named", where=file.path, fix=f"model: {model.path}")
    path = file.absolute("model", named)
    if Path(path).resolve() != Path(model.path).resolve():
        raise InputError(
            f"it trains {path}, but factory.yaml's model.path is {model.path}: rounds begin with one model",
            where=file.where("model"),
            fix="name the same folder in both files",
        )
    for key in ("query_instruction", "passage_instruction"):
        here, there = getattr(model, key), file.settings.get(key) or ""
        if here != there:
            raise InputError(
                f"{key} is {there!r}, but factory.yaml's model.{key} is {here!r}: a model is searched with what it was trained with",
                where=file.where(key),
                fix="write the same in both files",
            )


def settings_of(file: LaunchFile, own: Path, train: Path, output: Path) -> dict[str, Any]:
    """The file's keys for one training: `train` and `output` for its own, every path absolute, without `dev`, since the
    build measures by itself.

    Args:
        own: the run's train.jsonl: of several training files, the one whose place `train` takes.

    Raises:
        InputError: there are several training files and none of them is `own`.
    """
    settings = {key: value for key, value in file.settings.items() if key != "dev"}
    named = settings.get("train_data") or []
    files = [file.absolute("train_data", p) for p in ([named] if isinstance(named, str) else named)]
    places = [i for i, p in enumerate(files) if Path(p).resolve() == own.resolve()] if len(files) > 1 else [0]
    if not places:
        raise InputError(
            f"of these {len(files)} training files none is this run's {own}",
            where=file.where("train_data"),
            fix="name it beside the others; each round's rows take its place",
        )
    files[places[0] : places[0] + 1] = [str(train)]
    deepspeed = settings.get("deepspeed")
    if isinstance(deepspeed, str) and ("/" in deepspeed or deepspeed.endswith(".json")):
        settings["deepspeed"] = file.absolute("deepspeed", deepspeed)
    model = file.absolute("model", settings["model"])
    return settings | {"model": model, "train_data": files, "output": str(output)}
