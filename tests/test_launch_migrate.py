"""Migration of existing commands: what people paste from web pages must train the same, or be said not to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.errors import InputError
from launch.config import load_config
from launch.contract import Contract
from launch.migrate import migrate
from launch.migration import Change, Migration
from launch.plan import LaunchPlan, Machine, make_plan

M3 = "FlagEmbedding.finetune.embedder.encoder_only.m3"
BASE = "FlagEmbedding.finetune.embedder.encoder_only.base"
NEEDED = "--model_name_or_path m --train_data d.jsonl --output_dir out"
LEGACY = Path(__file__).resolve().parents[2] / "shared" / "legacy-commands"
# What a trainer on transformers 5 accepts, as far as these tests need it.
KNOWN = """
    model_name_or_path train_data output_dir cache_dir cache_path train_group_size query_max_len passage_max_len
    pad_to_multiple_of query_instruction_for_retrieval passage_instruction_for_retrieval query_instruction_format
    passage_instruction_format knowledge_distillation same_dataset_within_batch small_threshold drop_threshold
    negatives_cross_device temperature sentence_pooling_method normalize_embeddings kd_loss_type unified_finetuning
    use_self_distill fix_encoder self_distill_start_step learning_rate num_train_epochs per_device_train_batch_size
    gradient_accumulation_steps dataloader_drop_last warmup_steps weight_decay fp16 bf16 use_cpu ddp_backend seed
    gradient_checkpointing gradient_checkpointing_kwargs deepspeed logging_steps logging_strategy report_to
    save_strategy save_steps save_total_limit resume_from_checkpoint eval_strategy
"""
NAMES = frozenset(KNOWN.split())

# After a post about a bank's support desk: an old module, old names, backslashes, CRLF.
BANK = r"""torchrun --nproc_per_node 4 \
-m FlagEmbedding.baai_general_embedding.finetune.run \
--output_dir bge-base-zh-bank \
--model_name_or_path ./BAAI/bge-base-zh-v1.5 \
--train_data bank_train.jsonl \
--learning_rate 2e-5 \
--fp16 \
--num_train_epochs 3 \
--per_gpu_train_batch_size 16 \
--gradient_accumulation_steps 2 \
--dataloader_drop_last True \
--normlized True \
--temperature 0.01 \
--query_max_len 64 \
--passage_max_len 300 \
--train_group_size 5 \
--negatives_cross_device \
--query_instruction_for_retrieval "" \
--save_strategy epoch \
--save_total_limit 3
"""

# After a post about gear boxes: no backslashes, typographic dashes and quotes, remarks after values.
GEARS = """torchrun --nproc_per_node 2 /两张显卡
-m FlagEmbedding.finetune.embedder.encoder_only.m3 /统一微调
–model_name_or_path models/bge-m3 /基座模型
–train_data ./gears.jsonl ./more-gears.jsonl /训练数据
—cache_path ./cache /缓存
－－train_group_size 4 /一正三负
–query_max_len 128
–passage_max_len 1024 /不要超过8192
–overwrite_output_dir
–output_dir ./gears-m3
–learning_rate 1e-5（学习率）
–fp16 /半精度
–num_train_epochs 2
–per_device_train_batch_size 2
–dataloader_drop_last True
–warmup_ratio 0.1
–gradient_checkpointing /节省显存
–deepspeed …/ds_stage1.json
–weight_decay\u00a0−0.5
–unified_finetuning\u3000True
–use_self_distill True
–self_distill_start_step 0
–negatives_cross_device
–temperature\u200b 0.02
–query_instruction_for_retrieval “查齿轮：”
"""

# Arguments in variables, as in FlagEmbedding's own example scripts.
VARIABLES = r"""#!/bin/bash
export WANDB_MODE=disabled

data="\
    ./pairs \
    ./sts/train.jsonl "
epochs=4
gpus=2

model_args="\
    --model_name_or_path models/bge-m3 \
    --cache_dir /tmp/${CACHE_NAME:-hub} \
"
data_args="\
    --train_data $data \
    --query_max_len 512 \
    --passage_max_len=768 \
    --query_instruction_for_retrieval 'Represent this: ' \
    --no_such_thing 1 \
"
training_args="\
    --output_dir ./out \
    --num_train_epochs $epochs \
    --bf16 \
"

cmd="torchrun --nproc_per_node $gpus \
    -m FlagEmbedding.finetune.embedder.encoder_only.m3 \
    $model_args \
    $data_args \
    $training_args"
echo $cmd
eval $cmd
"""


def made(text: str, folder: Path = Path("/nowhere"), **more: Any) -> Migration:
    return migrate(text, folder=folder, **more)


def command(extra: str = "", *, start: str = "torchrun", module: str = BASE) -> str:
    return f"{start} -m {module} {NEEDED} {extra}"


def arguments(extra: str = "", **more: Any) -> dict[str, Any]:
    return made(command(extra, **more)).config["arguments"]


def lost(found: Migration) -> list[tuple[int, str]]:
    return list(found.not_understood)


def change(found: Migration, given: str) -> Change:
    (one,) = [c for c in found.changes if c.given == given]
    return one


def planned(found: Migration, folder: Path, machine: Machine) -> LaunchPlan:
    """The plan of the written launch.yaml, with the model and data that it names in place."""
    (folder / "launch.yaml").write_text(found.yaml(), encoding="utf-8")
    config = load_config(folder / "launch.yaml")
    config.model.mkdir(parents=True, exist_ok=True)
    (config.model / "config.json").write_text('{"model_type": "bert"}')
    row = {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [3.0], "neg_scores": [1.0]}
    for path in config.train_data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((json.dumps(row) + "\n") * 200)
    return make_plan(config, machine, Contract(NAMES))


# Whole commands


def test_an_old_command_with_backslashes(tmp_path: Path) -> None:
    found = made(BANK.replace("\n", "\r\n"), tmp_path, names=NAMES)
    assert found.recipe == "base"
    assert list(found.config.items())[:5] == [
        ("recipe", "base"),
        ("model", "./BAAI/bge-base-zh-v1.5"),
        ("train_data", "bank_train.jsonl"),
        ("output", "bge-base-zh-bank"),
        ("hardware", {"nproc_per_node": 4}),
    ]
    assert {
        k: found.config[k] for k in ("epochs", "learning_rate", "batch_size", "temperature", "query_instruction")
    } == {
        "epochs": 3,
        "learning_rate": 2e-5,
        "batch_size": 16,
        "temperature": 0.01,
        "query_instruction": "",
    }
    assert lost(found) == [] and found.remarks == ()
    assert change(found, "-m FlagEmbedding.baai_general_embedding.finetune.run").now == "recipe: base"
    assert change(found, "--fp16").now == "" and "fp16" not in found.config["arguments"]


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


def test_lost_backslashes_typographic_characters_and_remarks(tmp_path: Path) -> None:
    found = made(GEARS, tmp_path, names=NAMES)
    assert found.recipe == "m3-unified" and lost(found) == []
    assert found.config["train_data"] == ["./gears.jsonl", "./more-gears.jsonl"]
    assert found.config["hardware"] == {"nproc_per_node": 2}
    assert found.config["query_instruction"] == "查齿轮："
    assert found.config["train_group_size"] == 4 and found.config["learning_rate"] == 1e-5
    assert found.config["deepspeed"] == "stage1"
    assert found.config["arguments"]["weight_decay"] == -0.5
    assert found.config["arguments"]["gradient_checkpointing"] is True
    assert {"/两张显卡", "/训练数据", "/一正三负", "（学习率）", "/半精度"} <= set(found.remarks)
    assert len(found.remarks) == 10
    assert "hides a part of the path" in change(found, "--deepspeed …/ds_stage1.json").why
    assert any("do not end with a backslash" in note for note in found.notes)
    plan = planned(found, tmp_path, Machine(gpus=2, bf16=True, cores=8))
    assert plan.value("warmup_steps") == "0.1" and plan.on("unified_finetuning")
    assert not plan.on("knowledge_distillation")  # the data has scores, but the command did not use them


def test_arguments_in_variables() -> None:
    found = made(VARIABLES, names=NAMES)
    assert found.config["train_data"] == ["./pairs", "./sts/train.jsonl"]
    assert found.config["hardware"] == {"nproc_per_node": 2} and found.config["epochs"] == 4
    assert (found.config["query_max_len"], found.config["passage_max_len"]) == (512, 768)
    assert found.config["query_instruction"] == "Represent this: "
    assert found.config["arguments"]["cache_dir"] == "/tmp/hub" and found.config["arguments"]["bf16"] is True
    assert found.environment == {"WANDB_MODE": "disabled"}
    ((line, text),) = lost(found)
    assert line == VARIABLES[: VARIABLES.index("--no_such_thing")].count("\n") + 1
    assert "--no_such_thing 1" in text


def test_a_command_that_is_only_built_is_found_too() -> None:
    assert made(VARIABLES.replace("eval $cmd", "")).config == made(VARIABLES).config


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


# Writing


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


# Recipes and launchers


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


# Single arguments


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


def test_remarks_that_stick_to_a_word_and_other_habits_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = '--fp16/半精度 --seed 3/种子 --learning_rate 1e−5 /learning rate\n--cache_dir ~/c --logging_dir "$HOME/l"'
    found = made(command(text))
    assert (found.config["seed"], found.config["learning_rate"]) == (3, 1e-5)
    assert found.remarks == ("/半精度", "/种子", "/learning rate") and lost(found) == []
    assert found.config["arguments"]["cache_dir"] == "/home/me/c"
    assert found.config["arguments"]["logging_dir"] == "/home/me/l"


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


def test_quotes() -> None:
    def instruction(value: str) -> str:
        return made(command(f"--query_instruction_for_retrieval {value} --flag\n# it's a 'note' \"\n")).config[
            "query_instruction"
        ]

    assert instruction('"用“标准”语：  查"') == "用“标准”语：  查"
    assert instruction('"查询”') == "查询"
    assert instruction("‘查 询’") == "查 询"
    assert instruction("为这个句子 生成表示") == "为这个句子 生成表示"
    assert instruction("“”") == ""


# Scripts


def test_two_commands_and_the_rest_of_a_script() -> None:
    text = f"""# Don't forget the "GPU
cd examples
pip install FlagEmbedding && mkdir -p out
export CUDA_VISIBLE_DEVICES=3; LR=1e-4; MORE="--seed 7"
OMP_NUM_THREADS=4 torchrun -m {BASE} {NEEDED} --learning_rate ${{LR}} $MORE 2>&1 | tee log
if true; then torchrun -m {M3} {NEEDED}; fi
"""
    found = made(text)
    assert found.recipe == "base" and found.config["learning_rate"] == 1e-4 and found.config["seed"] == 7
    assert found.environment == {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "4"}
    assert [(line, text.split(" ")[0]) for line, text in lost(found) if line != 6] == [
        (2, "cd"),
        (3, "mkdir"),
        (3, "pip"),
        (5, "tee"),
    ]
    assert any(line == 6 and "another training command" in text for line, text in lost(found))
    assert "relative to that folder" in lost(found)[0][1]


def test_comments_within_the_command() -> None:
    text = f"""torchrun -m {BASE} \\ # 单卡
  --model_name_or_path m \\
  # --fp16 \\
  --train_data d.jsonl # 数据

  --output_dir out \\  \n  --seed 3
"""
    found = made(text)
    assert (found.config["output"], found.config["seed"]) == ("out", 3) and lost(found) == []
    assert found.remarks == ("单卡", "--fp16", "数据")


def test_an_array_of_arguments_and_an_appended_variable() -> None:
    text = f'ARGS=(\n  {NEEDED}\n  --seed 5 # 随机\n)\nMORE="--learning_rate 1e-4"\nMORE+=" --bf16"\n'
    found = made(text + f'torchrun -m {BASE} "${{ARGS[@]}}" $MORE')
    assert (found.config["model"], found.config["seed"], found.config["learning_rate"]) == ("m", 5, 1e-4)
    assert found.config["arguments"]["bf16"] is True


def test_a_page_with_prose_and_fences_and_a_windows_shell() -> None:
    text = f"Now it's time:\n\n```bash\n!torchrun -m {BASE} ^\n  {NEEDED} `\n  --seed 9\n```\nThat's all.\n"
    found = made(text)
    assert found.config["seed"] == 9 and [line for line, _ in lost(found)] == [1, 8]


def test_a_variable_that_names_itself_ends() -> None:
    assert made("A='$A $A'\n" + command("--flag $A --seed 3")).config["seed"] == 3


# Refusals


def test_no_training_command() -> None:
    with pytest.raises(InputError, match=r"no command that runs a FlagEmbedding trainer.*\n.*torchrun"):
        made("pip install FlagEmbedding\npython eval.py")
    with pytest.raises(InputError, match=r"FlagEmbedding\.finetune\.embedder\.decoder_only\.icl"):
        made(command(module="FlagEmbedding.finetune.embedder.decoder_only.icl"))
    with pytest.raises(InputError):
        made("")


def test_a_command_without_model_data_or_output() -> None:
    with pytest.raises(InputError, match=r"line 2: .*no --train_data and no --output_dir.*model_name_or_path"):
        made(f"\ntorchrun -m {BASE} --model_name_or_path m --output_dir")
