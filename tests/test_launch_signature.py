"""The trainer's arguments as read from its source, against what its own parser says."""

from __future__ import annotations

import argparse
import enum
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_origin

import pytest

from factory.errors import InputError
from launch.signature import ENTRIES, ArgumentSpec, Signature, signature


@pytest.fixture(scope="module")
def base() -> Signature:
    return signature("base")


# Against the real parser


@pytest.fixture(scope="module")
def real() -> dict[str, argparse.ArgumentParser]:
    """The parsers that the entry modules build: this imports transformers and FlagEmbedding."""
    from transformers import HfArgumentParser

    built = {}
    for recipe, prefix in (("base", "EncoderOnlyEmbedder"), ("m3-unified", "EncoderOnlyEmbedderM3"), ("reranker", "")):
        module = importlib.import_module(ENTRIES[recipe] if prefix else "FlagEmbedding.abc.finetune.reranker")
        classes = [f"{prefix or 'AbsReranker'}{kind}Arguments" for kind in ("Model", "Data", "Training")]
        built[recipe] = HfArgumentParser([getattr(module, c) for c in classes])
    ours = importlib.import_module(ENTRIES["matryoshka"])
    built["matryoshka"] = HfArgumentParser([ours.MatryoshkaArguments, ours.SentenceTransformerTrainingArguments])
    return built


def described(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """What a parser knows of each argument, in its own order."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from transformers import TrainingArguments
    from transformers.hf_argparser import string_to_bool

    dicts = {*TrainingArguments._VALID_DICT_FIELDS, *SentenceTransformerTrainingArguments._VALID_DICT_FIELDS}

    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions[1:]:  # the first is --help
        if action.dest in found:  # --no_…
            found[action.dest]["options"] += action.option_strings
            continue
        choices = list(action.choices) if action.choices else None
        words = {string_to_bool: "bool", int: "int", float: "float", str: "str"}
        word = words.get(action.type, "other")
        if isinstance(action.type, enum.EnumMeta):
            choices = [member.value for member in action.type]
        kind = word if choices is None else "choice"
        if action.dest in dicts or get_origin(action.type) is dict:
            kind = "json"
        found[action.dest] = {
            "kind": "list" if action.nargs == "+" else kind,
            "choices": choices,
            "default": action.default,
            "required": action.required,
            "nargs": action.nargs,
            "help": action.help or "",
            "options": list(action.option_strings),
        }
    return found


def as_described(a: ArgumentSpec) -> dict[str, Any]:
    return {
        "kind": a.kind,
        "choices": None if a.choices is None else list(a.choices),
        "default": a.default,
        "required": a.required,
        "nargs": a.nargs,
        "help": a.help,
        "options": [*a.options, *a.negations],
    }


def test_every_argument_is_what_the_real_parser_makes_of_it(real: dict[str, argparse.ArgumentParser]) -> None:
    unevaluated = {
        "optim": "<default_optim>",
        "token": "<os.getenv('HF_TOKEN', None)>",
        "batch_sampler": "<BatchSamplers.BATCH_SAMPLER>",
        "multi_dataset_batch_sampler": "<MultiDatasetBatchSamplers.PROPORTIONAL>",
        "warmup_ratio": "<None if parse_version(transformers_version) >= parse_version('5.0.0') else 0.0>",
    }
    for recipe, parser in real.items():
        expected = described(parser)
        for name, text in unevaluated.items():
            expected.get(name, {})["default"] = text
        read = signature(recipe)
        assert read.names == expected.keys()
        assert [a.name for a in read.arguments] == list(expected)
        assert {a.name: as_described(a) for a in read.arguments} == expected


MODEL = "--model_name_or_path m "
TAKEN = [
    "",
    "--train_data a b --output_dir o --fp16 --seed -1",
    "--learning-rate 1e-5 --learning_rate=2",
    "--fp16 false --bf16 T --no_normalize_embeddings --normalize_embeddings no",
    "--fsdp --gradient_checkpointing --tf32 1",
    "--mrl_dims 1 2 --debug underflow_overflow --log_level info --lr_scheduler_type cosine",
    "--normalize_emb --query_max 3",  # beginnings of one spelling only: argparse takes them
    "--query_instruction_for_retrieval {empty} --passage_instruction_for_retrieval {spaced}",
]
REFUSED = [
    "--warmup_ratio 0.1",
    "--warmup_ratio=0.1",
    "--seed x",
    "--seed 1.5",
    "--seed",
    "--seed 1 2",
    "--learning_rate -1e-x",
    "--fp16 maybe",
    "--tf32",
    "--no_fp16",
    "--no_normalize_embeddings yes",
    "--train_data",
    "--mrl_dims 1 b",
    "--debug nothing",
    "--lr_scheduler_type linea",
    "--log_level loud",
    "--kd_loss_type kl",
    "--learn 1",  # learning_rate and learning-rate both begin so
    "--liger_kernel_config {json}",
    "--eval_strategy steps stray",
    "-x",
    "stray",
    "-- --seed 1",
]


def test_it_refuses_what_the_real_parser_refuses(real: dict[str, argparse.ArgumentParser], base: Signature) -> None:
    parser = real["base"]

    def refuse(message: str) -> None:
        raise ValueError(message)

    parser.error = refuse  # type: ignore[method-assign, assignment]  # it would end the process
    fill = {"{empty}": "", "{spaced}": "--seed of a plant", "{json}": '{"rope": true}'}
    for line in [MODEL + line for line in TAKEN + REFUSED] + ["--seed 1"]:
        words = [fill.get(word, word) for word in line.split()]
        try:
            refused = bool(parser.parse_known_args(words)[1])
        except ValueError:
            refused = True
        assert refused == (line not in [MODEL + taken for taken in TAKEN]), line
        assert bool(base.refusal(words)) == refused, line


# What is said


def test_every_problem_is_named_in_one_go(base: Signature) -> None:
    words = ["--seed", "x", "--query_maxlen", "64", "--fp16", "perhaps", "--learning-rate", "--deepspeed", '{"a": 1']
    said = base.refusal([*words, "--kd_loss_type", "kl", "--do_train", "yes", "stray"])
    expected = [
        "argument --seed: invalid int value: 'x'",
        "argument --query_maxlen: unknown; did you mean --query_max_len?",
        "argument --fp16: expected true or false, got 'perhaps'",
        "argument --learning_rate/--learning-rate: expected one argument",
        "argument --deepspeed: not valid JSON: ",
        "argument --kd_loss_type/--kd-loss-type: invalid choice: 'kl' (choose from",
        "stray: belongs to no argument",
        "argument --model_name_or_path: required, and not given",
    ]
    assert [s[: len(e)] for s, e in zip(said, expected, strict=True)] == expected


def test_a_json_argument_takes_json_or_a_path(base: Signature) -> None:
    words = ["--model_name_or_path", "m", "--deepspeed", "ds.json", "--accelerator-config", '{"split_batches": true}']
    assert base.refusal(words) == []


def test_a_required_argument_with_a_bad_value_is_not_called_missing_too(base: Signature) -> None:
    assert base.refusal(["--model-name-or-path"]) == [
        "argument --model_name_or_path/--model-name-or-path: expected one argument"
    ]


def test_where_an_argument_is_defined(base: Signature) -> None:
    found = base.get("learning_rate")
    assert found
    file, line = found.where.rsplit(":", 1)
    assert "learning_rate: float" in Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert base.get("nothing") is None
    assert base.versions["FlagEmbedding"] and base.versions["transformers"]


def test_nothing_of_the_trainer_is_imported() -> None:
    code = (
        "import sys; from launch.signature import signature; "
        "print(len(signature('m3-unified').names), {'torch', 'transformers', 'FlagEmbedding'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, imported = run.stdout.strip().partition(" ")
    assert int(count) > 100
    assert imported == "set()"


# Another version: transformers 4, in a folder that Python does not import from

MAIN = """
from transformers import HfArgumentParser
from FlagEmbedding.finetune.embedder.encoder_only.base import TheModelArguments, TheTrainingArguments

def main():
    parser = HfArgumentParser((TheModelArguments, TheTrainingArguments))
"""
INIT = "from .arguments import ModelArguments as TheModelArguments, TrainArguments as TheTrainingArguments"
ARGUMENTS = """
from dataclasses import dataclass, field
from typing import ClassVar, List, Optional

import transformers.anything
from transformers import TrainingArguments

@dataclass
class ModelArguments:
    kind: ClassVar[str] = "model"
    model: str
    dims: Optional[List[int]] = field(default=None)

@dataclass
class TrainArguments(TrainingArguments):
    seed: Optional[int] = field(default=7)
"""
TRANSFORMERS = """
from typing import TYPE_CHECKING

_import_structure = {"training_args": ["TrainingArguments"]}
if TYPE_CHECKING:
    from .training_args import TrainingArguments
else:
    import sys
"""
TRAINING = """
from dataclasses import dataclass, field
from typing import Literal, Optional, Union, Any

from .trainer_utils import IntervalStrategy

raise SystemExit("this file is read, never run")

@dataclass
class TrainingArguments:
    framework = "pt"
    output_dir: str = field(metadata={"help": "Where to."})
    overwrite_output_dir: bool = field(default=False)
    warmup_ratio: float = field(default=0.0)
    seed: int = 42
    evaluation_strategy: Union[IntervalStrategy, str] = field(default="no")
    mode: Literal["a", "b", 3] = field(default="a")
    greedy: Optional[bool] = field(default=None)
    logging_nan_inf_filter: bool = True
    deepspeed: Optional[Union[dict[str, Any], str]] = field(default=None)
    report_to: Union[None, str, list[str]] = field(default=None)
    past_index: int = field(default_factory=lambda: compute(1))
    _n_gpu: int = field(init=False, repr=False, default=-1)
"""
UTILS = """
from enum import Enum

class IntervalStrategy(str, Enum):
    NO = "no"
    EPOCH = "epoch"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    base = "FlagEmbedding/finetune/embedder/encoder_only/base"
    files = {
        "FlagEmbedding/__init__.py": "raise SystemExit('this file is read, never run')",
        f"{base}/__main__.py": MAIN,
        f"{base}/__init__.py": INIT,
        f"{base}/arguments.py": ARGUMENTS,
        "transformers/__init__.py": TRANSFORMERS,
        "transformers/training_args.py": TRAINING,
        "transformers/trainer_utils.py": UTILS,
        "transformers-4.44.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: transformers\nVersion: 4.44.2\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_transformers_4_is_read_as_well(site: Path, base: Signature) -> None:
    old = signature("base", site)
    assert [(a.name, a.kind, a.default) for a in old.arguments] == [
        ("model", "str", None),
        ("dims", "list", None),
        ("output_dir", "str", None),
        ("overwrite_output_dir", "bool", False),
        ("warmup_ratio", "float", 0.0),
        ("seed", "int", 7),  # in the place where the base class has it, as a dataclass orders them
        ("evaluation_strategy", "choice", "no"),
        ("mode", "choice", "a"),
        ("greedy", "bool", None),
        ("logging_nan_inf_filter", "bool", True),
        ("deepspeed", "json", None),
        ("report_to", "str", None),
        ("past_index", "int", "<compute(1)>"),
    ]
    assert old.versions == {"FlagEmbedding": None, "transformers": "4.44.2", "deepspeed": None}
    assert {a.name for a in old.arguments if a.required} == {"model", "output_dir"}
    assert {"warmup_ratio", "evaluation_strategy", "overwrite_output_dir"}.isdisjoint(base.names)
    words = ["--model", "m", "--output-dir", "o", "--warmup_ratio", "0.1", "--evaluation_strategy", "epoch"]
    assert old.refusal([*words, "--no-logging-nan-inf-filter", "--mode", "3", "--dims", "1", "2"]) == []
    assert len(old.refusal([*words, "--greedy", "--mode", "c", "--dims", "d", "--evaluation_strategy", "now"])) == 4


# Errors


def test_an_unknown_recipe() -> None:
    with pytest.raises(InputError, match=r"'m4'.*\n.*m3-unified"):
        signature("m4")


def test_a_package_that_is_not_there(site: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"encoder_only\.base\.__main__ cannot be found\n.*pip install") as caught:
        signature("base", tmp_path / "empty")
    assert caught.value.where == tmp_path / "empty"
    (site / "transformers").rename(site / "gone")
    with pytest.raises(InputError, match=r"arguments\.py:\d+: the class TrainingArguments.*\n.*pip install"):
        signature("base", site)


def test_a_class_or_a_call_that_is_not_there(site: Path) -> None:
    (site / "transformers/training_args.py").write_text("class Other: pass")
    with pytest.raises(InputError, match=r"arguments\.py:15: the class TrainingArguments"):
        signature("base", site)
    (site / "transformers/training_args.py").write_text("class Other")
    with pytest.raises(InputError, match=r"training_args\.py: not valid Python"):
        signature("base", site)
    main = site / "FlagEmbedding/finetune/embedder/encoder_only/base/__main__.py"
    main.write_text("print('no parser')")
    with pytest.raises(InputError, match="expected a call of HfArgumentParser"):
        signature("base", site)
