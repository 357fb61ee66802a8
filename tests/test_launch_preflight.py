"""Preflight: each mistake is found before anything starts, with its place and its remedy, all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.config import load_config
from launch.contract import Contract, installed
from launch.plan import LaunchPlan, Machine, make_plan
from launch.preflight import check
from launch.problems import Problem

CPU = Machine(gpus=0, bf16=False, cores=4)
ROW: dict[str, Any] = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def contracts() -> dict[str, Contract]:
    return {"base": installed("base"), "m3-unified": installed("m3-unified")}


def write(folder: Path, models: Path, rows: list[Any] | None = None, **keys: object) -> Path:
    """A launch.yaml and its data; ten good rows unless others are given (text lines as they are)."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in ([ROW] * 10 if rows is None else rows)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings: dict[str, object] = {"model": str(models / "bert"), "train_data": "train.jsonl", "output": "out/tuned"}
    settings |= {"batch_size": 4, "train_group_size": 3, "hardware": {"device": "cpu"}} | keys
    (folder / "launch.yaml").write_text(json.dumps(settings))
    return folder / "launch.yaml"


@pytest.fixture
def found(tmp_path: Path, models: Path, contracts: dict[str, Contract]) -> Callable[..., dict[str, Problem]]:
    """id → problem of a plan made from the given rows and keys."""

    def look(rows: list[Any] | None = None, machine: Machine = CPU, **keys: object) -> dict[str, Problem]:
        config = load_config(write(tmp_path, models, rows, **keys))
        made: LaunchPlan = make_plan(config, machine, contracts[config.recipe])
        return {p.id: p for p in check(made)}

    return look


def test_a_good_set_up_has_no_problem(found: Any) -> None:
    assert found() == {}


def test_bad_lines_are_named_by_file_and_line(tmp_path: Path, models: Path) -> None:
    rows: list[Any] = [ROW] * 6 + ['{"query": "q", "pos": ["p"'] + [ROW, ROW | {"neg": []}, ROW | {"pos": "p"}]
    out = CliRunner().invoke(app, ["check", str(write(tmp_path, models, rows, model="gone"))])
    assert out.exit_code == 2
    file = tmp_path / "train.jsonl"
    assert f"error: {file}:7: not valid JSON" in out.stderr
    assert f"{file}:9: neg" in out.stderr and f"{file}:10: pos" in out.stderr
    assert "gone: no such folder" in out.stderr  # every problem at once
    assert "Traceback" not in out.stderr


def test_many_bad_lines_are_counted(found: Any) -> None:
    assert "10 more bad lines" in found(["{"] * 30 + [ROW] * 8)["data.line"].reason


def test_missing_empty_and_misnamed_data(found: Any, tmp_path: Path) -> None:
    assert "data.missing" in found(train_data="nowhere.jsonl")
    assert "data.empty" in found(rows=[])
    (tmp_path / "data.txt").write_text((json.dumps(ROW) + "\n") * 8)
    assert "data.extension" in found(train_data="data.txt")


def test_a_folder_of_data_is_read_in_sorted_order(tmp_path: Path, models: Path, contracts: dict[str, Contract]) -> None:
    (tmp_path / "many").mkdir()
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / "many" / name).write_text((json.dumps(ROW) + "\n") * 4)
    made = make_plan(load_config(write(tmp_path, models, train_data="many")), CPU, contracts["base"])
    assert [f.path.name for f in made.data.files] == ["a.jsonl", "b.jsonl"]
    start = made.argv.index("--train_data") + 1
    assert [Path(p).name for p in made.argv[start : start + 2]] == ["a.jsonl", "b.jsonl"]


def test_too_few_negatives_warn(found: Any) -> None:
    problem = found([ROW] * 7 + [ROW | {"neg": ["n"]}])["data.few-negatives"]
    assert problem.severity == "warning" and "1 of 8 rows" in problem.reason


def test_scores_within_zero_and_one_warn(found: Any) -> None:
    scored = ROW | {"pos_scores": [0.9], "neg_scores": [0.1, 0.0]}
    assert found([scored] * 8)["data.scores-in-unit"].severity == "warning"
    assert found([scored | {"pos_scores": [5.5]}] * 8) == {}


def test_scores_on_some_rows_only(found: Any) -> None:
    rows = [ROW | {"pos_scores": [5.0], "neg_scores": [-1.0, -2.0]}] * 4 + [ROW] * 4
    assert found(rows)["distillation.partial"].severity == "warning"
    forced = found(rows, recipe="m3-unified", arguments={"knowledge_distillation": True})
    assert forced["distillation.no-scores"].severity == "error"


def test_prompts_on_some_rows_only_are_an_error(found: Any) -> None:
    assert found([ROW] * 4 + [ROW | {"prompt": "find: "}] * 4)["data.prompt-mixed"].severity == "error"
    assert found([ROW | {"prompt": "find: "}] * 8) == {}
    assert "data.prompt-wins" in found([ROW | {"prompt": "find: "}] * 8, query_instruction="query: ")


def test_fewer_rows_than_a_step_takes(found: Any) -> None:
    problem = found([ROW] * 7, hardware={"device": "cpu", "nproc_per_node": 2})["batch.zero-steps"]
    assert problem.severity == "error"
    assert "7 rows" in problem.reason and "takes 8" in problem.reason and "batch_size: 3" in problem.fix
    assert "batch.leftover" in found([ROW] * 7)


def test_fewer_rows_than_processes(found: Any) -> None:
    def fix(nproc: int, batch_size: int) -> str:
        problem = found([ROW] * 5, batch_size=batch_size, hardware={"device": "cpu", "nproc_per_node": nproc})
        return problem["batch.zero-steps"].fix if "batch.zero-steps" in problem else ""

    advised = "add rows: at least 8; or fewer processes: hardware.nproc_per_node: 5 or less, with batch_size: 1"
    assert fix(8, 4) == fix(8, 1) == advised
    assert fix(5, 1) == ""
    assert fix(2, 4) == "set batch_size: 2 or less, or add rows" and fix(2, 2) == ""


def test_same_dataset_within_batch(found: Any, tmp_path: Path) -> None:
    (tmp_path / "small_no_in_batch_neg.jsonl").write_text(json.dumps(ROW) + "\n")
    files = ["train.jsonl", "small_no_in_batch_neg.jsonl"]
    problems = found(train_data=files, arguments={"same_dataset_within_batch": True})
    assert {"data.small-file", "data.no-in-batch-neg"} <= set(problems)


def test_model_folder(found: Any, tmp_path: Path, models: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    problems = found(model=str(broken))
    assert {"model.config", "model.weights", "model.tokenizer", "pooling.assumed"} == set(problems)
    assert "Git LFS" in problems["model.weights"].reason


def test_lengths_beyond_what_the_model_was_made_for(found: Any, models: Path, tmp_path: Path) -> None:
    model = shutil.copytree(models / "bert", tmp_path / "short")
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    warned = found(model=str(model), passage_max_len=257)["model.length"]
    assert warned.severity == "warning" and "set passage_max_len: 256" in warned.fix
    assert found(model=str(model), passage_max_len=256) == {}
    assert found(model=str(model), passage_max_len=513)["model.length"].severity == "error"


def test_lengths_beyond_the_models_positions(found: Any, models: Path) -> None:
    assert found(passage_max_len=512) == {}
    assert found(passage_max_len=513)["model.length"].severity == "error"
    m3 = {"recipe": "m3-unified", "model": str(models / "m3")}
    assert found(passage_max_len=512, **m3) == {}  # 514 positions, two of them reserved
    assert "model.length" in found(passage_max_len=513, **m3)


def test_m3_needs_its_heads_and_no_mrl(found: Any) -> None:
    problems = found(recipe="m3-unified", arguments={"use_mrl": True})
    assert problems["model.heads"].severity == "warning"
    assert problems["model.mrl"].severity == "error"


def test_m3_in_half_precision_is_refused(found: Any, tmp_path: Path, models: Path) -> None:
    shutil.copytree(models / "m3", tmp_path / "half")
    config = json.loads((models / "m3" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    half = str(tmp_path / "half")
    assert found(model=half, recipe="m3-unified")["model.half"].severity == "error"
    assert "model.half" not in found(model=half)


def test_pooling_unlike_the_base_models_warns(found: Any) -> None:
    assert found(pooling="cls")["pooling.differs"].severity == "warning"


def test_more_processes_than_gpus(found: Any) -> None:
    two = Machine(gpus=2, bf16=True, cores=8)
    problem = found(machine=two, batch_size=1, hardware={"device": "cuda", "nproc_per_node": 4})["gpus.too-few"]
    assert "4 processes, but 2 visible GPUs" in problem.reason
    assert "gpus.too-few" in found(hardware={"device": "cuda"})
    eight = {"nproc_per_node": 8}
    assert "8 processes on the CPU" in found(batch_size=1, hardware=eight)["gpus.none"].reason
    assert "gpus.none" not in found(batch_size=1, hardware=eight | {"device": "cpu"})


def test_tf32_needs_an_ampere_gpu(found: Any) -> None:
    import torch
    from transformers import TrainingArguments

    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--tf32 requires Ampere"):
            TrainingArguments(output_dir="unused", use_cpu=True, tf32=True)
    tf32 = {"arguments": {"tf32": True}}
    assert found(**tf32)["gpus.tf32"].severity == "error"
    cuda = {"hardware": {"device": "cuda"}}
    assert "gpus.tf32" in found(machine=Machine(gpus=1, bf16=False, cores=8), **tf32, **cuda)
    assert "gpus.tf32" not in found(machine=Machine(gpus=1, bf16=True, cores=8), **tf32, **cuda)
    assert found(arguments={"tf32": False}) == {}


def test_two_precisions_or_one_that_the_gpus_have_not(found: Any) -> None:
    both = found(arguments={"fp16": True, "bf16": True})["argument.precision"]
    assert both.severity == "error" and both.fix

    def on(able: bool, **arguments: bool) -> dict[str, Problem]:
        gpus = {"nproc_per_node": 1, "gpu": {"memory": 16, "bf16": able}}
        problems: dict[str, Problem] = found(hardware=gpus, arguments=arguments)
        return problems

    assert "fp16" in on(False, bf16=True)["gpus.bf16"].fix
    assert on(True, bf16=True) == on(False, fp16=True) == on(False, bf16=False) == {}
    assert found(arguments={"bf16": True}) == {}  # a CPU takes it


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"evaluation_strategy": "steps"}, "eval_strategy"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"eval_on_start": True}, "eval_on_start"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy: best"),
    ],
)
def test_the_trainer_has_nothing_to_evaluate_on(found: Any, arguments: dict[str, Any], named: str) -> None:
    problem = found(arguments=arguments)["argument.evaluation"]
    assert problem.severity == "error" and f"arguments.{named}:" in problem.reason and "`dev:`" in problem.fix
    assert found(arguments={"eval_strategy": "no", "load_best_model_at_end": False}) == {}


def test_deepspeed_files(found: Any, tmp_path: Path) -> None:
    assert found(deepspeed="stage0") == {} and found(deepspeed="stage1") == {}
    assert "stage0, stage1" in found(deepspeed="stage9")["deepspeed.file"].fix
    (tmp_path / "ds.json").write_text("{,}")
    assert "deepspeed.json" in found(deepspeed="ds.json")
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}, "bf16": {"loss_scale": 0}}')
    problems = found(deepspeed="ds.json", recipe="m3-unified")
    assert {"deepspeed.zero3", "deepspeed.bf16"} <= set(problems)


def test_output_folder(found: Any, tmp_path: Path, models: Path) -> None:
    (tmp_path / "out" / "tuned").mkdir(parents=True)
    assert found() == {}
    (tmp_path / "out" / "tuned" / "precious").write_text("x")
    assert "--overwrite" in found()["output.not-empty"].fix
    assert "output.holds-input" in found(output=".")
    assert "output.holds-input" in found(output=str(models / "bert"))
    assert "output.file" in found(output="train.jsonl")
