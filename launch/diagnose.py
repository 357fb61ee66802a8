"""Why a training run failed, read from its log: causes with their line, and what to change.

A table of the phrases that the libraries print. What stands first in the log is taken for the
cause of what follows; torchrun's own summary, which only counts the dead, always comes last.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

from launch.config import Frozen
from launch.contract import DROPPED, OWNED, RENAMED

Kind = Literal["cause", "harmless", "summary"]
TAIL = 20  # lines shown where no cause is known
ZEROS = 3  # losses of 0 in a row; one alone can be a rounded small one
WIDTH = 240  # characters of a line that are quoted
_BAR = re.compile(r"^.*?\d+%\|[^|]*\|[^\[]*\[[^\]]*\]")  # tqdm's, with what stands before it
_LOSS = re.compile(r"'(?:train_)?loss': '?([^',}\s]+)")
_NAN_GRADIENT = re.compile(r"'grad_norm': '?nan")
_UNUSED = re.compile(r"(?:not used by the HfArgumentParser|unrecognized arguments):(.*)")
_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")
_SIZES = {
    "wanted": re.compile(r"Tried to allocate ([\d.]+ \w+)"),
    "in all": re.compile(r"total capacity of ([\d.]+ \w+)|([\d.]+ \w+) total capacity"),
    "free": re.compile(r"of which ([\d.]+ \w+) is free|([\d.]+ \w+) free"),
}
# What people misspell most; the installed trainer's own list would need torch.
_NAMES = sorted(
    {*OWNED, *RENAMED.values(), "warmup_steps", "weight_decay", "max_grad_norm", "sub_batch_size", "save_steps"}
    | {"gradient_accumulation_steps", "gradient_checkpointing", "negatives_cross_device", "knowledge_distillation"}
    | {"kd_loss_type", "unified_finetuning", "use_self_distill", "same_dataset_within_batch", "logging_steps"}
)
_MOVED = {
    "warmup_ratio": "set warmup_steps: 0.1; a number below 1 is a share of all updates",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
}


class Diagnosis(Frozen):
    """One finding. `line` counts from 1; `reference` is where others met it, empty if unknown."""

    id: str
    kind: Kind
    cause: str
    line: int
    evidence: str
    fix: str
    reference: str = ""

    def __str__(self) -> str:
        seen = f" ({self.reference})" if self.reference else ""
        return f"{self.cause} [{self.id}]{seen}\n  line {self.line}: {self.evidence}\n  fix: {self.fix}"


class Known(NamedTuple):
    """A row of the table: a line with any of `phrases` in it means `cause`, if `beside` stands in the log, too."""

    id: str
    phrases: tuple[str, ...]
    cause: str
    fix: str
    reference: str = ""
    kind: Kind = "cause"
    beside: str = ""


_SMALLER = "lower batch_size, passage_max_len or train_group_size"
# fmt: off
KNOWN = (
    Known("cuda.memory", ("CUDA out of memory", "CUDA error: out of memory"), "the GPU's memory is full",
          f"{_SMALLER}; m3's sparse head alone takes passages × length × 250,002 numbers, twice. "
          "`arguments: {gradient_checkpointing: true}` or `sub_batch_size` saves the encoder's part", "FlagEmbedding#1277"),
    Known("cuda.cublas", ("CUBLAS_STATUS_ALLOC_FAILED",), "cuBLAS found no room in the GPU's memory, which is nearly always full then",
          f"{_SMALLER}; see with nvidia-smi whether another process holds the GPU"),
    Known("cuda.assert", ("device-side assert",), "an index lies beyond its table on the GPU: a token that the model's vocabulary "
          "does not have, or a place beyond its longest text",
          "take the tokenizer from the model's own folder, and lengths that `bge-launch check` accepts; CUDA_LAUNCH_BLOCKING=1, "
          "or a run with `hardware: {device: cpu}`, shows the line"),
    Known("memory.cpu", ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
                         "[Errno 12] Cannot allocate memory"),
          "the main memory is full", f"{_SMALLER}, or hardware.nproc_per_node"),
    Known("nccl.timeout", ("collective operation timeout", "NCCL operations have failed or timed out"),
          "one process waited for the others until NCCL gave up",
          "look for another process's error above. If there is none: keep dataloader_drop_last on, give every node the same "
          "files, and for slow loading set `arguments: {ddp_timeout: 7200}`"),
    Known("nccl.error", ("ncclSystemError", "ncclInternalError", "ncclRemoteError", "ncclUnhandledCudaError", "NCCL error in"),
          "the GPUs or nodes could not talk to each other",
          "run with NCCL_DEBUG=INFO; in a container give /dev/shm some GiB, on several nodes set NCCL_SOCKET_IFNAME to the "
          "network that they share", "FlagEmbedding#1064"),
    Known("data.scores", ("`pos_scores` and `neg_scores` not found", "KeyError: 'pos_scores'", "KeyError: 'neg_scores'",
                          "pos_score or neg_score must be digit"),
          "distillation is on, but rows lack pos_scores or neg_scores",
          "score every row, or set `arguments: {knowledge_distillation: false}`", "FlagEmbedding#949"),
    Known("data.columns", ("DatasetGenerationCastError", "column names don't match"),
          "the rows of one file have different keys", "give every row of a file the same keys; scores in all of them, or in none"),
    Known("data.not-a-list", ("assert isinstance(data['pos'], list)",), "pos or neg is not a list",
          "write a list even of one text: \"pos\": [\"…\"]", "FlagEmbedding#1369"),
    Known("data.no-negatives", ("ZeroDivisionError",), "a row whose `neg` is empty: the trainer divides by the number of negatives",
          "mine negatives for it, or leave the row out", "FlagEmbedding#945", beside="train_group_size - 1) / len("),
    Known("data.json", ("JSON parse error:",), "a line of a training file is no JSON, or one of its keys holds another kind of value there",
          "`bge-launch check` names the file and the line; on any JSON-lines file `bge-factory validate` does"),
    Known("data.no-dot", ("split('.')[-2]",), "a path in train_data has no dot, and same_dataset_within_batch reads what is before it",
          "let train_data name files that end in .jsonl"),
    Known("data.missing", ("cannot find file:",), "a path in train_data is not there", "correct `train_data:`; seen from the machine that trains"),
    Known("data.empty", ("num_samples should be a positive integer value",), "no row was read",
          "let train_data name .json or .jsonl files with rows; other names are skipped", "FlagEmbedding#1063"),
    Known("network.port", ("EADDRINUSE", "ddress already in use"), "the port at which the processes meet is taken, often by a run that still lives",
          "end the other run, or choose another port (--standalone, which bge-launch uses on one node, finds a free one)"),
    Known("network.rendezvous", ("client socket has timed out", "RendezvousTimeoutError", "RendezvousConnectionError"),
          "a node did not reach the one at which all of them meet",
          "start all nodes at about the same time; every node must reach the head's address and port (`head:` and `rdzv_port:` in "
          "cluster.yaml, --rdzv_endpoint or --master_addr by hand) through the firewall, by a name that means the same on all"),
    Known("argument.unknown", ("arguments are not used by the HfArgumentParser", "unrecognized arguments:",
                               "Arguments.__init__() got an unexpected keyword argument"),
          "the installed trainer has no such argument", "see `bge-launch plan launch.yaml`", "FlagEmbedding#1592"),
    Known("module.old", ("No module named 'FlagEmbedding.baai_general_embedding", "No module named 'FlagEmbedding.BGE_M3"),
          "the command is one of FlagEmbedding 1.2 and older", "use a launch.yaml with `recipe:`; bge-launch names the new module", "FlagEmbedding#1509"),
    Known("deepspeed.nvcc", ("CUDA_HOME does not exist", "CUDA_HOME environment variable is not set", "bin/nvcc'", "nvcc: not found",
                             "nvcc: command not found"),
          "DeepSpeed compiles an op and finds no nvcc",
          "install the CUDA toolkit of torch's version and set CUDA_HOME, put `\"torch_adam\": true` into the DeepSpeed file's "
          "optimizer params, or leave `deepspeed:` out"),
    Known("deepspeed.bf16", ("DeepSpeedBF16Config",), "the DeepSpeed file has loss-scaling keys under bf16, which 0.17 and later refuse",
          "remove all but `enabled` there, or set `deepspeed: stage0`", "FlagEmbedding#1487"),
    Known("resume.keys", ("_keys_to_ignore_on_save",), "resuming without DeepSpeed: the checkpoint's names lack the wrapper's `model.`",
          "`bge-launch resume`, which loads it with and without DeepSpeed; by hand only a run with DeepSpeed can resume"),
    Known("shm.full", ("out of shared memory", "unable to allocate shared memory", "killed by signal: Bus error"),
          "/dev/shm is full", "give the container more: docker --shm-size=16g; a memory-backed emptyDir on Kubernetes"),
    Known("memory.killed", ("exitcode: -9", "exitcode  : -9", "exit code -9", "(SIGKILL)", "died with <Signals.SIGKILL", "killed by signal: Killed",
                            "oom-kill", "oom_kill", "Out of memory: Killed process"),
          "the kernel killed a process, nearly always for want of main memory",
          "give the job more memory, fewer processes (hardware.nproc_per_node) or smaller files; `dmesg` names the killed one"),
    Known("process.crashed", ("exitcode: -11", "exitcode  : -11", "(SIGSEGV)"), "a process crashed inside a library",
          "reinstall torch and its CUDA libraries as one set; PYTHONFAULTHANDLER=1 shows where", "FlagEmbedding#1549"),
    Known("process.exit", ("terminate called without an active exception",), "a process aborted while it ended, with threads still there",
          "if the model is saved, it is whole; `bge-launch run` and `resume` end without this", "pytorch/pytorch#179291"),
    Known("slurm.stopped", ("DUE TO TIME LIMIT", "DUE TO PREEMPTION"), "Slurm ended the job", "give it more time, or fewer epochs"),
    Known("disk.full", ("No space left on device", "Disk quota exceeded"), "the disk is full: a checkpoint is three times the model's size",
          "free space, or set `arguments: {save_strategy: \"no\"}` or `save_total_limit: 1`"),
    Known("output.exists", ("already exists and is not empty",), "the output folder is not empty",
          "choose another `output:`, or `bge-launch run --overwrite`; leave do_train out"),
    Known("hub.offline", ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "outgoing traffic has been disabled", "We couldn't connect to '",
                          "is not a local folder"),
          "the model was to be fetched from the Hugging Face hub", "download it once and set `model:` to its folder", "FlagEmbedding#1476"),
    Known("cuda.driver", ("driver on your system is too old", "driver version is insufficient"), "the NVIDIA driver is older than torch's CUDA",
          "update the driver, or install a torch for its CUDA version"),
    Known("cuda.none", ("no CUDA-capable device", "Found no NVIDIA driver", "not compiled with CUDA enabled", "No CUDA GPUs are available"),
          "there is no GPU for torch", "check nvidia-smi and CUDA_VISIBLE_DEVICES; on a machine without one, `hardware: {device: cpu}`"),
    Known("cuda.ordinal", ("invalid device ordinal",), "more processes than GPUs", "set hardware.nproc_per_node to the number of GPUs, or auto"),
    Known("cuda.arch", ("no kernel image is available",), "this torch was not built for this GPU", "install a torch build that names the GPU's architecture"),
    Known("cuda.bf16", ("doesn't support bf16", "bfloat16 is not supported"), "this GPU has no bf16", "set `arguments: {fp16: true}`, which replaces bf16"),
    Known("model.broken", ("deserializing header", "MetadataIncompleteBuffer", "failed reading zip archive", "Error no file named"),
          "a weights file is missing or incomplete, or only a Git LFS pointer", "download the model again; model.safetensors of bge-m3 has about 2 GB",),
    Known("model.tokenizer", ("requires the SentencePiece library", "requires the protobuf library", "No module named 'sentencepiece'",
                              "No module named 'google.protobuf'", "Couldn't instantiate the backend tokenizer"),
          "the tokenizer needs sentencepiece or protobuf", "pip install sentencepiece protobuf, or put a tokenizer.json into the model's folder"),
    Known("model.dtype", ("expected scalar type", "have the same dtype"),
          "parts of the model have different number types, as m3's heads beside half-precision weights",
          "set dtype (torch_dtype) in the base model's config.json to float32; bf16 or fp16 comes from the arguments"),
    Known("tokenizers.fork", ("huggingface/tokenizers: The current process just got forked",), "the tokenizers' warning about fork",
          "nothing: it is harmless; TOKENIZERS_PARALLELISM=false silences it", kind="harmless"),
    Known("torchrun.summary", ("ChildFailedError",), "torchrun's summary: which process ended first, not why; FlagEmbedding records no traceback for it",
          "read the process's own traceback above it; if there is none, run with hardware.nproc_per_node: 1", "FlagEmbedding#1438", "summary"),
)
_NAN = Known("loss.nan", (), "the loss is no number any more",
             "lower learning_rate; train in bf16 or fp32 instead of fp16; look for empty texts in the data")
_ZERO = Known("loss.zero", (), f"the loss is 0, {ZEROS} times in a row: nothing is learned",
              "set train_group_size to 2 or more; with 1 and a batch of 1 a query has no negatives. Else mine harder ones",
              "FlagEmbedding#823")
# fmt: on


def diagnose(log: str) -> list[Diagnosis]:
    """What is known of a log's errors, the first cause first; empty if nothing is. Each is reported once."""
    # of a large log, few are left
    rows = [row for row in KNOWN if row.beside in log and any(phrase in log for phrase in row.phrases)]
    found: list[Diagnosis] = []
    losses = _Losses()
    for number, text in _pieces(log):
        for row in [row for row in rows if any(phrase in text for phrase in row.phrases)]:
            rows.remove(row)
            found.append(_found(row, number, text))
        if "loss': " in text and (loss := losses.see(number, text)):
            found.append(loss)
    order = ("cause", "harmless", "summary")
    return sorted(found, key=lambda d: (order.index(d.kind), d.line))


def report(log: str) -> str:
    """The findings as a text; where no cause is among them, the log's last lines too."""
    found = diagnose(log)
    texts = [str(d) for d in found]
    if not any(d.kind == "cause" for d in found):
        shown = ((number, _BAR.sub("", text).strip()) for number, text in _pieces(log))
        last = deque(((number, text) for number, text in shown if text), maxlen=TAIL)
        head = f"no known cause; the log's last {len(last)} lines without progress bars:"
        texts.append("\n".join([head, *(f"  {number}: {text[:WIDTH]}" for number, text in last)]))
    return "\n\n".join(texts) + "\n"


def _pieces(log: str) -> Iterator[tuple[int, str]]:
    """Each line with its number; a line that was written over by carriage returns gives several."""
    start, number = 0, 1
    while start < len(log):
        end = log.find("\n", start)
        end = len(log) if end < 0 else end
        for piece in log[start:end].split("\r"):
            if piece:
                yield number, piece
        start, number = end + 1, number + 1


def _found(row: Known, number: int, text: str) -> Diagnosis:
    cause, fix = row.cause, row.fix
    if row.id == "cuda.memory":
        sizes = {what: next(filter(None, m.groups())) for what, p in _SIZES.items() if (m := p.search(text))}
        cause += "".join(f", {size} {what}" for what, size in sizes.items())
    if row.id == "argument.unknown":
        unused = _UNUSED.search(text)
        names = re.findall(r"--([\w-]+)", unused[1]) if unused else _KEYWORD.findall(text)
        fix = "; ".join(_advice(name.replace("-", "_")) for name in names) or fix
    line = _BAR.sub("", text).strip()
    at = min((line.find(phrase) for phrase in row.phrases if phrase in line), default=0)
    start = max(min(at - WIDTH // 4, len(line) - WIDTH), 0)
    evidence = line[start : start + WIDTH]
    return Diagnosis(
        id=row.id, kind=row.kind, cause=cause, line=number, evidence=evidence, fix=fix, reference=row.reference
    )


def _advice(name: str) -> str:
    if name in DROPPED:
        return f"leave --{name} out: {DROPPED[name]}"
    if name in _MOVED:
        return f"instead of --{name} {_MOVED[name]}"
    near = difflib.get_close_matches(name, _NAMES, n=1)
    new = RENAMED.get(name) or (near[0] if near else None)
    if not new:
        return f"--{name}: see `bge-launch plan launch.yaml` for what there is"
    said = "is now called" if name in RENAMED else "is perhaps"
    return f"--{name} {said} {new}" + (f", which is `{OWNED[new]}:` in launch.yaml" if new in OWNED else "")


class _Losses:
    """Looks for a loss that is no number, and for several of 0 in a row; each once."""

    def __init__(self) -> None:
        self.zeros: list[tuple[int, str]] = []
        self.seen: set[str] = set()

    def see(self, number: int, text: str) -> Diagnosis | None:
        match = _LOSS.search(text)
        try:
            value = float(match[1]) if match else None
        except ValueError:
            value = None
        if value is None:  # eval_loss, or no number at all
            return None
        # The trainer logs a loss that is no number as 0 (logging_nan_inf_filter); the gradient tells.
        if not math.isfinite(value) or (value == 0 and _NAN_GRADIENT.search(text)):
            return self._once(_NAN, number, text)
        self.zeros = [*self.zeros, (number, text)][-ZEROS:] if value == 0 else []
        return self._once(_ZERO, *self.zeros[0]) if len(self.zeros) == ZEROS else None

    def _once(self, row: Known, number: int, text: str) -> Diagnosis | None:
        if row.id in self.seen:
            return None
        self.seen.add(row.id)
        return _found(row, number, text)
