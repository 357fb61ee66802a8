"""Every cause from a log as the libraries write it; order, progress bars, and logs that say nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.diagnose import _NAN, _ZERO, KNOWN, TAIL, diagnose, report

START = """\
[rank0]: 2026-11-21 08:26:10 - INFO - loading data from /data/train.jsonl ...
  0%|          | 0/120 [00:00<?, ?it/s]
"""
SUMMARY = """\
Traceback (most recent call last):
  File "/opt/bge/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
FlagEmbedding.finetune.embedder.encoder_only.m3 FAILED
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4711)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
"""
UNUSED = "ValueError: Some specified arguments are not used by the HfArgumentParser: "

# id, what the log says, a part of the fix
CASES = [
    (
        "cuda.memory",
        "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.81 GiB. GPU 3 has a total capacity "
        "of 79.11 GiB of which 1.20 GiB is free. Process 77 has 77.90 GiB memory in use.",
        "batch_size",
    ),
    ("cuda.memory", "RuntimeError: CUDA error: out of memory", "train_group_size"),
    (
        "nccl.timeout",
        "[rank1]:[E1121 ProcessGroupNCCL.cpp:632] [Rank 1] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=41, OpType=ALLGATHER, NumelIn=8192, Timeout(ms)=1800000) ran for 1800041 milliseconds.",
        "ddp_timeout",
    ),
    (
        "nccl.error",
        "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:77, ncclSystemError",
        "NCCL_DEBUG",
    ),
    (
        "cuda.cublas",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "lower",
    ),
    ("cuda.assert", "torch.AcceleratorError: CUDA error: device-side assert triggered", "tokenizer"),
    (
        "memory.cpu",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 281474976710656 bytes. Error code 12 (Cannot allocate memory)",
        "nproc_per_node",
    ),
    ("loss.nan", "{'loss': nan, 'grad_norm': nan, 'learning_rate': 1e-05, 'epoch': 0.1}", "learning_rate"),
    ("loss.nan", "{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '1e-05', 'epoch': '0.1'}", "bf16"),
    ("loss.nan", "{'train_runtime': 9.1, 'train_loss': inf, 'epoch': 1.0}", "learning_rate"),
    ("loss.zero", "{'loss': 0.0, 'grad_norm': 0.0, 'epoch': 0.1}\n" * 3, "train_group_size"),
    ("loss.zero", "{'loss': '0.000e+00', 'grad_norm': '0.5', 'epoch': '0.1'}\n" * 3, "train_group_size"),
    (
        "loss.zero",
        "{'loss': 0, 'epoch': 1}\n{'loss': 0}\n{'eval_loss': 0.9, 'epoch': 1}\n{'loss': 0}",
        "train_group_size",
    ),
    ("process.exit", "terminate called without an active exception\nFatal Python error: Aborted", "the model is saved"),
    ("data.scores", "KeyError: 'pos_scores'", "knowledge_distillation"),
    (
        "data.scores",
        "ValueError: `pos_scores` and `neg_scores` not found in the features of training data in /data/train.jsonl, "
        "which is necessary when using knowledge distillation.",
        "score every row",
    ),
    ("data.columns", "datasets.exceptions.DatasetGenerationCastError: An error occurred while generating", "same keys"),
    ("data.columns", "because column names don't match", "same keys"),
    ("data.not-a-list", "    assert isinstance(data['pos'], list) and isinstance(data['neg'], list)", "list"),
    (
        "data.no-negatives",
        "    num = math.ceil((train_group_size - 1) / len(data['neg']))\nZeroDivisionError: division by zero",
        "mine negatives",
    ),
    (
        "data.no-dot",
        "    no_in_batch_neg_flag = data_dir.split('.')[-2].endswith('no_in_batch_neg')\n"
        "IndexError: list index out of range",
        ".jsonl",
    ),
    ("data.missing", "FileNotFoundError: cannot find file: /data/tain.jsonl, please set a true path", "train_data"),
    ("data.empty", "ValueError: num_samples should be a positive integer value, but got num_samples=0", "rows"),
    (
        "network.port",
        "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, "
        "code: -98, name: EADDRINUSE, message: address already in use",
        "another port",
    ),
    (
        "network.rendezvous",
        "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to "
        "(gpu-1, 29500).",
        "firewall",
    ),
    (
        "data.json",
        "Failed to load JSON from file '/data/train.jsonl' with error <class 'pyarrow.lib.ArrowInvalid'>: JSON parse "
        "error: Missing a comma or '}' after an object member. in row 1",
        "bge-launch check",
    ),
    ("argument.unknown", UNUSED + "['--overwrite_output_dir', 'True']", "leave --overwrite_output_dir out"),
    ("module.old", "ModuleNotFoundError: No module named 'FlagEmbedding.baai_general_embedding'", "recipe"),
    ("deepspeed.nvcc", "MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA op(s)", "torch_adam"),
    ("deepspeed.nvcc", "FileNotFoundError: [Errno 2] No such file or directory: '/usr/local/cuda/bin/nvcc'", "toolkit"),
    (
        "deepspeed.bf16",
        "[rank0]: pydantic_core._pydantic_core.ValidationError: 1 validation error for DeepSpeedBF16Config\n"
        "[rank0]: loss_scale\n[rank0]:   Extra inputs are not permitted",
        "stage0",
    ),
    (
        "resume.keys",
        "AttributeError: 'EncoderOnlyEmbedderM3Model' object has no attribute '_keys_to_ignore_on_save'",
        "bge-launch resume",
    ),
    ("shm.full", "RuntimeError: DataLoader worker (pid 9) is killed by signal: Bus error.", "--shm-size"),
    ("memory.killed", "E1121 api.py:882] failed (exitcode: -9) local_rank: 0 (pid: 28773) of binary: python", "memory"),
    ("memory.killed", "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.", "nproc_per_node"),
    ("memory.killed", "  exitcode  : -9 (pid: 4711)\n  traceback : Signal 9 (SIGKILL) received by PID 4711", "dmesg"),
    ("process.crashed", "  exitcode  : -11 (pid: 4711)", "PYTHONFAULTHANDLER"),
    ("slurm.stopped", "slurmstepd: error: *** JOB 12 ON gpu-7 CANCELLED AT 2026-11-21 DUE TO TIME LIMIT ***", "time"),
    ("disk.full", "OSError: [Errno 28] No space left on device", "save_total_limit"),
    ("output.exists", "ValueError: Output directory (/out/tuned) already exists and is not empty. Use", "--overwrite"),
    ("hub.offline", "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co", "model:"),
    ("hub.offline", "LocalEntryNotFoundError: Cannot find the requested files in the disk cache", "folder"),
    ("cuda.driver", "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "update"),
    ("cuda.none", "RuntimeError: No CUDA GPUs are available", "nvidia-smi"),
    ("cuda.ordinal", "RuntimeError: CUDA error: invalid device ordinal", "nproc_per_node"),
    ("cuda.arch", "CUDA error: no kernel image is available for execution on the device", "build"),
    ("cuda.bf16", "ValueError: Your setup doesn't support bf16/gpu. You need Ampere+ GPU with cuda>=11.0.", "fp16"),
    ("model.broken", "safetensors_rust.SafetensorError: Error while deserializing header: header too large", "again"),
    ("model.broken", "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in", "again"),
    ("model.tokenizer", "XLMRobertaTokenizer requires the SentencePiece library but it was not found", "sentencepiece"),
    ("model.tokenizer", " requires the protobuf library but it was not found in your environment.", "protobuf"),
    ("model.dtype", "RuntimeError: expected scalar type Float but found Half", "float32"),
    ("model.dtype", "RuntimeError: mat1 and mat2 must have the same dtype, but got Half and Float", "config.json"),
    (
        "tokenizers.fork",
        "huggingface/tokenizers: The current process just got forked, after parallelism has already been used.",
        "harmless",
    ),
    ("torchrun.summary", SUMMARY, "traceback above"),
]


@pytest.mark.parametrize(("id", "text", "fix"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_each_cause(id: str, text: str, fix: str) -> None:
    (found,) = diagnose(START + text + "\n")
    assert found.id == id and fix in found.fix
    line = (START + text).split("\n")[found.line - 1]
    assert found.evidence and found.evidence in line


def test_every_row_of_the_table_has_a_case() -> None:
    assert {case[0] for case in CASES} == {row.id for row in (*KNOWN, _NAN, _ZERO)}


def test_memory_is_named_as_new_and_old_torch_write_it() -> None:
    old = "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 23.69 GiB total capacity; 21.50 GiB already allocated; 12.00 MiB free;"
    assert diagnose(old)[0].cause == "the GPU's memory is full, 20.00 MiB wanted, 23.69 GiB in all, 12.00 MiB free"
    assert "3.81 GiB wanted, 79.11 GiB in all, 1.20 GiB free" in diagnose(CASES[0][1])[0].cause


def test_unknown_arguments_are_each_given_their_new_name() -> None:
    words = ["--warmup_ratio", "0.1", "--normlized", "--no_cuda", "--learning-rte", "--logging_dir", "x", "--zzz"]
    (found,) = diagnose(UNUSED + str(words))
    assert found.fix.split("; ") == [
        "instead of --warmup_ratio set warmup_steps: 0.1",
        "a number below 1 is a share of all updates",
        "--normlized is now called normalize_embeddings",
        "--no_cuda is now called use_cpu, which is `hardware.device:` in launch.yaml",
        "--learning_rte is perhaps learning_rate, which is `learning_rate:` in launch.yaml",
        "instead of --logging_dir set the environment variable TENSORBOARD_LOGGING_DIR",
        "--zzz: see `bge-launch plan launch.yaml` for what there is",
    ]


@pytest.mark.parametrize("name", ["evaluation_strategy", "overwrite_output_dir"])
def test_an_argument_that_the_installed_class_does_not_take(name: str) -> None:
    from transformers import TrainingArguments

    with pytest.raises(TypeError) as raised:
        TrainingArguments(output_dir="unused", **{name: "no"})
    (found,) = diagnose(START + f"TypeError: {raised.value}\n")
    assert found.id == "argument.unknown"
    wanted = {
        "evaluation_strategy": "is now called eval_strategy",
        "overwrite_output_dir": "leave --overwrite_output_dir out",
    }
    assert wanted[name] in found.fix


STOPPED = (
    "W1121 api.py:1048] Unable to shutdown process 77 via Signals.SIGTERM, forcefully exiting via Signals.SIGKILL\n"
)


def test_that_torchrun_ends_the_others_is_no_want_of_memory() -> None:
    unknown = START + "ValueError: nobody knows this one\n" + STOPPED
    assert diagnose(unknown) == [] and "nobody knows this one" in report(unknown)
    died = "subprocess.CalledProcessError: Command '['python']' died with <Signals.SIGKILL: 9>.\n"
    assert [d.id for d in diagnose(START + died)] == ["memory.killed"]


def test_three_causes_in_their_order_each_once_and_the_summary_last() -> None:
    fork, memory, late = CASES[-2][1], CASES[0][1], CASES[2][1]
    assert "forked" in fork and "out of memory" in memory and "Watchdog" in late
    killed = "E1121 api.py:882] failed (exitcode: -9) local_rank: 2 (pid: 1) of binary: python\n"
    log = "\n".join([fork, START, memory, memory, late, late, SUMMARY, killed])
    found = diagnose(log)
    assert [d.id for d in found] == [
        "cuda.memory",
        "nccl.timeout",
        "memory.killed",
        "tokenizers.fork",
        "torchrun.summary",
    ]
    assert [d.kind for d in found] == ["cause"] * 3 + ["harmless", "summary"]
    assert found[0].line == log.split("\n").index(memory) + 1
    text = report(log)
    assert text.index("the GPU's memory") < text.index("NCCL gave up") < text.index("torchrun's summary")
    assert "no known cause" not in text and "FlagEmbedding#1438" in text


def test_carriage_returns_are_one_line_and_hide_no_error() -> None:
    bars = "".join(f"\r {n}%|█▏        | {n}/100 [00:0{n}<01:30,  1.05it/s]" for n in range(1, 9))
    log = f"start\n{bars}\r{{'loss': nan, 'epoch': 0.1}}\r{bars}[rank0]: CUDA error: out of memory\nend\n"
    assert [(d.id, d.line) for d in diagnose(log)] == [("loss.nan", 2), ("cuda.memory", 2)]
    assert diagnose(log)[1].evidence == "[rank0]: CUDA error: out of memory"
    assert diagnose(log.replace("\n", "\r\n"))[0].line == 2


def test_nothing_known_shows_the_last_lines_without_bars() -> None:
    bar = "Map:  10%|█         | 12/120 [00:01<00:09, 11.2 examples/s]"
    log = "".join(f"line {n}\n{bar}\r{bar}\n\n" for n in range(1, 41)) + SUMMARY.splitlines()[0]
    assert diagnose(log) == []
    lines = report(log).splitlines()
    assert lines[0] == f"no known cause; the log's last {TAIL} lines without progress bars:"
    assert lines[1:] == [f"  {3 * n - 2}: line {n}" for n in range(22, 41)] + [
        "  121: Traceback (most recent call last):"
    ]


@pytest.mark.parametrize("id", ["tokenizers.fork", "torchrun.summary"])
def test_without_a_cause_the_last_lines_are_shown_too(id: str) -> None:
    text = next(case[1] for case in CASES if case[0] == id)
    assert id in report(START + text) and "no known cause" in report(START + text)


def test_an_empty_log_is_no_error() -> None:
    assert diagnose("") == []
    assert report("") == "no known cause; the log's last 0 lines without progress bars:\n"


@pytest.mark.parametrize(
    "text",
    [
        "{'loss': 0.0, 'epoch': 0.1}\n{'loss': 0.0, 'epoch': 0.2}\n{'loss': 0.3, 'epoch': 0.3}\n{'loss': 0.0, 'epoch': 0.4}\n",
        "{'loss': 1.25, 'grad_norm': inf, 'epoch': 0.1}\n",  # fp16 looking for its scale
        "{'loss': '0.0004', 'grad_norm': '3e-05'}\n" * 5,
        "IndexError: list index out of range\n",  # from anywhere
        "    speed = samples / seconds\nZeroDivisionError: float division by zero\n",
        "  exitcode  : 1 (pid: 99)\n",
        "report on nannies and info desks\n",
    ],
)
def test_what_is_no_cause(text: str) -> None:
    assert diagnose(text) == []


def test_a_long_line_is_quoted_around_its_phrase() -> None:
    log = "x" * 5000 + " No space left on device " + "y" * 5000
    (found,) = diagnose(log)
    assert "No space left on device" in found.evidence and len(found.evidence) == 240


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, launch.diagnose, launch.render; print([m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules])"
    here = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    assert out.stdout.strip() == "[]"
