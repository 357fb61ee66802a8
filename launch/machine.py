"""What there is to train on: this machine's GPUs, or those that launch.yaml describes. Without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from launch.config import Frozen, Hardware

BF16 = 8.0  # compute capability from which on the tensor cores take bf16: Ampere
PATIENCE = 20  # seconds for nvidia-smi, which wakes up sleeping GPUs
# What the driver tells where nvidia-smi is missing, as in containers with the driver capability `compute` alone.
ASK_TORCH = (
    "import torch; found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]; "
    "print('\\n'.join(f'{p.total_memory >> 20}, {p.major}.{p.minor}' for p in found))"
)


class Machine(Frozen):
    """One node. `cores` are those that this process may use, `memory` GiB of its smallest visible GPU, if known.

    `elsewhere`: the GPUs are described in launch.yaml, and this machine does not have them.
    """

    gpus: int
    bf16: bool
    cores: int
    memory: float | None = None
    elsewhere: bool = False


class Gpu(NamedTuple):
    """A GPU, or one instance of a divided one (MIG): MiB of memory, 0 if not known, and its compute capability."""

    uuid: str
    memory: int
    capability: float


class Instance(NamedTuple):
    """A part of a divided GPU: MiB of memory, and the UUID of its GPU."""

    uuid: str
    memory: int
    owner: str


def detect(environment: Mapping[str, str] = os.environ) -> Machine:
    """This machine: the GPUs that CUDA_VISIBLE_DEVICES leaves visible, and its cores."""
    gpus = _gpus(environment)
    memory = min((g.memory for g in gpus), default=0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        gpus=len(gpus),
        bf16=bool(gpus) and min(g.capability for g in gpus) >= BF16,
        cores=cores,
        memory=round(memory / 1024, 1) if memory else None,
    )


def described(hardware: Hardware, here: Machine) -> Machine:
    """The machine that launch.yaml describes; `here` itself if it describes none.

    It is elsewhere unless `here` has as many GPUs, of about the memory (drivers keep up to a tenth), and bf16 if asked.
    """
    gpu, count = hardware.gpu, hardware.nproc_per_node
    if gpu is None or count == "auto":
        return here
    enough = here.memory is None or here.memory >= 0.9 * gpu.memory
    same = here.gpus >= count and here.bf16 >= gpu.bf16 and enough
    return Machine(gpus=count, bf16=gpu.bf16, cores=here.cores, memory=gpu.memory, elsewhere=not same)


def _gpus(environment: Mapping[str, str]) -> list[Gpu]:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return []
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program:
        return chosen(_whole(program, environment), lambda: _instances(program, environment), visible)
    if not Path("/proc/driver/nvidia/version").exists():
        return []
    answer = _ask([sys.executable, "-c", ASK_TORCH], environment, 3 * PATIENCE)
    rows = [line.split(", ") for line in answer.splitlines()]
    return [Gpu(str(i), int(memory), float(capability)) for i, (memory, capability) in enumerate(rows)]


def _whole(program: str, environment: Mapping[str, str]) -> list[tuple[Gpu, bool]]:
    """Every GPU in the order of its index, and whether it is divided."""
    query = "--query-gpu=uuid,memory.total,compute_cap,mig.mode.current"
    rows = [
        line.split(", ") for line in _ask([program, query, "--format=csv,noheader,nounits"], environment).splitlines()
    ]
    found = []
    for row in rows:
        if len(row) == 4 and re.fullmatch(r"\d+\.\d+", row[2]):  # a broken one says [N/A]
            memory = int(row[1]) if row[1].isdigit() else 0  # one that shares the processor's says [N/A] here alone
            found.append((Gpu(row[0], memory, float(row[2])), row[3].strip() == "Enabled"))
    return found


def _instances(program: str, environment: Mapping[str, str]) -> list[Instance]:
    found: list[Instance] = []
    owner = ""
    for line in _ask([program, "-L"], environment).splitlines():
        uuid = re.search(r"\(UUID: ([^)]+)\)", line)
        profile = re.search(r"^\s*MIG \S*?(\d+)gb", line)  # 3g.40gb has 40 GB
        if uuid and profile:
            found.append(Instance(uuid[1], int(profile[1]) * 1024, owner))
        elif uuid:
            owner = uuid[1]
    return found


def chosen(whole: list[tuple[Gpu, bool]], instances: Callable[[], list[Instance]], visible: str | None) -> list[Gpu]:
    """The GPUs that CUDA shows a process, by CUDA's own reading of CUDA_VISIBLE_DEVICES (CUDA programming guide).

    Entries are indices or beginnings of UUIDs; the first that names nothing ends the list, and one named twice empties
    it. Of divided GPUs a process sees one instance, whatever it is given (MIG user guide).

    Args:
        whole: every GPU in order, and whether it is divided.
        instances: asks for the instances; called only where one may be meant.
        visible: the variable; None if it is not set.
    """
    if visible is None:
        undivided = [gpu for gpu, divided in whole if not divided]
        return undivided or [g for gpu, _ in whole[:1] for g in _parts_of(gpu, instances())][:1]
    found: list[Gpu] = []
    for entry in (e.strip() for e in visible.split(",")):
        gpu = _named(entry, whole, instances)
        if gpu is None:
            break
        if gpu in found:
            return []
        found.append(gpu)
    whole_ones = {one.uuid for one, _ in whole}
    return found if all(one.uuid in whole_ones for one in found) else found[:1]


def _named(entry: str, whole: list[tuple[Gpu, bool]], instances: Callable[[], list[Instance]]) -> Gpu | None:
    if entry.startswith("MIG-"):
        return next((g for gpu, _ in whole for g in _parts_of(gpu, instances()) if g.uuid == entry), None)
    if entry.isdigit():
        named = whole[int(entry) : int(entry) + 1]
    else:
        named = [w for w in whole if entry.startswith("GPU-") and w[0].uuid.startswith(entry)]
    if len(named) != 1:
        return None
    gpu, divided = named[0]
    return next(iter(_parts_of(gpu, instances())), None) if divided else gpu


def _parts_of(gpu: Gpu, instances: list[Instance]) -> list[Gpu]:
    return [Gpu(i.uuid, i.memory, gpu.capability) for i in instances if i.owner == gpu.uuid]


def _ask(command: list[str], environment: Mapping[str, str], patience: float = PATIENCE) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, env=dict(environment))
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
