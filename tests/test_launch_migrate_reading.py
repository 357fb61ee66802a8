"""Reading a pasted command: line ends, quotes, variables, remarks, and pages around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.errors import InputError
from launch.plan import Machine
from tests.old_commands import (
    BANK,
    BASE,
    GEARS,
    M3,
    NAMES,
    NEEDED,
    VARIABLES,
    change,
    command,
    lost,
    made,
    planned,
)


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


def test_remarks_that_stick_to_a_word_and_other_habits_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = '--fp16/半精度 --seed 3/种子 --learning_rate 1e−5 /learning rate\n--cache_dir ~/c --logging_dir "$HOME/l"'
    found = made(command(text))
    assert (found.config["seed"], found.config["learning_rate"]) == (3, 1e-5)
    assert found.remarks == ("/半精度", "/种子", "/learning rate") and lost(found) == []
    assert found.config["arguments"]["cache_dir"] == "/home/me/c"
    assert found.config["arguments"]["logging_dir"] == "/home/me/l"


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


README = """torchrun --nproc_per_node {number of gpus} \\
-m FlagEmbedding.BGE_M3.run --output_dir OUT --model_name_or_path m --train_data d \\
--per_device_train_batch_size {large batch size; set 1 for toy data} \\
--same_task_within_batch True \\
--seed 7
"""


def test_the_placeholders_and_the_old_names_of_the_m3_readme() -> None:
    found = made(README.replace("OUT", "out"), names=NAMES)
    assert found.config["seed"] == 7  # nothing is cut at the semicolon
    assert found.config["arguments"]["same_dataset_within_batch"] is True
    assert lost(found)[1] == (
        3,
        "--per_device_train_batch_size {large batch size; set 1 for toy data} (a placeholder, yours to fill in)",
    )
    assert [line for line, _ in lost(found)] == [1, 3]
    with pytest.raises(InputError, match=r"no value for --output_dir, only \{path to save; model\}\n  fix: write the"):
        made(README.replace("OUT", "{path to save; model}"), names=NAMES)
    with pytest.raises(InputError, match="gives no --output_dir, only model_name_or_path, train_data"):
        made(README.replace("--output_dir OUT", ""), names=NAMES)
    kept = made(command("--gradient_checkpointing_kwargs '{\"use_reentrant\": false}' --some_format {}{}"))
    assert lost(kept) == [] and kept.config["arguments"]["some_format"] == "{}{}"


def test_windows_paths_and_variables() -> None:
    text = f"""set OUT=D:\\out
D:\\py3\\python.exe -m torch.distributed.run -m {BASE} ^
  --model_name_or_path D:\\models\\bge ^
  --train_data "D:\\数据\\train.jsonl" --output_dir %OUT%\\bge --cache_dir %HUB%
"""
    found = made(text, names=NAMES)
    paths = ("D:\\models\\bge", "D:\\数据\\train.jsonl", "D:\\out\\bge")
    assert tuple(found.config[key] for key in ("model", "train_data", "output")) == paths
    assert sum("a Windows path; WSL has D: as /mnt/d" in note for note in found.notes) == 3
    ((line, said),) = lost(found)
    assert line == 4 and "says what %HUB% stands for" in said
    assert made(command("--seed \\\n 3 --cache_dir a\\ b")).config["arguments"]["cache_dir"] == "a b"


def test_a_variable_that_names_itself_ends() -> None:
    assert made("A='$A $A'\n" + command("--flag $A --seed 3")).config["seed"] == 3


def test_no_training_command() -> None:
    with pytest.raises(InputError, match=r"no command that runs a FlagEmbedding trainer.*\n.*torchrun"):
        made("pip install FlagEmbedding\npython eval.py")
    with pytest.raises(InputError, match=r"FlagEmbedding\.finetune\.embedder\.decoder_only\.icl"):
        made(command(module="FlagEmbedding.finetune.embedder.decoder_only.icl"))
    with pytest.raises(InputError):
        made("")
