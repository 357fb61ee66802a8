"""The whole YAML file as one frozen model; its sections are in settings.py.

Paths in the file are relative to the file's own folder; `~` and `$VARIABLE` are expanded.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from factory.records import InputError, problem
from factory.settings import (
    CardConfig,
    ChooseConfig,
    GivenConfig,
    InputConfig,
    JudgeConfig,
    LLMConfig,
    MineConfig,
    ModelConfig,
    Part,
    PassagesConfig,
    RoundsConfig,
    ScoreConfig,
    SplitConfig,
    TestConfig,
)
from factory.settings_questions import GenerateConfig, QualityConfig

DEV_OF_ROUNDS = 0.1  # of the documents: what is held out is not trained on, so not more than a comparison needs


class Config(Part):
    """One `factory.yaml`."""

    input: InputConfig
    model: ModelConfig
    passages: PassagesConfig = PassagesConfig()
    split: SplitConfig = SplitConfig()
    test: TestConfig = TestConfig()
    given: GivenConfig = GivenConfig()
    llm: LLMConfig = LLMConfig()
    generate: GenerateConfig = GenerateConfig()
    quality: QualityConfig = QualityConfig()
    mine: MineConfig = MineConfig()
    score: ScoreConfig = ScoreConfig()
    judge: JudgeConfig = JudgeConfig()
    choose: ChooseConfig = ChooseConfig()
    rounds: RoundsConfig = RoundsConfig()
    card: CardConfig = CardConfig()
    seed: int = Field(42, description="of every draw")

    @field_validator("rounds", mode="before")
    @classmethod
    def _count_alone(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"expected how many rounds at most, e.g. 2, got {str(value).lower()}")
        return {"count": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _rounds_are_compared(self) -> Config:
        if self.rounds.count > 1 and self.split.dev == 0:
            raise ValueError("rounds are compared on dev/, but split.dev is 0: leave it out (then 0.1), or set a share")
        return self

    @model_validator(mode="after")
    def _one_place_for_pairs(self) -> Config:
        if self.given.path and self.input.kind == "pairs":
            raise ValueError(
                "given.path mixes pairs with generated questions; with input.kind: pairs put it into input.path"
            )
        return self

    @model_validator(mode="after")
    def _room_for_a_passage(self) -> Config:
        if self.llm.context - self.generate.max_tokens < 400:
            raise ValueError(
                f"llm.context {self.llm.context} leaves no room for a passage beside generate.max_tokens "
                f"{self.generate.max_tokens} and the prompt (about 300 tokens): raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _judge_for_elsewhere(self) -> Config:
        q, served = self.quality, self.llm.serve in ("vllm", "endpoint")
        if q.elsewhere and self.input.kind != "pairs" and not (q.judge == "on" or (q.judge == "auto" and served)):
            raise ValueError(
                f"quality.elsewhere {q.elsewhere} asks the LLM of other passages, but quality.judge is {q.judge}"
                + (f" and llm.serve {self.llm.serve}, which judges only with on" if q.judge == "auto" else "")
                + ": set quality.judge: on"
            )
        return self

    @property
    def depth(self) -> int:
        """`mine.top_k`, or as deep as `choose.preset: range` takes negatives from."""
        return max(self.mine.top_k, self.choose.range[1] if self.choose.preset == "range" else 0)

    @property
    def dev_share(self) -> float:
        """`split.dev`, or what it is where it is left out."""
        if self.split.dev is not None:
            return self.split.dev
        return DEV_OF_ROUNDS if self.rounds.count > 1 else 0.0


def expand(path: str, base: Path) -> str:
    """`~` and variables replaced; a relative path is taken from `base`."""
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        raise InputError(f"variable in {path!r} is not set", fix="export it, or write the path out")
    return str(base / expanded) if not os.path.isabs(expanded) else expanded


def load_config(path: Path) -> Config:
    """Read and check a configuration file; its relative paths come back absolute.

    Raises:
        InputError: no such file, not YAML, an unknown key or a value out of range; names the key.
    """
    if not path.is_file():
        fix = "give the path of a factory.yaml; README.md shows one, `bge-factory config` explains every key"
        raise InputError("no such configuration file", where=path, fix=fix)
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"not valid YAML: {e}", where=path) from e
    if not isinstance(data, dict):
        raise InputError("expected keys such as input: and model:", where=path)
    try:
        config = Config.model_validate(data)
    except ValidationError as e:
        raise InputError(_with_nearest(e), where=path, fix="`bge-factory config` explains every key") from e
    try:
        return resolve_paths(config, path.resolve().parent)
    except InputError as e:
        raise InputError(e.what, where=path, fix=e.fix) from e


def _with_nearest(error: ValidationError) -> str:
    """`problem`, and for the first unknown key the known one that it may have been meant to be."""
    for e in error.errors():
        if e["type"] == "extra_forbidden":
            known: Any = Config
            for part in e["loc"][:-1]:
                known = known.model_fields[part].annotation if part in getattr(known, "model_fields", {}) else None
            names = list(getattr(known, "model_fields", {}))
            if near := difflib.get_close_matches(str(e["loc"][-1]), names, n=1):
                return f"{problem(error)} (did you mean {near[0]}?)"
    return problem(error)


def resolve_paths(config: Config, base: Path) -> Config:
    """The configuration with each path absolute."""

    def absolute(paths: Any) -> Any:
        """One path, a list of them or a mapping to them; None and "" stay."""
        if isinstance(paths, dict):
            return {key: expand(path, base) for key, path in paths.items()}
        if isinstance(paths, list):
            return [expand(path, base) for path in paths]
        return paths and expand(paths, base)

    reranker = config.score.reranker
    local_llm = config.llm.serve in ("llamacpp", "vllm")
    found: dict[str, dict[str, Any]] = {
        "input": {"path": absolute([config.input.path] if isinstance(config.input.path, str) else config.input.path)},
        "model": {"path": absolute(config.model.path)},
        "test": {"questions": absolute(config.test.questions)},
        "given": {"path": absolute(config.given.path)},
        "llm": {"model": absolute(config.llm.model) if local_llm else config.llm.model},
        "generate": {"prompt": absolute(config.generate.prompt), "examples": absolute(config.generate.examples)},
        "rounds": {"launch": absolute(config.rounds.launch) if config.rounds.count > 1 else config.rounds.launch},
        "score": {"reranker": reranker if reranker == "llm" else absolute(reranker)},
    }
    parts = {name: getattr(config, name).model_copy(update=update) for name, update in found.items()}
    return config.model_copy(update=parts)
