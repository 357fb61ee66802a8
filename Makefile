# make demo    everything, from nothing, on a small corpus: train data, a tuned model, the proof
# make test    the tests (fetches three small models first)
# make setup   only the environment, .venv
PYTHON ?= python3
MODELS := $(or $(BGE_FACTORY_MODELS),$(HOME)/.cache/bge-factory/models)
BIN := .venv/bin/
STAMP := .venv/installed
# No byte code is compiled: that took half of the time, and most of it is never imported
PIP := $(BIN)python -m pip --disable-pip-version-check install --quiet --no-compile \
  --prefer-binary --constraint constraints.txt
# The test models' names, also used by .ci/run
TEST_MODELS := smollm2-135m e5-small minilm-en
export HF_HUB_OFFLINE := 1
# Where it is set (containers do that), each process compiles torch and transformers anew: 20 s instead of 7
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-models test-vllm setup lint clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n 's/^# make/make/p' Makefile

demo: setup
	$(BIN)python -m factory.demo_models
	$(BIN)bge-factory build samples/welding-zh/factory.yaml --out runs/welding-zh
	$(BIN)bge-factory validate runs/welding-zh/train.jsonl
	$(BIN)bge-launch run samples/welding-zh/launch.yaml --overwrite
	$(BIN)bge-factory evaluate runs/welding-zh/eval --model base=$(MODELS)/e5-small --model tuned=runs/welding-zh/tuned

test: test-models
	$(BIN)python -m pytest

test-models: setup
	@$(BIN)python -m factory.demo_models $(TEST_MODELS)

# make test-vllm   the tests against a real vLLM on the CPU, in an environment of its own (3.5 GB)
test-vllm: setup
	bash tests/vllm_environment.sh

setup: $(STAMP)

# torch first: its wheel decides what the others may be, and its failure is the one worth seeing early
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit( \
	  f"bge-factory needs Python 3.11 or newer, and $(PYTHON) is {v}: make setup PYTHON=/path/to/python3.12")'
	@test -x $(BIN)python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into .venv: some minutes, once"
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[llamacpp,deepspeed,dev]'
	@touch $(STAMP)

# make lint    ruff and mypy
lint: setup
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

# make clean   what the tools wrote; the models in ~/.cache stay
clean:
	rm -rf .venv .vllm-venv runs dist .pytest_cache .mypy_cache .ruff_cache
	find factory launch tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
