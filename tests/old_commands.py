"""Training commands as people paste them from web pages, and what the tests of `bge-launch migrate` ask of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
