"""launch.yaml as a frozen model. Every path in it is relative to the YAML's own folder."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from factory.records import InputError, problem

Recipe = Literal["base", "m3-unified", "matryoshka", "reranker"]
Pooling = Literal["cls", "mean", "last_token"]  # the choices of FlagEmbedding's sentence_pooling_method
Tracker = Literal["tensorboard", "wandb", "mlflow", "swanlab"]


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(Frozen):
    """GPUs that may be on another machine: memory of each in GiB, and whether they take bf16 (Ampere and later)."""

    memory: float = Field(gt=0)
    bf16: bool = True


class Hardware(Frozen):
    """Where to train. `auto`: every visible GPU; without a GPU, one process on the CPU.

    With `gpu`, the plan is for `nnodes` nodes with `nproc_per_node` such GPUs each, whatever is here.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    nnodes: int = Field(default=1, ge=1)
    nproc_per_node: Literal["auto"] | int = "auto"
    gpu: Gpu | None = None

    @field_validator("nproc_per_node")
    @classmethod
    def _positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected auto or a number from 1 on")
        return value

    @model_validator(mode="after")
    def _counted(self) -> Hardware:
        if self.gpu and self.device == "cpu":
            raise ValueError("gpu describes GPUs, but device is cpu; leave out one of the two")
        if self.gpu and self.nproc_per_node == "auto":
            raise ValueError("gpu is there, so nproc_per_node must say how many of them a node has")
        return self


class LaunchConfig(Frozen):
    """The whole of launch.yaml, paths absolute.

    Defaults: temperature, group size and seed are FlagEmbedding's own
    (abc/finetune/embedder/AbsArguments.py); the learning rate is the one of its embedder examples;
    lengths are in tokens of the model's tokenizer and fit questions and passages of about 200 words.
    `dev` is an eval set in BEIR layout; base and tuned model are scored on it at the end. `trackers`: where the curves go
    beside the console, tensorboard by default where it is installed; all of them write into the output folder.
    """

    recipe: Recipe = "base"
    model: Path
    train_data: tuple[Path, ...] = Field(min_length=1)
    output: Path
    dev: Path | None = None
    hardware: Hardware = Hardware()
    deepspeed: str | None = None
    pooling: Pooling | None = None
    query_instruction: str = ""
    passage_instruction: str = ""
    epochs: float = Field(default=2, gt=0)
    learning_rate: float = Field(default=1e-5, gt=0)
    batch_size: int = Field(default=8, ge=1)
    train_group_size: int = Field(default=8, ge=1)
    query_max_len: int = Field(default=64, ge=2)
    passage_max_len: int = Field(default=256, ge=2)
    temperature: float = Field(default=0.02, gt=0)
    matryoshka_dims: tuple[int, ...] | None = None
    seed: int = Field(default=42, ge=0)
    trackers: tuple[Tracker, ...] | None = None
    arguments: dict[str, Any] = {}

    @field_validator("matryoshka_dims")
    @classmethod
    def _descending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or sorted(set(value), reverse=True) != list(value) or value[-1] < 1):
            raise ValueError("expected lengths of vectors, each smaller than the one before, like [1024, 512, 256]")
        return value

    @model_validator(mode="after")
    def _vectors_to_cut(self) -> LaunchConfig:
        if self.matryoshka_dims and self.recipe == "m3-unified":
            raise ValueError("matryoshka_dims: FlagEmbedding's m3 trainer cannot; take `recipe: matryoshka` or `base`")
        if self.matryoshka_dims and self.recipe == "reranker":
            raise ValueError("matryoshka_dims: a reranker gives a score and no vector; leave the key out")
        return self

    @field_validator("train_data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


def absolute(path: str | Path, folder: Path) -> Path:
    """`path` with `~` and `$VAR` expanded, relative to `folder`. ValueError if a variable is not set."""
    expanded = os.path.expandvars(os.path.expanduser(str(path)))
    if "$" in expanded:
        raise ValueError(f"{path}: the environment variable in it is not set")
    return Path(os.path.normpath(folder / expanded))


def load_config(path: Path) -> LaunchConfig:
    """The configuration in a YAML file.

    Raises:
        InputError: the file is missing, is not YAML, or does not fit; names the key, and for an
            unknown key the nearest known one.
    """
    raw = read_yaml(path)
    refuse_unknown(raw, LaunchConfig, path, "Arguments of the trainer itself go under `arguments:`.")
    try:
        config = LaunchConfig.model_validate(raw)
        folder = path.resolve().parent
        places: dict[str, Any] = {
            "model": absolute(config.model, folder),
            "output": absolute(config.output, folder),
            "train_data": tuple(absolute(p, folder) for p in config.train_data),
            "dev": absolute(config.dev, folder) if config.dev else None,
        }
        if config.deepspeed and ("/" in config.deepspeed or config.deepspeed.endswith(".json")):
            places["deepspeed"] = str(absolute(config.deepspeed, folder))
    except ValidationError as e:
        raise InputError(problem(e), where=path) from e
    except ValueError as e:
        raise InputError(str(e), where=path, fix="set the variable, or write the path out") from e
    return config.model_copy(update=places)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The keys and values of a YAML file. InputError if it is missing or holds something else."""
    import yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise InputError("no such file", where=path, fix="give the path of a YAML file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"not valid YAML: {e}", where=path) from e
    if not isinstance(raw, dict):
        raise InputError(f"expected keys and values, got {type(raw).__name__}", where=path)
    return raw


def refuse_unknown(raw: dict[Any, Any], model: type[BaseModel], path: Path, hint: str = "", within: str = "") -> None:
    """InputError for the first key that `model`, or a model in it, has not; names the nearest. `hint` ends the fix."""
    known = model.model_fields
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise InputError(f"{within + str(key)!r} is not a known key", where=path, fix=f"{fix} {hint}".rstrip())
        inner = _model_in(known[key].annotation)
        values = {f"{within}{key}.{i}.": v for i, v in enumerate(value)} if isinstance(value, list) else {}
        for place, one in (values or {f"{within}{key}.": value}).items():
            if inner and isinstance(one, dict):
                refuse_unknown(one, inner, path, within=place)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def deepspeed_file(value: str | None) -> Path | None:
    """The DeepSpeed file that `deepspeed:` names: a path, or the name of a file in ds_configs/.

    A wheel carries the folder inside the package; a checkout has it beside the package.
    """
    if value is None or "/" in value or value.endswith(".json"):
        return Path(value) if value else None
    here = Path(__file__).resolve().parent
    folders = [here / "ds_configs", here.parent / "ds_configs"]
    return next((f / f"{value}.json" for f in folders if f.is_dir()), folders[0] / f"{value}.json")
