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
EXPLAINED = "`bge-launch config` explains every key"


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(Frozen):
    """GPUs that may be on another machine: the plan is then for them, whatever is here."""

    memory: float = Field(gt=0, description="GiB of each GPU")
    bf16: bool = Field(default=True, description="whether they take bf16: Ampere and later do; else fp16")


class Hardware(Frozen):
    """Where to train."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: every visible GPU; without a GPU, the CPU"
    )
    nnodes: int = Field(default=1, ge=1, description="machines; with several, `bge-launch show` writes the job")
    nproc_per_node: Literal["auto"] | int = Field(
        default="auto",
        description="processes on each machine, one a GPU, from 1; auto: every visible GPU, or one process",
    )
    gpu: Gpu | None = Field(default=None, description="null: the GPUs of this machine; else nproc_per_node GPUs a node")

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
    (abc/finetune/embedder/AbsArguments.py); the learning rate is the one of its embedder examples.
    """

    recipe: Recipe = Field(
        default="base",
        description="base: one vector a text; m3-unified: bge-m3's dense, sparse and ColBERT heads together; "
        "matryoshka: vectors that may be cut, trained by sentence-transformers; reranker: a cross-encoder",
    )
    model: Path = Field(description="the base model's folder; nothing is downloaded")
    train_data: tuple[Path, ...] = Field(
        min_length=1,
        description="one or several .json or .jsonl files of rows with query, pos and neg, or their folders",
    )
    output: Path = Field(description="the tuned model's folder; must be new or empty")
    dev: Path | None = Field(
        default=None,
        description="an eval set in BEIR layout; base and tuned model are scored on it at the end; not with a reranker",
    )
    hardware: Hardware = Field(default=Hardware())
    deepspeed: str | None = Field(
        default=None,
        description="stage0, stage1, stage2, stage2-offload, stage3 (not with m3-unified), or a DeepSpeed file's path; "
        "null: plain DDP",
    )
    pooling: Pooling | None = Field(
        default=None, description="null: what the base model's 1_Pooling/config.json says, else cls"
    )
    query_instruction: str = Field(
        default="", description="stands before every query, nothing between; write the blank, as in 'query: '"
    )
    passage_instruction: str = Field(default="", description="the same for every passage")
    epochs: float = Field(
        default=2, gt=0, description="how often each row is trained on; `dev:` shows whether more helps"
    )
    learning_rate: float = Field(
        default=1e-5,
        gt=0,
        description="its highest value, after the warm-up; that of FlagEmbedding's embedder examples",
    )
    batch_size: int = Field(
        default=8, ge=1, description="queries in a step for each process; more give each query more negatives"
    )
    train_group_size: int = Field(
        default=8, ge=1, description="texts of each query: one positive and the rest its negatives; FlagEmbedding's own"
    )
    query_max_len: int = Field(
        default=64, ge=2, description="tokens, what is beyond is cut off; the model's positions limit it"
    )
    passage_max_len: int = Field(
        default=256, ge=2, description="tokens, the same; fits passages of about 200 words and costs most of the memory"
    )
    temperature: float = Field(
        default=0.02, gt=0, description="the loss divides cosines by it; FlagEmbedding's own; a reranker has none"
    )
    matryoshka_dims: tuple[int, ...] | None = Field(
        default=None,
        description="lengths of vectors, each smaller than the one before, as [1024, 512, 256]; with base and matryoshka "
        "only; null: with matryoshka the width and its halves down to 64, at most five",
    )
    seed: int = Field(default=42, ge=0, description="of the rows' order and the drawn negatives; FlagEmbedding's own")
    trackers: tuple[Tracker, ...] | None = Field(
        default=None,
        description="where the curves go beside the console, always into the output folder; null: tensorboard where it "
        "is installed; []: none",
    )
    arguments: dict[str, Any] = Field(
        default={},
        description="any other argument of the trainer, such as save_steps: 500, and it wins over the recipe's; null "
        "leaves the recipe's out; `bge-launch plan` prints them all",
    )

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
        raise InputError(problem(e), where=path, fix=EXPLAINED) from e
    except ValueError as e:
        raise InputError(str(e), where=path, fix="set the variable, or write the path out") from e
    return config.model_copy(update=places)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The keys and values of a YAML file. InputError if it is missing or holds something else."""
    import yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise InputError("no such file", where=path, fix=f"give the path of a YAML file; {EXPLAINED}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        fix = "put a text that holds `: `, `#` or a bracket in quotes, and indent with blanks"
        raise InputError(f"not valid YAML: {e}", where=path, fix=fix) from e
    if not isinstance(raw, dict):
        raise InputError(f"expected keys and values, got {type(raw).__name__}", where=path, fix=EXPLAINED)
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
