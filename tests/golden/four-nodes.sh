#!/usr/bin/env bash
# Start this on each of the 4 nodes, all within 10 minutes, with the name or address of one of them:
#   bash welding-m3.sh HEAD    or    BGE_LAUNCH_HEAD=HEAD bash welding-m3.sh
# No node needs a number of its own: the rendezvous on HEAD gives them out.
# Afterwards, once: bge-launch finish '/data/焊接 项目/launch.yaml'
# shellcheck disable=SC2016 # a $ in single quotes is meant as it is
set -euo pipefail

head=${1:-${BGE_LAUNCH_HEAD:-}}
if [[ -z $head ]]; then
  echo "$0: give the name or address of the node that all of them meet at: bash $0 HEAD" >&2
  exit 2
fi

set +u # activation scripts read variables that are not set
# shellcheck source=/dev/null
source /opt/bge/bin/activate
set -u

export HF_HUB_OFFLINE=1
export TENSORBOARD_LOGGING_DIR='/data/焊接 项目/$run'
cd '/data/焊接 项目'

exec torchrun \
  --nnodes 4 \
  --nproc_per_node 8 \
  --rdzv_backend c10d \
  --rdzv_id welding-m3 \
  --rdzv_endpoint "$head:29500" \
  --rdzv_conf read_timeout=600 \
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
