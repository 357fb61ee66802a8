"""ds_configs/ and files of the user's own: taken by the installed DeepSpeed, read as it reads them, and trained with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.checkpoints import newest
from launch.checks_deepspeed import deepspeed
from launch.config import load_config
from launch.contract import installed
from launch.deepspeed_schema import read, schema
from launch.plan import Machine, make_plan
from launch.signature import ENTRIES
from tests.test_launch_run import launch, weights, write

pytest.importorskip("deepspeed")
REPO = Path(__file__).resolve().parent.parent
FILES = sorted((REPO / "ds_configs").glob("*.json"), key=lambda f: f.stem)
TWO = {"device": "cpu", "nproc_per_node": 2}


@pytest.fixture
def found(tmp_path: Path, models: Path) -> Any:
    """id → reason and fix, of a plan with this DeepSpeed file."""

    def look(settings: object, **keys: object) -> dict[str, str]:
        (tmp_path / "ds.json").write_text(json.dumps(settings))
        config = load_config(write(tmp_path, models / "bert", deepspeed="ds.json", **keys))
        made = make_plan(config, Machine(gpus=0, bf16=False, cores=4), installed(config.recipe))
        return {p.id: f"{p.severity}: {p.reason}; {p.fix}" for p in deepspeed(made)}

    return look


def test_every_file_is_described_and_named_by_its_stage() -> None:
    assert [f.stem for f in FILES] == ["stage0", "stage1", "stage2", "stage2-offload", "stage3"]
    readme = (REPO / "ds_configs" / "README.md").read_text("utf-8")
    for file in FILES:
        assert f"`{file.stem}`" in readme
        assert json.loads(file.read_text())["zero_optimization"]["stage"] == int(file.stem[5])


@pytest.mark.parametrize("path", FILES, ids=lambda f: f.stem)
@pytest.mark.parametrize("precision", ["bf16", "fp16", None])
def test_shipped_files_are_taken_by_the_installed_deepspeed(path: Path, precision: str | None) -> None:
    """Filled in as the trainer fills them in, then parsed by DeepSpeed itself."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    filled = HfTrainerDeepSpeedConfig(str(path))
    args = TrainingArguments(output_dir="unused", use_cpu=True, per_device_train_batch_size=4)
    if precision:
        setattr(args, precision, True)
    filled.trainer_config_process(args)
    filled.trainer_config_finalize(args, None, 10)
    assert "auto" not in json.dumps(filled.config)
    parsed = DeepSpeedConfig(filled.config)
    assert parsed.zero_optimization_stage == int(path.stem[5])
    assert parsed.bfloat16_config.enabled == (precision == "bf16")
    assert parsed.float16_config.enabled == (precision == "fp16")
    assert parsed.optimizer_params["torch_adam"] is True


def test_the_schema_is_what_deepspeed_itself_says() -> None:
    """Read from its source, compared with its classes."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    read_here = schema()
    assert read_here is not None
    for name, model in (("bf16", DeepSpeedBF16Config), ("zero_optimization", DeepSpeedZeroConfig)):
        fields = model.model_fields
        assert read_here.sections[name] == set(fields) | {f.alias for f in fields.values() if f.alias}
    shipped = {key for file in FILES for key in json.loads(file.read_text())}
    assert shipped <= read_here.top
    assert {"activation_checkpointing", "scheduler", "communication_data_type"} <= read_here.top
    assert "amp" in read_here.removed


def test_a_source_that_says_nothing_is_no_schema(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "config.py").write_text("class Other: ...\n")
    assert read(tmp_path) is None


def test_the_check_imports_neither_torch_nor_deepspeed() -> None:
    code = "import sys, launch.preflight, launch.deepspeed_schema as s; s.schema(); "
    code += "print([m for m in ('torch', 'transformers', 'deepspeed', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_shipped_files_have_no_problem(found: Any, file: Path) -> None:
    problems = found(json.loads(file.read_text()))
    assert problems == {}


def test_what_a_killed_build_left_is_named_before_deepspeed_waits_for_it(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lock = tmp_path / "torch_extensions" / "py311_cu128" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    said = found({})["deepspeed.lock"]
    assert said.startswith("warning") and f"rm {lock}" in said
    hour_ago = time.time() - 3600
    os.utime(lock, (hour_ago, hour_ago))
    assert found({})["deepspeed.lock"].startswith("error")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "other"))
    assert found({}) == {}


def test_an_unknown_key_is_named_with_the_nearest(found: Any) -> None:
    problems = found({"zero_optimization": {"stage": 1, "overlap_com": True}})
    assert problems["deepspeed.key"].startswith("error") and "'overlap_comm'" in problems["deepspeed.key"]
    assert "deepspeed.key" in found({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}})
    problems = found({"zero_optimisation": {"stage": 1}})  # DeepSpeed never looks at it: stage 0 without a word
    assert problems == {"deepspeed.ignored": problems["deepspeed.ignored"]}
    assert "'zero_optimization'" in problems["deepspeed.ignored"] and "warning" in problems["deepspeed.ignored"]


def test_a_key_that_is_gone_is_an_error(found: Any) -> None:
    assert "amp is gone" in found({"amp": {"enabled": False}})["deepspeed.key"]
    assert "mics_shard_size is gone" in found({"zero_optimization": {"mics_shard_size": 2}})["deepspeed.key"]


def test_loss_scaling_in_bf16_and_a_stage_that_is_none(found: Any) -> None:
    problems = found({"bf16": {"enabled": "auto", "loss_scale": 0}, "zero_optimization": {"stage": 4}})
    assert set(problems) == {"deepspeed.bf16", "deepspeed.stage"}
    assert set(found([])) == {"deepspeed.json"}


def test_values_that_contradict_the_plan(found: Any) -> None:
    same = {"train_micro_batch_size_per_gpu": 4, "fp16": {"enabled": False}}
    assert found(same) == {}
    assert '"auto"' in found({"train_micro_batch_size_per_gpu": 3})["deepspeed.mismatch"]
    assert "the plan is fp32" in found({"fp16": {"enabled": True}})["deepspeed.mismatch"]
    assert found({"gradient_accumulation_steps": 4}, arguments={"gradient_accumulation_steps": 4}) == {}


CONTRADICTIONS: list[tuple[str, object, object]] = [  # a value that the trainer takes, and one that it does not
    ("train_batch_size", 8, 4),
    ("gradient_clipping", 1.0, 0.5),
    ("optimizer.params.lr", 1e-4, 5e-5),
    ("optimizer.params.betas", [0.9, 0.999], [0.8, 0.999]),
    ("optimizer.params.eps", 1e-8, 1e-6),
    ("optimizer.params.weight_decay", 0.01, 0.0),
    ("scheduler.params.warmup_max_lr", 1e-4, 1e-3),
    ("scheduler.params.warmup_num_steps", 1, 100),
    ("scheduler.params.total_num_steps", 2, 1000),
]


@pytest.mark.parametrize(("key", "same", "other"), CONTRADICTIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_the_trainer_stops_at_is_found_before(
    found: Any, tmp_path: Path, key: str, same: object, other: object
) -> None:
    from transformers import HfArgumentParser, TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    def trainer_takes(value: object) -> bool:
        plan = make_plan(load_config(tmp_path / "launch.yaml"), Machine(gpus=0, bf16=False, cores=4), installed("base"))
        words = [w for a in plan.arguments if a.name != "deepspeed" for w in (f"--{a.name}", *a.words)]
        args, _ = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words, return_remaining_strings=True)
        filled = HfTrainerDeepSpeedConfig(nested(value))
        filled.trainer_config_process(args)
        try:
            filled.trainer_config_finalize(args, None, plan.batch.updates)
        except ValueError as e:
            assert "Please correct the following DeepSpeed config values" in str(e)
            return False
        return True

    def nested(value: object) -> dict[str, Any]:
        for part in reversed(key.split(".")):
            value = {part: value}
        assert isinstance(value, dict)
        return {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}} | value

    keys = {"arguments": {"gradient_accumulation_steps": 2, "weight_decay": 0.01}}
    for value, good in ((same, True), ("auto", True), (other, False)):
        problems = found(nested(value), **keys)
        assert ("deepspeed.mismatch" not in problems) == good == trainer_takes(value), value
    assert f"{key} is {other}" in problems["deepspeed.mismatch"]


@pytest.mark.slow
def test_two_ranks_train_base_with_stage2_and_its_optimizer_in_memory(tmp_path: Path, models: Path) -> None:
    code, out, err = launch("run", write(tmp_path, models / "bert", hardware=TWO, deepspeed="stage2-offload"))
    assert code == 0, err
    assert "2/2" in out
    before, after = weights(models / "bert"), weights(tmp_path / "out" / "tuned")
    name = "encoder.layer.0.output.dense.weight"
    assert 1e-5 < float((after[name] - before[name]).abs().max()) < 1e-2


BLOG = """torchrun --nproc_per_node 2 \\
  -m FlagEmbedding.finetune.embedder.encoder_only.m3 \\
  --model_name_or_path m3 --train_data train.jsonl --output_dir out/tuned --overwrite_output_dir \\
  --train_group_size 3 --query_max_len 16 --passage_max_len 24 --per_device_train_batch_size 4 /每卡批次 \\
  --learning_rate 1e-4 --fp16 --num_train_epochs 1 --warmup_ratio 0.1 --dataloader_drop_last True \\
  --knowledge_distillation True --kd_loss_type m3_kd_loss --unified_finetuning True --use_self_distill True \\
  --self_distill_start_step 0 --negatives_cross_device --gradient_checkpointing --deepspeed …/ds_stage1.json \\
  –normalize_embeddings True –query_instruction_for_retrieval “”
"""


@pytest.mark.slow
def test_a_blogs_command_for_m3_with_everything_is_migrated_checked_and_run(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-1, checkpointing, distillation from scores and cross-device negatives at once, on two ranks."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write(tmp_path, models / "m3").unlink()
    (tmp_path / "old.sh").write_text(BLOG, "utf-8")
    (tmp_path / "m3").symlink_to(models / "m3")
    config = tmp_path / "launch.yaml"
    for words in (("migrate", tmp_path / "old.sh", "--out", config), ("check", config), ("run", config)):
        code, out, err = launch(*words)
        assert code == 0 and "NOT UNDERSTOOD" not in err, err
    tuned = tmp_path / "out" / "tuned"
    argv = json.loads((tuned / "launch.json").read_text())["argv"]
    for name in ("knowledge_distillation", "negatives_cross_device", "gradient_checkpointing"):
        assert argv[argv.index(f"--{name}") + 1] == "True"
    assert argv[argv.index("--deepspeed") + 1].endswith("ds_configs/stage1.json")
    assert "2/2" in out
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        before, after = (torch.load(f / name, weights_only=True)["weight"] for f in (models / "m3", tuned))
        assert not torch.equal(before, after), name


def zero3(folder: Path) -> str:
    """stage3 with nothing kept whole: tensors of a tiny model are all below the usual threshold."""
    settings = json.loads((REPO / "ds_configs" / "stage3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "ds.json").write_text(json.dumps(settings))
    return "ds.json"


@pytest.mark.slow
def test_zero3_leaves_empty_tensors_in_what_flagembedding_saves(tmp_path: Path, models: Path) -> None:
    """Without us: the run ends well. (Tensors below the threshold stay whole under ZeRO-3.)"""
    config = load_config(write(tmp_path, models / "bert", hardware=TWO, deepspeed=zero3(tmp_path)))
    argv = list(make_plan(config, Machine(gpus=0, bf16=False, cores=2), installed("base")).argv)
    start = argv.index("launch.worker")
    argv[argv.index("--model_name_or_path") + 1] = str(models / "bert")
    words = [*argv[:start], ENTRIES["base"], *argv[start + 2 :]]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240)
    assert "'train_loss'" in done.stdout, done.stderr[-3000:]  # its exit code is gloo's at times: see worker.leave_well
    name = "encoder.layer.0.output.dense.weight"
    assert weights(tmp_path / "out" / "tuned")[name].numel() == 0 < weights(models / "bert")[name].numel()


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "model"), [("base", "bert"), ("reranker", "reranker")])
def test_zero3_saves_every_weight_whole_and_by_its_name(
    tmp_path: Path, models: Path, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    killed = tmp_path / "extensions" / "deepspeed_shm_comm"  # a build that DeepSpeed would wait for, and we need not
    killed.mkdir(parents=True)
    (killed / "lock").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(killed.parent))
    each = {"save_strategy": "steps", "save_steps": 1}
    config = write(tmp_path, models / model, recipe=recipe, hardware=TWO, deepspeed=zero3(tmp_path), arguments=each)
    code, _, err = launch("run", config)
    assert code == 0, err
    before, after = weights(models / model), weights(tmp_path / "out" / "tuned")
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert any(k.endswith("encoder.layer.0.output.dense.weight") for k in moved)
    tuned = tmp_path / "out" / "tuned"
    assert newest(tuned, 2, 3) == (tuned / "checkpoint-2", [])
    next(tuned.glob("checkpoint-2/*/zero_pp_rank_1_mp_rank_00_model_states.pt")).write_bytes(b"")  # its last moments
    found, torn = newest(tuned, 2, 3)
    assert found == tuned / "checkpoint-1" and "zero_pp_rank_1_mp_rank_00_model_states.pt" in torn[0]
