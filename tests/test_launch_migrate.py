"""Migration of existing commands: what people paste from web pages must train the same, or be said not to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.errors import InputError
from launch.plan import Machine
from tests.old_commands import (
    BANK,
    BASE,
    GEARS,
    LEGACY,
    M3,
    NAMES,
    NEEDED,
    arguments,
    change,
    command,
    lost,
    made,
    planned,
)


def test_the_plan_passes_what_the_old_command_passed(tmp_path: Path) -> None:
    """On 4 GPUs, argument for argument; what the command left to the trainer stays the trainer's default."""
    plan = planned(made(BANK, tmp_path, names=NAMES), tmp_path, Machine(gpus=4, bf16=False, cores=8))
    assert [p for p in plan.problems if p.severity == "error"] == []
    expected = {
        "num_train_epochs": "3.0",
        "learning_rate": "2e-05",
        "per_device_train_batch_size": "16",
        "gradient_accumulation_steps": "2",
        "dataloader_drop_last": "True",
        "normalize_embeddings": "True",
        "temperature": "0.01",
        "query_max_len": "64",
        "passage_max_len": "300",
        "train_group_size": "5",
        "negatives_cross_device": "True",
        "query_instruction_for_retrieval": "",
        "sentence_pooling_method": "cls",
        "save_strategy": "epoch",
        "save_total_limit": "3",
        "warmup_steps": "0",
        "fp16": "True",
    }
    assert {name: plan.value(name) for name in expected} == expected
    assert plan.world_size == 4


@pytest.mark.parametrize("name", ["medical-large-zh.sh", "welding-m3.sh"])
def test_the_real_commands(name: str, tmp_path: Path) -> None:
    if not (LEGACY / name).is_file():
        pytest.skip("shared/legacy-commands is not part of a checkout")
    found = made((LEGACY / name).read_text(encoding="utf-8"), tmp_path, names=NAMES)
    assert lost(found) == []
    plan = planned(found, tmp_path, Machine(gpus=8, bf16=True, cores=8))
    assert [p for p in plan.problems if p.severity == "error"] == []
    if name.startswith("welding"):
        assert len(found.remarks) == 13 and found.config["deepspeed"] == "stage0"
        assert plan.value("passage_max_len") == "2048" and plan.on("knowledge_distillation")
    else:
        assert found.remarks == () and plan.world_size == 8
        assert plan.value("negatives_cross_device") == "False" and plan.value("gradient_accumulation_steps") == "32"


def test_yaml_is_what_config_says_and_tells_why(tmp_path: Path) -> None:
    found = made(GEARS + "--strange 1\n--query_max_len long\n", tmp_path, names=NAMES)
    text = found.yaml()
    assert yaml.safe_load(text) == found.config
    assert "# NOT UNDERSTOOD, line 26: --strange 1" in text and "line 27: --query_max_len long" in text
    lines = text.split("\n")
    assert lines[lines.index("deepspeed: stage1") - 1].startswith("# --deepspeed …/ds_stage1.json: ")
    assert "--overwrite_output_dir: left out." in text and "查齿轮：" in text
    assert max(map(len, lines)) <= 120


def test_explain_has_every_finding(tmp_path: Path) -> None:
    found = made("export A=1\n" + GEARS + "--strange 1\n", tmp_path, names=NAMES)
    text = found.explain()
    for piece in (
        "recipe: m3-unified",
        "--fp16 → left out",
        "/节省显存",
        "A=1",
        "line 27: --strange 1",
        "no such folder",
    ):
        assert piece in text
    assert "not understood" not in made(command(), tmp_path).explain()


@pytest.mark.parametrize(
    ("module", "recipe"),
    [
        ("FlagEmbedding.baai_general_embedding.finetune.run", "base"),
        (BASE, "base"),
        ("FlagEmbedding.BGE_M3.run", "m3-unified"),
        (M3, "m3-unified"),
        ("FlagEmbedding.reranker.run", "reranker"),
        ("FlagEmbedding.finetune.reranker.encoder_only.base", "reranker"),
    ],
)
def test_modules(module: str, recipe: str) -> None:
    assert made(command(module=module)).recipe == made(command(module=module)).config["recipe"] == recipe


@pytest.mark.parametrize(
    ("start", "hardware"),
    [
        ("torchrun", {"nproc_per_node": 1}),
        ("torchrun --nproc-per-node=8 --standalone", {"nproc_per_node": 8}),
        ("torchrun --nproc_per_node gpu", {"nproc_per_node": "auto"}),
        ("torchrun --nnodes 2 --nproc_per_node 8", {"nproc_per_node": 8, "nnodes": 2}),
        ("python3 -u -m torch.distributed.launch --nproc_per_node 3", {"nproc_per_node": 3}),
        ("/opt/conda/bin/python", {"nproc_per_node": 1}),
        ("torchrun --nproc_per_node $(nvidia-smi -L | wc -l)", {"nproc_per_node": "auto"}),
        ("deepspeed --num_gpus 4", {"nproc_per_node": 4}),
        ("deepspeed --include localhost:1,3", {"nproc_per_node": 2}),
        ("accelerate launch --num_machines 2 --num_processes 8", {"nproc_per_node": 4, "nnodes": 2}),
    ],
)
def test_launchers(start: str, hardware: dict[str, Any]) -> None:
    assert made(command(start=start)).config["hardware"] == hardware


def test_options_of_the_launcher_that_are_left_out_are_said() -> None:
    found = made(command(start="torchrun --nproc_per_node 2 --node_rank $RANK_9 --master_port 29501"))
    assert change(found, "--master_port 29501").now == ""
    assert "$RANK_9" in lost(found)[0][1]


def test_a_path_to_the_old_script() -> None:
    text = f"CUDA_VISIBLE_DEVICES=0,1 nohup python FlagEmbedding/FlagEmbedding/BGE_M3/run.py {NEEDED} > log 2>&1 &"
    found = made(text)
    assert found.recipe == "m3-unified" and found.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert lost(found) == []


def test_an_old_rerankers_length_is_shared_between_query_and_passage() -> None:
    found = made(command("--max_len 400", module="FlagEmbedding.reranker.run"))
    assert (found.config["query_max_len"], found.config["passage_max_len"]) == (100, 300)
    assert "max_len" not in found.config["arguments"]


def test_silence_is_kept() -> None:
    """What the command did not say is the trainer's default, not launch.yaml's or the recipe's."""
    found = made(command())
    silent = {k: found.config[k] for k in ("epochs", "learning_rate", "query_max_len", "passage_max_len", "pooling")}
    assert silent == {"epochs": 3, "learning_rate": 5e-5, "query_max_len": 32, "passage_max_len": 128, "pooling": "cls"}
    assert found.config["arguments"] == {"dataloader_drop_last": False, "warmup_steps": 0}
    assert "the recipe sets 0.1" in change(found, "no --warmup_steps").why
    assert arguments(module=M3)["unified_finetuning"] is False


def test_values_of_the_recipe_are_left_out_and_others_kept() -> None:
    same = arguments("--warmup_ratio 0.1 --normlized True --dataloader_drop_last true --logging_steps 5")
    assert same == {"logging_steps": 5}
    notes = made(command("--warmup_ratio 0.1 --normlized True --logging_steps 5")).notes
    said = "the recipe sets these itself, to the same value: --warmup_ratio 0.1, --normlized True"
    assert said in notes  # who looks for them in launch.yaml is told
    assert not [n for n in made(command("--logging_steps 5")).notes if "the recipe sets" in n]
    other = arguments("--warmup_ratio 0.2 --normlized False --dataloader_drop_last True")
    assert other == {"warmup_steps": 0.2, "normalize_embeddings": False}
    assert "negatives_cross_device" not in arguments("--negatives_cross_device", start="torchrun --nproc_per_node 2")
    assert arguments("--negatives_cross_device")["negatives_cross_device"] is True  # one process: the recipe does not


def test_old_names_follow_the_installed_trainer() -> None:
    new = made(command("--evaluation_strategy no --warmup_ratio 0.3 --no_cuda"), names=NAMES).config
    assert new["arguments"]["eval_strategy"] == "no" and new["arguments"]["warmup_steps"] == 0.3
    assert new["hardware"]["device"] == "cpu"
    old = NAMES - {"eval_strategy"} | {"evaluation_strategy", "warmup_ratio", "logging_dir"}
    kept = made(command("--evaluation_strategy no --warmup_ratio 0.3"), names=old).config["arguments"]
    assert kept["evaluation_strategy"] == "no" and kept["warmup_ratio"] == 0.3
    assert made(command(), names=old).config["arguments"]["warmup_ratio"] == 0


def test_logging_dir_stays_for_bge_launch_to_translate() -> None:
    found = made(command("--logging_dir ./logs --do_train --save_safetensors False"), names=NAMES)
    assert found.config["arguments"]["logging_dir"] == "./logs"
    assert change(found, "--do_train").now == change(found, "--save_safetensors False").now == ""


def test_an_unknown_argument_names_the_nearest() -> None:
    found = made(command("\\\n --gradient_acumulation_steps 4"), names=NAMES)
    assert lost(found)[0][0] == 2 and "gradient_accumulation_steps" in lost(found)[0][1]
    assert "gradient_acumulation_steps" not in found.config["arguments"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--fp16", {}),
        ("--fp16 False", {"fp16": False}),
        ("--bf16", {"bf16": True}),
        ("--fp16 True --bf16 False", {}),
        ("", {}),
    ],
)
def test_precision(given: str, kept: dict[str, bool]) -> None:
    found = made(command(given))
    assert {k: v for k, v in found.config["arguments"].items() if k in ("fp16", "bf16")} == kept
    assert any("neither fp16 nor bf16" in note for note in found.notes) == (given == "")


def test_saving_is_as_the_command_had_it() -> None:
    found = arguments("--save_steps 700")
    assert (found["save_strategy"], found["save_steps"], found["save_total_limit"]) == ("steps", 700, None)
    assert "save_total_limit" not in arguments("--save_strategy no")
    assert "save_strategy" not in arguments()


def test_values_keep_their_kind() -> None:
    found = arguments(
        """--run_name 007 --max_grad_norm 1e0 --report_to tensorboard wandb --x="a b" --y='{"k": 1}' --flag --z="" --n=-1"""
    )
    found = {k: v for k, v in found.items() if k not in ("dataloader_drop_last", "warmup_steps")}
    assert found == {
        "run_name": "007",
        "max_grad_norm": 1.0,
        "report_to": ["tensorboard", "wandb"],
        "x": "a b",
        "y": '{"k": 1}',
        "flag": True,
        "z": "",
        "n": -1,
    }


def test_a_file_of_your_own_for_deepspeed_is_kept(tmp_path: Path) -> None:
    (tmp_path / "ds_stage1.json").write_text("{}")
    assert made(command("--deepspeed ds_stage1.json"), tmp_path).config["deepspeed"] == "ds_stage1.json"
    found = made(command("--deepspeed …/mine.json"), tmp_path)
    assert "hides a part of the path" in lost(found)[0][1]


def test_paths(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "训练"):
        (tmp_path / name).touch()
    text = f"torchrun -m {BASE} --model_name_or_path /模型 --train_data *.jsonl 训练 数据集 --output_dir $OUT_9/x"
    found = made(text, tmp_path)
    assert found.config["train_data"] == ["a.jsonl", "b.jsonl", "训练"] and found.remarks == ("数据集",)
    assert found.config["model"] == "/模型" and any(
        note.startswith("model: /模型: no such folder") for note in found.notes
    )
    assert "$OUT_9/x" in lost(found)[0][1]


def test_a_command_without_model_data_or_output() -> None:
    with pytest.raises(
        InputError, match=r"line 2: .*no value for --output_dir.*no --train_data, only model_name_or_path"
    ):
        made(f"\ntorchrun -m {BASE} --model_name_or_path m --output_dir")
