"""Which keys the installed DeepSpeed reads in its JSON file: from its source, without importing it (or torch).

Its sections are pydantic models that refuse unknown keys; at the top level it looks up the names that
it knows and never notices another one.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path

# Files that read the top level of the JSON, and where the names in them are bound.
READERS = ("runtime", "comm", "monitor", "profiling", "autotuning", "utils", "compile", "datastates")
SECTIONS = {
    "zero_optimization": "DeepSpeedZeroConfig",
    "zero_optimization.offload_param": "DeepSpeedZeroOffloadParamConfig",
    "zero_optimization.offload_optimizer": "DeepSpeedZeroOffloadOptimizerConfig",
    "fp16": "DeepSpeedFP16Config",
    "bf16": "DeepSpeedBF16Config",
    "bfloat16": "DeepSpeedBF16Config",
    "hybrid_engine": "HybridEngineConfig",
    "compile": "CompileConfig",
    "tensorboard": "TensorBoardConfig",
    "csv_monitor": "CSVConfig",
    "wandb": "WandbConfig",
    "comet": "CometConfig",
}
_LOOKED_IN = ("param_dict", "ds_config", "config", "config_dict", "user_dict")


@dataclass(frozen=True)
class Schema:
    """`sections`: dotted name → its keys. `removed`: dotted name → what DeepSpeed says of it."""

    top: frozenset[str]
    sections: dict[str, frozenset[str]]
    removed: dict[str, str]


@cache
def schema() -> Schema | None:
    """The installed DeepSpeed's; None if it is not installed, or its source says nothing of this kind."""
    spec = util.find_spec("deepspeed")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return read(Path(folders[0])) if folders else None


def read(package: Path) -> Schema | None:
    """The schema in DeepSpeed's source; None without DeepSpeedZeroConfig or any top-level name."""
    files = [
        f for r in READERS for f in sorted((package / r).rglob("*.py")) if "config" in f.stem or f.stem == "constants"
    ]
    trees = {f: ast.parse(f.read_bytes()) for f in files}
    classes = {n.name: n for tree in trees.values() for n in tree.body if isinstance(n, ast.ClassDef)}
    constants: dict[Path, dict[str, str]] = {f: _constants(tree) for f, tree in trees.items()}
    shared = {name: value for f, found in constants.items() if f.stem == "constants" for name, value in found.items()}
    top = {k for f, tree in trees.items() for k in _looked_up(tree, shared | constants[f])}
    top |= {name for name in SECTIONS if "." not in name}
    sections = {s: _fields(classes[c]) for s, c in SECTIONS.items() if c in classes}
    config = trees.get(package / "runtime" / "config.py")
    removed = _texts(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS")
    removed |= {f"zero_optimization.{k}": v for k, v in _texts(config, "_REMOVED_ZERO_CONFIG_KEYS").items()}
    ready = "zero_optimization" in sections and "optimizer" in top
    return Schema(frozenset(top), sections, removed) if ready else None


def _constants(tree: ast.Module) -> dict[str, str]:
    """NAME = "text" at the top of a module."""
    found: dict[str, str] = {}
    for s in tree.body:
        if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str):
            found |= {t.id: s.value.value for t in s.targets if isinstance(t, ast.Name)}
    return found


def _looked_up(tree: ast.Module, constants: dict[str, str]) -> set[str]:
    """Keys of the JSON's top level: d[KEY], KEY in d, d.get(KEY), get_scalar_param(d, KEY, …)."""
    keys: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_top(node.value):
            keys.append(node.slice)
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In) and _is_top(node.comparators[0]):
            keys.append(node.left)
        elif isinstance(node, ast.FunctionDef):
            keys += node.args.defaults  # get_x(param_dict, key=KEY)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and _is_top(node.func.value):
                keys += node.args[:1]
            elif len(node.args) > 1 and _is_top(node.args[0]):
                keys.append(node.args[1])
    words = [constants.get(k.id) if isinstance(k, ast.Name) else getattr(k, "value", None) for k in keys]
    return {w for w in words if isinstance(w, str)}


def _is_top(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "keys":
        node = node.func.value
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return name.lstrip("_") in _LOOKED_IN


def _fields(node: ast.ClassDef) -> frozenset[str]:
    """A pydantic model's fields and their aliases."""
    found = set()
    for s in node.body:
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name):
            given = s.value.keywords if isinstance(s.value, ast.Call) else []
            found |= {s.target.id}
            found |= {str(k.value.value) for k in given if k.arg == "alias" and isinstance(k.value, ast.Constant)}
    return frozenset(found)


def _texts(tree: ast.Module | None, name: str) -> dict[str, str]:
    """A dict literal's keys, and the plain text in its values."""
    for s in tree.body if tree else ():
        if isinstance(s, ast.Assign) and isinstance(s.value, ast.Dict) and _is_name(s.targets[0], name):
            pairs = zip(s.value.keys, s.value.values, strict=True)
            return {str(k.value): _plain(v) for k, v in pairs if isinstance(k, ast.Constant)}
    return {}


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _plain(node: ast.expr) -> str:
    parts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
    return parts[0].strip().removesuffix(" See") if parts else "removed"
