"""Which checkpoint-N folders of a run are whole. A rank that is killed while it saves leaves a torn one."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from launch.base_model import read_json, safetensors_size

HEADS = ("colbert_linear.pt", "sparse_linear.pt")


def checkpoints(output: Path) -> list[Path]:
    """The checkpoint-N folders, the newest (largest N) first."""
    found = [(int(m[1]), p) for p in output.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def newest(output: Path, world_size: int, zero_stage: int | None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, None if there is none, and a line for each torn one that is newer.

    Args:
        output: the run's folder.
        world_size: ranks; each saves its random state, and under ZeRO its part of the optimizer.
        zero_stage: DeepSpeed's, None without DeepSpeed.
    """
    torn: list[str] = []
    for folder in checkpoints(output):
        missing = list(faults(folder, world_size, zero_stage))
        if not missing:
            return folder, torn
        torn.append(f"{folder.name} is torn ({', '.join(missing)}): skipped")
    return None, torn


def faults(folder: Path, world_size: int, zero_stage: int | None) -> Iterator[str]:
    """What a checkpoint lacks for going on from it; nothing if it is whole."""
    state = read_json(folder / "trainer_state.json")
    if f"checkpoint-{state.get('global_step')}" != folder.name:
        yield "trainer_state.json"
    yield from _weights(folder)
    whole = [name for name in HEADS if (folder / name).exists()]  # m3 alone has them
    ranks = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    if zero_stage is None:
        whole += ["optimizer.pt", "scheduler.pt", *ranks]
    else:
        step = _tag(folder)
        shards = [f"zero_pp_rank_{rank}_" for rank in range(world_size)] if zero_stage == 3 else [""]
        whole += [*ranks, *(f"{step}/{shard}mp_rank_00_model_states.pt" for shard in shards)]
        parts = len(list(folder.glob(f"{step}/*zero_pp_rank_*_optim_states.pt")))
        if step == "latest" or (zero_stage and parts < world_size):
            yield f"DeepSpeed's {step}" if step == "latest" else f"{parts} of {world_size} optimizer states"
        whole += ["scheduler.pt"] if (folder / "scheduler.pt").exists() else []  # else it is in DeepSpeed's own
        whole += [str(p.relative_to(folder)) for p in folder.glob(f"{step}/*_optim_states.pt")]
    if any((folder / name).exists() for name in HEADS):
        whole += HEADS
    for name in dict.fromkeys(whole):
        if not zipfile.is_zipfile(folder / name):  # torch.save writes a zip, whose directory comes last
            yield name


def zero_stage(settings: Path | None) -> int | None:
    """The ZeRO stage in a DeepSpeed file, None without one."""
    if settings is None:
        return None
    section = read_json(settings).get("zero_optimization")
    return int(section.get("stage", 0)) if isinstance(section, dict) else 0


def _tag(folder: Path) -> str:
    """The folder that DeepSpeed's `latest` names; the word itself if that file or folder is not there."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return "latest"
    return name if name and (folder / name).is_dir() else "latest"


def _weights(folder: Path) -> Iterator[str]:
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        names = sorted(set(index.values()))
    elif (folder / "pytorch_model.bin").exists():
        names = ["pytorch_model.bin"]
    else:
        names = ["model.safetensors"]
    for name in names:
        path = folder / name
        if not (zipfile.is_zipfile(path) if name.endswith(".bin") else _whole(path)):
            yield name


def _whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == safetensors_size(path)
