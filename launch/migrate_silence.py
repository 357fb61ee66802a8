"""What a command does not say: the trainer's defaults, where launch.yaml or a recipe would decide otherwise."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from factory.errors import InputError
from launch.config import LaunchConfig
from launch.contract import OWNED, warmup_name
from launch.migrate_words import Option
from launch.migration import Draft, is_there, scalar
from launch.recipes import Situation, recipe_arguments, words

# What the trainer does when it is not told (its own and transformers' defaults, where launch.yaml or
# a recipe may differ). gradient_checkpointing is not here: it changes memory, not what is learned.
UNTOLD: dict[str, Any] = {
    "num_train_epochs": 3,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 8,
    "train_group_size": 8,
    "query_max_len": 32,
    "passage_max_len": 128,
    "temperature": 0.02,
    "seed": 42,
    "sentence_pooling_method": "cls",
    "normalize_embeddings": True,
    "dataloader_drop_last": False,
    "warmup_ratio": 0,  # under the installed trainer's name for it
    "negatives_cross_device": False,
    "unified_finetuning": False,
    "use_self_distill": False,
    "self_distill_start_step": -1,
    "knowledge_distillation": False,
}
UNTOLD_IF_SAVING = {"save_strategy": "steps", "save_steps": 500, "save_total_limit": None}
EMBEDDERS_ONLY = {"sentence_pooling_method", "temperature", "normalize_embeddings", "negatives_cross_device"}
PICKED = "bge-launch takes bf16, or fp16 where the GPU has no bf16; `fp16: true` under `arguments:` would force it"
IN_FP32 = (
    "neither fp16 nor bf16 was asked for; on a GPU bge-launch takes bf16. `fp16: false` under `arguments:` keeps fp32"
)


def lengths(draft: Draft, module: str) -> None:
    """Today's reranker takes max_len and never reads it: a pair gets query_max_len + passage_max_len tokens."""
    if draft.recipe != "reranker":
        return
    total = draft.arguments.pop("max_len", None)
    if module == "FlagEmbedding.reranker.run" and isinstance(total or 512, int):
        query = (total or 512) // 4
        draft.keys |= {"query_max_len": query, "passage_max_len": (total or 512) - query}
        why = f"a pair has query_max_len + passage_max_len = {total or 512} tokens now; a quarter for the query"
        draft.change(f"--max_len {total or '(512)'}", f"query_max_len: {query}", why)
        draft.told |= {"query_max_len", "passage_max_len"}
    elif total is not None:
        draft.change(f"--max_len {total}", "", "the trainer takes it and never reads it")


def precision(draft: Draft) -> None:
    """Leaves fp16 to bge-launch, keeps an explicit bf16 or "no", and says that fp32 is another matter."""
    asked = {name for name in ("fp16", "bf16") if name in draft.arguments}
    if draft.arguments.get("fp16") is True:
        draft.arguments = {k: v for k, v in draft.arguments.items() if k not in asked}
        draft.change("--fp16", "", PICKED)
    elif not asked:
        draft.notes.append(IN_FP32)


def untold(draft: Draft) -> None:
    """Makes the command's silence explicit where a recipe would decide otherwise, and drops what it sets anyway."""
    rows = _recipe_rows(draft)
    silent = dict(UNTOLD)
    if draft.arguments.get("knowledge_distillation") is True:
        silent["kd_loss_type"] = "kl_div"
    if draft.told & set(UNTOLD_IF_SAVING):
        strategy = draft.arguments.get("save_strategy", "steps")
        needed = {"steps": set(UNTOLD_IF_SAVING), "no": set()}.get(str(strategy), {"save_total_limit"})
        silent |= {name: value for name, value in UNTOLD_IF_SAVING.items() if name in needed}
    for silent_name, value in silent.items():
        name = warmup_name(draft.names) if silent_name == "warmup_ratio" else silent_name
        key = OWNED.get(name)
        if name in draft.told or (draft.recipe == "reranker" and name in EMBEDDERS_ONLY):
            continue
        if key:
            default = LaunchConfig.model_fields[key].default
            if default != value:
                draft.keys[key] = value
                ours = "what the model's folder says" if default is None else default
                draft.change(f"no --{name}", f"{key}: {value}", f"the trainer's default; launch.yaml's is {ours}")
            continue
        others = {" ".join(row[name]) for row in rows if name in row and not _same(value, row[name])}
        if others:
            draft.arguments[name] = value
            why = f"the trainer's default; the recipe sets {' or '.join(sorted(others))}"
            draft.change(f"no --{name}", f"arguments.{name}: {value}", why)
    _leave_to_the_recipe(draft, rows)
    on = draft.arguments.get("same_dataset_within_batch") is True
    if on and not {"query_instruction_for_retrieval", "query_instruction_for_rerank"} & draft.told:
        draft.notes.append("the command trained on 'None' + query (no query instruction); launch.yaml has an empty one")


def _leave_to_the_recipe(draft: Draft, rows: list[dict[str, tuple[str, ...]]]) -> None:
    """Takes out the arguments that the recipe sets to the same value in any case; a note names them."""
    same = []
    for name, value in list(draft.arguments.items()):
        if all(name in row and _same(value, row[name]) for row in rows):
            del draft.arguments[name]
            translated = [c.given for c in draft.changes if c.now.startswith(f"arguments.{name}:")]
            draft.changes = [c for c in draft.changes if c.given not in translated]
            same += translated or [f"--{name} {value}"]
    if same:
        draft.notes.append(f"the recipe sets these itself, to the same value: {', '.join(same)}")


def _recipe_rows(draft: Draft) -> list[dict[str, tuple[str, ...]]]:
    """What the recipe sets, on every kind of machine and data that there may be."""
    config = LaunchConfig.model_construct(recipe=draft.recipe, **draft.keys)  # type: ignore[arg-type]
    processes = draft.hardware.get("nproc_per_node", "auto")
    sizes = (1, 2) if processes == "auto" else (processes * draft.hardware.get("nnodes", 1),)
    found = []
    for size, device, scored, updates in itertools.product(sizes, ("cpu", "cuda"), (False, True), (1, 10**6)):
        at = Situation(
            model=Path("model"),
            deepspeed=None,
            cache=Path("cache"),
            data=(),
            pooling="cls",
            device=device,  # type: ignore[arg-type]
            world_size=size,
            precision="fp32",
            fully_scored=scored,
            trackers=("tensorboard",) if scored else (),
            names=draft.names,
        )
        found.append({a.name: a.words for a in recipe_arguments(config, at, updates)})
    return found


def _same(value: Any, there: tuple[str, ...]) -> bool:
    ours = tuple(str(scalar(w)) for w in words(value))
    return ours == tuple(str(scalar(w)) for w in there)


def lacking(missing: list[str], given: list[Option], line: int) -> InputError:
    """What the command does not give, or gives as a placeholder or without a value."""
    empty = [option for option in given if option.name in missing]
    absent = [f"--{name}" for name in missing if name not in {o.name for o in empty}]
    said = [f"no value for --{o.name}, only {o.values[0].text if o.values else 'the name'}" for o in empty]
    if absent:
        said.append(f"no {' and no '.join(absent)}, only {', '.join(o.name for o in given) or 'nothing'}")
    fix = "write the value into the command" if empty else "add it to the command, with its value"
    return InputError(f"the command gives {'; and '.join(said)}", where=f"line {line}", fix=fix)


def missing_paths(draft: Draft) -> None:
    """A note for each path that is not there; no error, for the command may have been run elsewhere."""
    data = draft.keys["train_data"]
    absent = [p for p in ([data] if isinstance(data, str) else data) if not is_there(draft, p)]
    draft.notes += [f"train_data: {path}: not there, seen from where the command was run" for path in absent]
    if not is_there(draft, draft.keys["model"]):
        why = "no such folder, seen from where the command was run; put it there first, nothing is downloaded"
        draft.notes.append(f"model: {draft.keys['model']}: {why}")
