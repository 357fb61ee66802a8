"""Which GPUs a plan is for: those that nvidia-smi and CUDA_VISIBLE_DEVICES tell, or those that launch.yaml describes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.machine import Machine, detect

ROOT = Path(__file__).parents[1]
A, B, C = "GPU-11112222-aaaa", "GPU-11113333-bbbb", "GPU-44445555-cccc"
WHOLE = f"{A}, 81559, 9.0, Disabled\n{B}, 40536, 8.0, Disabled\n{C}, 16384, 7.5, Disabled\n"
PARTED = f"{A}, 81559, 8.0, Enabled\n{B}, 81559, 8.0, Disabled\n"
LISTED = f"""GPU 0: NVIDIA A100-SXM4-80GB (UUID: {A})
  MIG 3g.40gb     Device  0: (UUID: MIG-1-a)
  MIG 1c.2g.20gb  Device  1: (UUID: MIG-2-b)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: {B})
"""


def smi(folder: Path, rows: str, listed: str = "", code: int = 0) -> dict[str, str]:
    """An environment with an nvidia-smi that prints this."""
    (folder / "rows").write_text(rows)
    (folder / "listed").write_text(listed)
    stub = folder / "nvidia-smi"
    stub.write_text(
        f'#!/bin/sh\nif [ "$1" = -L ]; then cat "{folder}/listed"; else cat "{folder}/rows"; fi\nexit {code}\n'
    )
    stub.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


# What is here


@pytest.mark.parametrize(
    ("visible", "gpus", "memory", "bf16"),
    [
        (None, 3, 16.0, False),
        ("", 0, None, False),
        (" ", 0, None, False),
        ("-1", 0, None, False),
        ("NoDevFiles", 0, None, False),
        ("0", 1, 79.6, True),
        ("1,0", 2, 39.6, True),
        ("0, 1 ,2", 3, 16.0, False),
        ("0,7,1", 1, 79.6, True),  # what comes after a GPU that is not there is ignored
        ("0,-1,1", 1, 79.6, True),
        ("0,0", 0, None, False),  # CUDA shows none then
        (f"{A},{B}", 2, 39.6, True),
        ("GPU-4444", 1, 16.0, False),
        ("GPU-1111", 0, None, False),  # the beginning of two
        ("MIG-1-a", 0, None, False),
    ],
)
def test_gpus_are_those_that_cuda_shows(
    tmp_path: Path, visible: str | None, gpus: int, memory: float | None, bf16: bool
) -> None:
    environment = smi(tmp_path, WHOLE) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    found = detect(environment)
    assert (found.gpus, found.memory, found.bf16) == (gpus, memory, bf16)
    assert found.cores >= 1 and not found.elsewhere


@pytest.mark.parametrize(
    ("visible", "gpus", "memory"),
    [
        (None, 1, 79.6),  # the undivided one
        ("MIG-2-b", 1, 20.0),
        ("MIG-1-a,MIG-2-b", 1, 40.0),  # a process gets one instance, whatever it asks for
        ("0", 1, 40.0),
        ("1", 1, 79.6),
        ("MIG-9-x", 0, None),
    ],
)
def test_of_divided_gpus_a_process_gets_one_part(
    tmp_path: Path, visible: str | None, gpus: int, memory: float | None
) -> None:
    environment = smi(tmp_path, PARTED, LISTED) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    found = detect(environment)
    assert (found.gpus, found.memory) == (gpus, memory)


def test_no_driver_or_a_broken_one_means_no_gpu(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path)}).gpus == 0
    assert detect(smi(tmp_path, "NVIDIA-SMI has failed because ...\n", code=9)).gpus == 0
    assert detect(smi(tmp_path, f"{A}, [N/A], [N/A], [N/A]\n")).gpus == 0


def test_a_gpu_that_shares_the_processors_memory_is_one(tmp_path: Path) -> None:
    found = detect(smi(tmp_path, f"{A}, [N/A], 12.1, [N/A]\n"))
    assert (found.gpus, found.bf16, found.memory) == (1, True, None)


# What is elsewhere


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that looks complete, with bge-m3's shape, and a hundred rows."""
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    shape |= {"vocab_size": 250002, "max_position_embeddings": 8194, "type_vocab_size": 1, "pad_token_id": 1}
    (model / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"} | shape))
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    for name in ("tokenizer.json", "colbert_linear.pt", "sparse_linear.pt"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # whole, without a tensor
    row = {"query": "q", "pos": ["p"], "neg": ["n"] * 7}
    (tmp_path / "train.jsonl").write_text((json.dumps(row) + "\n") * 600)
    return tmp_path


def launch(folder: Path, *words: str, path: str = "/usr/bin:/bin", **keys: Any) -> subprocess.CompletedProcess[str]:
    """A command as a person has it, beside a launch.yaml with these keys."""
    settings = {"recipe": "m3-unified", "model": "model", "train_data": "train.jsonl", "output": "out/tuned", **keys}
    (folder / "launch.yaml").write_text(json.dumps(settings))
    environment = {"PYTHONPATH": str(ROOT), "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "launch.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


EIGHT = {"nproc_per_node": 8, "gpu": {"memory": 80}}
FOUR_NODES = {"nnodes": 4, **EIGHT}


def test_a_cluster_can_be_planned_and_checked_without_it(folder: Path) -> None:
    done = launch(folder, "plan", "launch.yaml", hardware=FOUR_NODES)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(":", 1) for line in done.stdout.split("\n\n")[0].splitlines())
    assert facts["device"].strip() == "cuda, 4 nodes × 8 = 32 processes, bf16, not on this machine"
    assert (facts["queries per step"].strip(), facts["steps per epoch"].strip()) == ("256", "2")
    assert facts["negatives per query"].strip().startswith("7 hard + 2040 in batch (sparse and ColBERT: 56")
    assert "negatives_cross_device  " in done.stdout
    assert "memory on GPUs of 80 GiB" in done.stdout and "fits, " in done.stdout
    checked = launch(folder, "check", "launch.yaml", hardware=FOUR_NODES)
    assert checked.returncode == 0, checked.stderr
    assert (
        "ready: 4 updates, 256 queries a step, on cuda, 4 nodes × 8 = 32 processes, not on this machine\n"
        in checked.stdout
    )
    old = launch(folder, "show", "launch.yaml", hardware=EIGHT | {"gpu": {"memory": 32, "bf16": False}})
    assert "--fp16 True" in old.stdout and "--standalone \\\n  --nproc_per_node 8" in old.stdout


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        (FOUR_NODES, "the plan is for 4 nodes"),
        ({"nnodes": 2, "device": "cpu"}, "the plan is for 2 nodes"),
        (EIGHT, "8 GPUs of 80 GiB with bf16"),
        ({"nproc_per_node": 1, "gpu": {"memory": 80}}, "take `gpu:` out"),
    ],
)
def test_run_refuses_what_is_not_here(folder: Path, hardware: dict[str, Any], said: str) -> None:
    done = launch(folder, "run", "launch.yaml", hardware=hardware)
    assert done.returncode == 2 and said in done.stderr and "show --format bash, slurm" in done.stderr
    assert done.stdout == "" and not (folder / "out").exists()


def test_gpus_that_are_here_as_described_are_not_elsewhere(tmp_path: Path) -> None:
    from launch.config import Hardware
    from launch.machine import described

    hardware = Hardware.model_validate({"nproc_per_node": 2, "gpu": {"memory": 80}})
    here = Machine(gpus=8, bf16=True, cores=64, memory=79.6)
    assert described(hardware, here) == Machine(gpus=2, bf16=True, cores=64, memory=80)
    for other in ({"gpus": 1}, {"memory": 40}, {"bf16": False}):
        assert described(hardware, here.model_copy(update=other)).elsewhere
    assert described(Hardware(), here) == here


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        ({"nods": 4}, "did you mean 'nnodes'?"),
        ({"nnodes": 0}, "hardware.nnodes"),
        ({"gpu": {"memory": 80}}, "nproc_per_node must say how many"),
        ({"gpu": {"memory": 80}, "nproc_per_node": 8, "device": "cpu"}, "device is cpu"),
        ({"gpu": {"memory": -1}, "nproc_per_node": 8}, "hardware.gpu.memory"),
        ({"gpu": {"memry": 80}, "nproc_per_node": 8}, "did you mean 'memory'?"),
    ],
)
def test_hardware_that_does_not_fit_is_explained(folder: Path, hardware: dict[str, Any], said: str) -> None:
    done = launch(folder, "check", "launch.yaml", hardware=hardware)
    assert done.returncode == 2 and said in done.stderr and "launch.yaml" in done.stderr


def test_too_few_gpus_name_the_way_to_plan_for_another_machine(folder: Path, tmp_path: Path) -> None:
    done = launch(folder, "check", "launch.yaml", hardware={"device": "cuda", "nproc_per_node": 8, "nnodes": 2})
    assert (
        done.returncode == 2 and "8 processes, but 0 visible GPUs" in done.stderr and "gpu: {memory: 80}" in done.stderr
    )


def test_threads_of_a_cpu_are_shared_by_the_processes_of_one_node(folder: Path) -> None:
    shown = launch(folder, "show", "launch.yaml", "--format", "bash", hardware={"device": "cpu", "nnodes": 64})
    assert f"export OMP_NUM_THREADS={detect().cores}\n" in shown.stdout


# Memory


def test_memory_is_told_for_a_gpu_that_is_here_or_asked_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    path = smi(tmp_path / "bin", f"{A}, 81559, 8.0, Disabled\n")["PATH"]
    assert "memory on GPUs of 79.6 GiB: " in launch(folder, "plan", "launch.yaml", path=path).stdout
    assert "memory on GPUs" not in launch(folder, "plan", "launch.yaml").stdout
    asked = launch(folder, "explain", "launch.yaml", "--gpu-memory", "16", batch_size=64).stdout
    assert "memory on GPUs of 16 GiB with bf16 (this plan itself is for the CPU): " in asked
    assert "fits, " in asked and "batch_size: 64 → " in asked and "negatives per query" in asked


def test_a_model_that_the_estimate_does_not_know_gives_one_line(folder: Path) -> None:
    (folder / "model" / "config.json").write_text('{"model_type": "modernbert"}')
    done = launch(folder, "plan", "launch.yaml", "--gpu-memory", "80", recipe="base")
    assert done.returncode == 0 and "no estimate: memory is known for BERT and RoBERTa kinds" in done.stdout


def test_probe_needs_a_gpu(folder: Path) -> None:
    done = launch(folder, "plan", "launch.yaml", "--probe")
    assert done.returncode == 2 and "this plan is for the CPU" in done.stderr and "Traceback" not in done.stderr


def test_probe_measures_the_growth_and_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi and torchrun are stand-ins: 1,000 MiB are used before, then 21,480 MiB on the second GPU."""
    from launch.config import load_config
    from launch.contract import installed
    from launch.plan import make_plan
    from launch.probe import probe

    stub = tmp_path / "nvidia-smi"
    told = "\n".join([f"{A}, 1000", f"{B}, 1000", f"{A}, 1000", f"{B}, 21480", f"{A}, 1000", f"{B}, 500"])
    stub.write_text(f"#!/bin/sh\necho '{told}'\nexec sleep 60\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    launch(folder, "plan", "launch.yaml")
    made = make_plan(
        load_config(folder / "launch.yaml"), Machine(gpus=1, bf16=True, cores=2, memory=80), installed("m3-unified")
    )
    spy = "import json, os, sys, time; open('seen', 'w').write(json.dumps(sys.argv)); os.makedirs(sys.argv[-3]); time.sleep(1)"
    said = probe(made.model_copy(update={"argv": (sys.executable, "-c", spy, *made.argv[1:]), "workdir": folder}))
    assert said.startswith("measured in two steps: 20.0 GiB on the fullest GPU; estimated: 26.4 GiB")
    assert "by 0.76;" in said
    argv = json.loads((folder / "seen").read_text())
    assert argv[argv.index("--max_steps") + 1] == "2" and argv.count("--output_dir") == 1
    assert str(made.output) not in argv and list(made.output.parent.iterdir()) == []
    with pytest.raises(RuntimeError, match="exit code 3\nno memory"):
        probe(made.model_copy(update={"argv": (sys.executable, "-c", "print('no memory'); exit(3)")}))


# Without torch

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "FlagEmbedding",
    "deepspeed",
    "sentence_transformers",
    "tokenizers",
    "pyarrow",
}
SPY = f"""
import sys
from launch.cli import app
try:
    app(sys.argv[1:])
except SystemExit as e:
    assert not e.code, e
print("heavy:", sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "launch.yaml", "--gpu-memory", "80"],
        ["check", "launch.yaml"],
        ["show", "launch.yaml"],
        ["show", "launch.yaml", "--format", "slurm"],
        ["migrate", "old.sh"],
        ["diagnose", "launch.log"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(folder: Path, words: list[str]) -> None:
    (folder / "old.sh").write_text(
        "torchrun --nproc_per_node 2 -m FlagEmbedding.BGE_M3.run --model_name_or_path model --train_data train.jsonl"
        " --output_dir tuned\n"
    )
    (folder / "launch.log").write_text("torch.OutOfMemoryError: CUDA out of memory.\n")
    settings = {
        "recipe": "m3-unified",
        "model": "model",
        "train_data": "train.jsonl",
        "output": "out",
        "deepspeed": "stage1",
    }
    (folder / "launch.yaml").write_text(json.dumps(settings | {"hardware": EIGHT}))
    command = [sys.executable, "-c", SPY, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/bin"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "heavy: []"
