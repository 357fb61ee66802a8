"""Weights between a base model and its tuned one: general ability bought back with a little of the gain.

A merged tensor is w · tuned + (1 − w) · base, for every tensor of floats (LM-Cocktail, Xiao et al. 2023, with one tuned
model and weights by hand). The folder is the tuned one's, tokenizer and pooling included; m3's heads and a Dense
module are merged, too.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from factory.errors import InputError
from factory.folders import whole_folder
from factory.modelfiles import WEIGHTS, check_model_folder, read_json

HEADS = ("sparse_linear.pt", "colbert_linear.pt")
SHARD = 2 << 30  # bytes of a file of weights, and about what is held in memory
# Files of a model folder beside its weights; whatever else a training run leaves there stays behind.
KEPT = ("config.json", "generation_config.json", "modules.json", "sentence_bert_config.json",
        "config_sentence_transformers.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.jinja", "*.py")  # fmt: skip
# Tensors that one model may have alone, since no vector depends on them: transformers adds BERT's pooler when it saves.
UNUSED = ("pooler.", "position_ids")


def merge(base: Path, tuned: Path, weight: float, out: Path) -> None:
    """Write the model that lies at `weight` of the way from base (0) to tuned (1) as a folder of its own.

    Tensors are read one after the other, and written in files of 2 GB: memory holds one file, not three models.

    Raises:
        InputError: a folder is no complete model, the two do not have the same tensors in the same shapes, the weight
            is outside of [0, 1], `out` is there already, or the disk is full.
    """
    check_pair(base, tuned)
    if not 0 <= weight <= 1:
        raise InputError(f"a weight must be between 0 (base) and 1 (tuned), got {weight:g}", where="--weights")
    with whole_folder(out) as folder:
        copy_files(tuned, folder)
        for ours, theirs in zip(weights_folders(base), weights_folders(tuned), strict=True):
            with _tensors(ours) as before, _tensors(theirs) as after:
                write_weights(folder / theirs.relative_to(tuned), _merged(before, after, weight))
        for head in HEADS:
            if (tuned / head).is_file():
                _merge_head(base / head, tuned / head, weight, folder / head)


def check_pair(base: Path, tuned: Path) -> None:
    """See that two folders hold the same model but for its numbers.

    Raises:
        InputError: a folder is no complete model; a tensor's name or shape, a module with weights, or an m3 head, is in
            only one of them.
    """
    for folder in (base, tuned):
        check_model_folder(folder)
    ours, theirs = weights_folders(base), weights_folders(tuned)
    if len(ours) != len(theirs):
        raise InputError(
            f"modules with weights: {len(ours)} in base, {len(theirs)} in tuned",
            where=tuned,
            fix="merge a model with its own base",
        )
    for one, other in zip(ours, theirs, strict=True):
        _check_shapes(one, other)
    for head in HEADS:
        if (base / head).is_file() != (tuned / head).is_file():
            raise InputError(
                f"{head} is in only one of {base} and {tuned}",
                fix="a new head has no base to be mixed with: give the base the head that the training started from",
            )


def _check_shapes(base: Path, tuned: Path) -> None:
    with _shapes(base) as before, _shapes(tuned) as after:
        for name in sorted(before.keys() ^ after.keys()):
            if any(part in name for part in UNUSED):
                continue
            there, missing = (base, tuned) if name in before else (tuned, base)
            raise InputError(
                f"tensor {name} is in {there}, but not in {missing}", fix="merge a model with its own base"
            )
        for name in sorted(before.keys() & after.keys()):
            if before[name] != after[name]:
                raise InputError(
                    f"tensor {name} has the shape {before[name]} in base, {after[name]} in tuned",
                    where=tuned,
                    fix="merge a model with its own base",
                )


def copy_files(tuned: Path, out: Path) -> None:
    """All of a model folder but its weights: configuration, tokenizer, and the folders of sentence-transformers' modules."""
    inner = weights_folders(tuned)[0]
    for folder in dict.fromkeys((tuned, inner)):
        place = out / folder.relative_to(tuned)
        place.mkdir(parents=True, exist_ok=True)
        for pattern in KEPT:
            for file in folder.glob(pattern):
                shutil.copyfile(file, place / file.name)
    for module in _modules(tuned):
        if module.get("path") and tuned / module["path"] != inner and (tuned / module["path"]).is_dir():
            shutil.copytree(tuned / module["path"], out / module["path"], ignore=shutil.ignore_patterns(*WEIGHTS))


def mixed(base: Any, tuned: Any, weight: float) -> Any:
    """w · tuned + (1 − w) · base in float32 and tuned's own type; what is not a float is tuned's. 0 and 1 are exact."""
    if not tuned.is_floating_point() or weight == 1:
        return tuned
    if weight == 0:
        return base.to(tuned.dtype)
    return (weight * tuned.float() + (1 - weight) * base.float()).to(tuned.dtype)


def weights_folders(folder: Path) -> list[Path]:
    """Where the weights lie: the folder, or its first module's, and those of its further modules that have some (Dense)."""
    modules = _modules(folder)
    files = (f for m in modules[1:] if m.get("path") for f in sorted((folder / m["path"]).rglob("*")))
    further = dict.fromkeys(f.parent for f in files if f.name in WEIGHTS)
    return [folder / modules[0]["path"] if modules else folder, *further]


def _modules(folder: Path) -> list[dict[str, Any]]:
    """What modules.json says, if it is there."""
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    return modules if isinstance(modules, list) else []


def _merged(
    before: Mapping[str, Callable[[], Any]], after: Mapping[str, Callable[[], Any]], weight: float
) -> Iterator[tuple[str, Any]]:
    for name in after:
        own = after[name]()
        yield name, mixed(before[name](), own, weight) if name in before else own


def write_weights(folder: Path, tensors: Iterable[tuple[str, Any]], shard: int = SHARD) -> None:
    """model.safetensors, or numbered files with their index, as transformers reads them."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    parts: list[list[str]] = []
    total = size = 0
    held: dict[str, Any] = {}

    def flush() -> None:
        parts.append(list(held))
        save_file(held, folder / f"part-{len(parts)}.safetensors", metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > shard:
            flush()
            size = 0
        held[name] = tensor.contiguous()
        size, total = size + bytes_, total + bytes_
    flush()
    if len(parts) == 1:
        (folder / "part-1.safetensors").rename(folder / "model.safetensors")
        return
    file_of: dict[str, str] = {}
    for i, names in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / file)
        file_of |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _merge_head(base: Path, tuned: Path, weight: float, out: Path) -> None:
    import torch

    before, after = (torch.load(p, map_location="cpu", weights_only=True) for p in (base, tuned))
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        raise InputError(f"has other shapes than that of {tuned.parent}", where=base)
    written = io.BytesIO()  # torch.save to a file does not say that the disk is full
    torch.save({name: mixed(before[name], after[name], weight) for name in after}, written)
    out.write_bytes(written.getbuffer())


@contextmanager
def _tensors(folder: Path) -> Iterator[Mapping[str, Callable[[], Any]]]:
    """name → what reads that tensor; from safetensors one at a time, from pytorch_model.bin mapped into memory.

    Tied tensors come as copies: no two share memory, which safetensors would not write.
    """
    import torch
    from safetensors import safe_open

    with ExitStack() as opened:
        found: dict[str, Callable[[], Any]] = {}
        for file in _files(folder):
            if file.suffix == ".safetensors":
                f = opened.enter_context(safe_open(file, "pt"))
                found |= {name: (lambda f=f, name=name: f.get_tensor(name)) for name in f.keys()}  # noqa: SIM118
            else:
                weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
                found |= {name: (lambda t=tensor: t.clone()) for name, tensor in weights.items()}
        yield found


@contextmanager
def _shapes(folder: Path) -> Iterator[dict[str, tuple[int, ...]]]:
    import torch
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in _files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as f:
                found |= {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            found |= {name: tuple(tensor.shape) for name, tensor in weights.items()}
    yield found


def _files(folder: Path) -> list[Path]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return sorted({folder / file for file in read_json(index)["weight_map"].values()})
    raise InputError("has no weights", where=folder)
