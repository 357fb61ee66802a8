"""The plan: what it counts, which arguments it chooses, and that what is shown is what would run."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.records import InputError
from launch.batch import batch_facts
from launch.cli import app
from launch.config import load_config
from launch.contract import Contract, installed, translate
from launch.data import DataFacts, FileFacts
from launch.plan import LaunchPlan, Machine, command, detect, make_plan

CPU = Machine(gpus=0, bf16=False, cores=4)
GPUS = Machine(gpus=8, bf16=True, cores=64)
HERE = Path(__file__).resolve().parent.parent


def data(*rows: int) -> DataFacts:
    return DataFacts(files=tuple(FileFacts(path=Path(f"{i}.jsonl"), rows=n) for i, n in enumerate(rows)))


@pytest.fixture(scope="module")
def base() -> Contract:
    return installed("base")


@pytest.fixture(scope="module")
def m3() -> Contract:
    return installed("m3-unified")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is only a config.json, and ten rows without scores: enough to plan with."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert", "hidden_dropout_prob": 0.1}')
    row = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(10)))
    return tmp_path


def plan(folder: Path, contract: Contract, machine: Machine = CPU, **keys: object) -> LaunchPlan:
    settings = {"model": "model", "train_data": "train.jsonl", "output": "out/tuned", "batch_size": 4, **keys}
    (folder / "launch.yaml").write_text(json.dumps(settings))
    return make_plan(load_config(folder / "launch.yaml"), machine, contract)


def ids(made: LaunchPlan) -> list[str]:
    return [p.id for p in made.problems if p.severity == "error"]


# Counting


def test_steps_are_whole_batches_of_every_process() -> None:
    facts = batch_facts(
        data(103), batch_size=8, group_size=3, world_size=2, epochs=2, drop_last=True, cross_device=True
    )
    assert (facts.queries_per_step, facts.steps_per_epoch, facts.updates, facts.dropped) == (16, 6, 12, 7)
    assert (facts.hard_negatives, facts.in_batch_negatives, facts.local_negatives) == (2, 45, 21)


def test_accumulation_makes_fewer_updates_and_no_more_negatives() -> None:
    common = dict(batch_size=4, group_size=2, world_size=1, epochs=1, drop_last=True, cross_device=False)
    one, four = batch_facts(data(40), **common), batch_facts(data(40), **common, accumulation=4)
    assert (one.updates, four.updates) == (10, 3)
    assert one.in_batch_negatives == four.in_batch_negatives == 6


def test_same_dataset_floors_each_file() -> None:
    common = dict(batch_size=8, group_size=2, world_size=1, epochs=1, drop_last=True, cross_device=False)
    assert batch_facts(data(7, 7, 9), **common).steps_per_epoch == 2
    facts = batch_facts(data(7, 7, 9), **common, same_dataset=True)
    assert (facts.steps_per_epoch, facts.dropped) == (1, 15)


def test_without_drop_last_every_row_is_used() -> None:
    common = dict(batch_size=8, group_size=2, world_size=2, epochs=1, drop_last=False, cross_device=False)
    facts = batch_facts(data(17), **common)
    assert (facts.steps_per_epoch, facts.dropped) == (2, 0)


# Arguments


def test_bash_makes_the_argv_and_environment_of_the_shown_command(folder: Path, base: Contract) -> None:
    made = plan(folder, base, query_instruction='it\'s a "query": $HOME\n', passage_instruction="", deepspeed="stage0")
    python = folder / "my env" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    spy = (str(python), "-c", "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))")
    text = command(made.model_copy(update={"argv": (*spy, *made.argv)}))
    out = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True, env={})
    argv, env = json.loads(out.stdout)
    assert tuple(argv) == made.argv
    assert made.env.items() <= env.items()


def test_empty_instruction_is_still_passed(folder: Path, base: Contract) -> None:
    argv = plan(folder, base).argv
    assert argv[argv.index("--query_instruction_for_retrieval") + 1] == ""


def test_recipes_are_accepted_by_the_installed_parser(folder: Path, base: Contract, m3: Contract) -> None:
    for machine in (CPU, GPUS):
        for contract, recipe in ((base, "base"), (m3, "m3-unified")):
            made = plan(folder, contract, machine, recipe=recipe, batch_size=1, deepspeed="stage0")
            assert ids(made) == []
            assert all(a.reason for a in made.arguments)


def test_cpu_plan(folder: Path, base: Contract) -> None:
    made = plan(folder, base, hardware={"nproc_per_node": 2})
    assert made.on("use_cpu") and made.value("ddp_backend") == "gloo"
    assert made.env["OMP_NUM_THREADS"] == "2"
    assert made.env["MALLOC_MMAP_MAX_"] == "0"  # or the allocator takes a quarter of each step
    assert made.value("bf16") is None and made.value("fp16") is None
    assert made.value("model_name_or_path") == str(made.prepared)


def test_gpu_plan(folder: Path, m3: Contract) -> None:
    made = plan(folder, m3, GPUS, recipe="m3-unified", batch_size=1)
    assert made.argv[made.argv.index("--nproc_per_node") + 1] == "8"
    assert made.on("bf16") and made.on("gradient_checkpointing") and made.on("negatives_cross_device")
    assert made.value("use_cpu") is None and made.prepared is None
    old = plan(folder, m3, Machine(gpus=1, bf16=False, cores=8), recipe="m3-unified")
    assert old.on("fp16") and old.value("bf16") is None and old.value("negatives_cross_device") is None


def test_user_precision_replaces_the_recipes(folder: Path, base: Contract) -> None:
    made = plan(folder, base, GPUS, arguments={"fp16": True})
    assert made.on("fp16") and made.value("bf16") is None


def test_distillation_only_when_every_row_has_scores(folder: Path, m3: Contract) -> None:
    assert not plan(folder, m3, recipe="m3-unified").on("knowledge_distillation")
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [4.0], "neg_scores": [-3.0]}
    (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 8)
    made = plan(folder, m3, recipe="m3-unified")
    assert made.on("knowledge_distillation") and made.value("kd_loss_type") == "m3_kd_loss"


def test_long_runs_keep_checkpoints_short_ones_only_the_model(folder: Path, base: Contract) -> None:
    assert plan(folder, base).value("save_strategy") == "no"
    long = plan(folder, base, epochs=600)
    assert (long.batch.updates, long.value("save_strategy"), long.value("save_total_limit")) == (1200, "steps", "2")


def test_unknown_arguments_are_all_named_with_the_nearest(folder: Path, base: Contract) -> None:
    made = plan(folder, base, arguments={"weight_decy": 0.1, "max_grad_nrm": 1})
    found = {p.reason.split(":")[0]: p.fix for p in made.problems if p.id == "argument.unknown"}
    assert "'weight_decay'" in found["arguments.weight_decy"]
    assert "'max_grad_norm'" in found["arguments.max_grad_nrm"]


def test_wrong_value_is_found_by_the_trainers_own_parser(folder: Path, base: Contract) -> None:
    made = plan(folder, base, arguments={"weight_decay": "a lot"})
    assert ids(made) == ["argument.value"]
    assert "weight_decay" in made.problems[0].reason


def test_arguments_with_a_key_of_their_own_are_refused(folder: Path, base: Contract) -> None:
    made = plan(folder, base, arguments={"learning_rate": 1e-3, "resume_from_checkpoint": "x"})
    assert ids(made) == ["argument.owned", "argument.refused"]
    assert made.value("learning_rate") == "1e-05"


def test_null_leaves_a_recipes_argument_out(folder: Path, base: Contract) -> None:
    assert plan(folder, base, arguments={"report_to": None}).value("report_to") is None


OLD = {"warmup_steps", "warmup_ratio", "logging_dir"}  # transformers 4


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        ({"warmup_steps"}, {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),  # transformers 5
        ({"warmup_steps", "warmup_ratio"}, {"warmup_steps": 0.1}, {"warmup_steps": 0.1}),  # 5, sentence-transformers
        (OLD, {"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        (OLD, {"warmup_steps": 100}, {"warmup_steps": 100}),
        (OLD, {"warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ({"eval_strategy"}, {"evaluation_strategy": "no"}, {"eval_strategy": "no"}),
        ({"normalize_embeddings"}, {"normlized": True}, {"normalize_embeddings": True}),
        ({"weight_decay"}, {"--weight-decay": 0.1}, {"weight_decay": 0.1}),
        ({"save_safetensors", "overwrite_output_dir"}, {"save_safetensors": True, "overwrite_output_dir": True}, {}),
    ],
)
def test_translation(names: set[str], given: dict[str, object], expected: dict[str, object]) -> None:
    found = translate(given, frozenset(names))
    assert found.arguments == expected
    assert not found.problems
    moved = {k.lstrip("-").replace("-", "_") for k in given} - set(expected)
    assert all(any(name in note.replace("-", "_") for note in found.notes) for name in moved)


def test_logging_dir_becomes_an_environment_variable(folder: Path, base: Contract) -> None:
    if "logging_dir" in base.names:
        pytest.skip("this transformers still has logging_dir")
    assert plan(folder, base, arguments={"logging_dir": "curves"}).env["TENSORBOARD_LOGGING_DIR"] == "curves"


# launch.yaml


def test_paths_are_relative_to_the_yaml(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGE_TEST_OUT", "elsewhere")
    (folder / "sub").mkdir()
    text = "model: ../model\ntrain_data: [../train.jsonl, ~/b.jsonl]\noutput: $BGE_TEST_OUT/x\nlearning_rate: 2e-5\n"
    (folder / "sub" / "l.yaml").write_text(text)
    config = load_config(folder / "sub" / "l.yaml")
    assert config.model == folder / "model"
    assert config.train_data == (folder / "train.jsonl", Path.home() / "b.jsonl")
    assert config.output == folder / "sub" / "elsewhere" / "x"
    assert config.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\ntrain_data: t\noutput: o\nlerning_rate: 1\n", "did you mean 'learning_rate'"),
        ("model: m\ntrain_data: t\noutput: $NO_SUCH_VARIABLE/o\n", "variable"),
        ("model: m\ntrain_data: t\noutput: o\nbatch_size: 0\n", "batch_size"),
        ("model: m\ntrain_data: []\noutput: o\n", "train_data"),
        ("model: m\noutput: o\n", "train_data"),
        ("recipe: [", "not valid YAML"),
        ("- a\n", "expected keys and values"),
    ],
)
def test_bad_yaml_is_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "l.yaml").write_text(text)
    with pytest.raises(InputError, match=r"l\.yaml") as caught:
        load_config(tmp_path / "l.yaml")
    assert message in str(caught.value)


# The command line


def test_show_prints_one_command_and_plan_gives_every_reason(folder: Path, base: Contract) -> None:
    made = plan(folder, base, detect(), hardware={"device": "cpu"})
    shown = CliRunner().invoke(app, ["show", str(folder / "launch.yaml")])
    assert shown.exit_code == 0
    words = shlex.split(shown.stdout.replace("\\\n", ""))
    assert words == [f"{k}={v}" for k, v in made.env.items()] + list(made.argv)
    facts = CliRunner().invoke(app, ["plan", str(folder / "launch.yaml")])
    assert facts.exit_code == 0
    assert all(a.name in facts.stdout and a.reason in facts.stdout for a in made.arguments)
    assert "7 hard + 24 in batch" in facts.stdout


def test_show_refuses_arguments_that_the_trainer_lacks(folder: Path, base: Contract) -> None:
    plan(folder, base, arguments={"weight_decy": 0.1})
    shown = CliRunner().invoke(app, ["show", str(folder / "launch.yaml")])
    assert shown.exit_code == 2
    assert shown.stdout == "" and "'weight_decay'" in shown.stderr


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, launch.cli; print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE)
    assert out.stdout.strip() == "[]"
