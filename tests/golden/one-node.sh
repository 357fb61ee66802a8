#!/usr/bin/env bash
# Afterwards, once: /opt/bge/bin/bge-launch finish '/data/焊接 项目/launch.yaml'
# shellcheck disable=SC2016 # a $ in single quotes is meant as it is
set -euo pipefail

export HF_HUB_OFFLINE=1
export TENSORBOARD_LOGGING_DIR='/data/焊接 项目/$run'
cd '/data/焊接 项目'

exec /opt/bge/bin/torchrun \
  --standalone \
  --nproc_per_node 8 \
  -m launch.worker m3-unified \
  --model_name_or_path /models/bge-m3 \
  --train_data '/data/焊接 项目/train.jsonl' /data/more.jsonl \
  --output_dir /data/out/tuned \
  --query_instruction_for_retrieval 'it'"'"'s a "query": $HOME $(id) $$ `id` \
第二行 {} ' \
  --passage_instruction_for_retrieval '' \
  --max_steps -1 \
  --gradient_checkpointing_kwargs '{"use_reentrant": false}' \
  --negatives_cross_device True
