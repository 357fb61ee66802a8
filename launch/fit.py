"""What to change so that a run fits onto the GPU, and what each change costs. Without torch, like launch/memory.py."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Literal

from factory.errors import InputError
from launch.base_model import read_json
from launch.config import Frozen
from launch.memory import GIB, Memory, ModelShape, Setting, estimate, shape_of

if TYPE_CHECKING:
    from launch.plan import LaunchPlan

SHOWN = 3  # proposals in `advice`


class Proposal(Frozen):
    """A setting, what it needs, and in words what each change costs. `limit`: bytes that it may take."""

    setting: Setting
    memory: Memory
    limit: int
    costs: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether it stays below the limit."""
        return self.memory.total <= self.limit

    def __str__(self) -> str:
        needs = f"{self.memory.total / GIB:.1f} GiB"
        lines = [f"  - {cost}" for cost in self.costs]
        if self.fits:
            return "\n".join([f"fits, {needs}" + (" with" if lines else ": nothing to change"), *lines])
        most = max(self.memory.parts, key=lambda p: p.bytes)
        end = f"mostly {most.name}, {most.bytes / GIB:.1f} GiB: {most.reason}"
        return "\n".join([f"nothing fits into {self.limit / GIB:.1f} GiB; the least is {needs}, {end}", *lines])


def propose(shape: ModelShape, setting: Setting, gpu_bytes: int, headroom: float = 0.1) -> list[Proposal]:
    """Settings that fit, the one with the fewest costs first; the setting itself alone if it fits.

    Changes in the order of their cost: checkpointing, sub_batch_size, ZeRO-1 (several GPUs), and last a smaller batch,
    which is the only one that takes negatives away. A setting that changes more than another one needs to is left out.
    If nothing fits, the only proposal is the smallest one, with `fits` false. InputError for ZeRO-3 with m3.

    Args:
        shape: the model.
        setting: the wanted one.
        gpu_bytes: the GPU's memory.
        headroom: share of it to leave free, for what the estimate does not know.
    """
    limit = int(gpu_bytes * (1 - headroom))
    levels = [range(len(choices)) for choices in _choices(setting)]
    found: dict[tuple[int, ...], Proposal] = {}
    tried: list[Proposal] = []
    for level in product(*levels):
        if any(all(a <= b for a, b in zip(other, level, strict=True)) for other in found):
            continue
        made = _change(shape, setting, level, limit)
        if made.fits:
            found[level] = made
        tried.append(made)
    return list(found.values()) or [min(tried, key=lambda p: p.memory.total)]


def _choices(setting: Setting) -> tuple[list[int], list[bool], list[int | None], list[bool]]:
    """Batch sizes, ZeRO-1, sub-batch sizes, checkpointing; each from what is set to what costs most."""
    texts = setting.batch_size * setting.group_size
    halves = range(setting.batch_size.bit_length())
    batches = [setting.batch_size >> k for k in halves]
    zero = [False, True] if setting.world_size > 1 and not setting.zero_stage else [False]
    top = min(setting.sub_batch_size or texts, texts)
    subs: list[int | None] = [setting.sub_batch_size]
    if setting.recipe != "reranker":  # it ignores the argument
        subs += [2**k for k in reversed(range(top.bit_length())) if 2**k < top]
    return batches, zero, subs, [False] if setting.checkpointing else [False, True]


def _change(shape: ModelShape, setting: Setting, level: tuple[int, ...], limit: int) -> Proposal:
    batches, zeros, subs, checkpointings = _choices(setting)
    batch, zero, sub = batches[level[0]], zeros[level[1]], subs[level[2]]
    update: dict[str, object] = {}
    costs = []
    if checkpointings[level[3]]:
        update["checkpointing"] = True
        costs.append("gradient_checkpointing: about a third more time, for a second forward pass")
    if level[2]:
        update["sub_batch_size"] = sub
        costs.append(f"sub_batch_size: {sub}: so many texts at a time, which is slower")
        longest = max(setting.query_len, setting.passage_len)
        if setting.recipe == "m3-unified" and (setting.pad_to_multiple_of or 0) < longest:
            update["pad_to_multiple_of"] = longest
            why = "pads every text, queries too; without it m3 stops when two sub-batches differ in length"
            costs.append(f"pad_to_multiple_of: {longest}: {why}")
    if zero:
        update["zero_stage"] = 1
        costs.append(f"deepspeed: stage1: 16-bit weights, Adam's states spread over {setting.world_size} GPUs")
    if level[0]:
        update["batch_size"] = batch
        costs.append(_fewer(setting, batch))
    changed = setting.model_copy(update=update)
    return Proposal(setting=changed, memory=estimate(shape, changed), limit=limit, costs=tuple(costs))


def _fewer(setting: Setting, batch: int) -> str:
    """What a smaller batch costs. In-batch negatives are other queries' passages; accumulation adds none."""
    old, group = setting.batch_size, setting.group_size
    head, steps = f"batch_size: {old} → {batch}: ", f"; steps {old / batch:.3g}×"
    if setting.recipe == "reranker":
        return f"{head}no negatives lost, and gradient_accumulation_steps makes up for it{steps}"
    world = setting.world_size if setting.cross_device else 1
    lost = f"negatives per query in batch {(old * world - 1) * group} → {(batch * world - 1) * group}"
    if setting.recipe == "m3-unified" and world > 1:
        lost += f" (sparse and ColBERT: {(old - 1) * group} → {(batch - 1) * group})"
    return f"{head}{lost}{steps}"


def setting_of(plan: LaunchPlan) -> Setting:
    """The setting of a plan without errors. InputError for a recipe whose memory is not estimated."""
    if plan.recipe == "matryoshka":
        fix = "if the GPU runs out, lower arguments.mini_batch_size: the encoder never holds more texts at a time"
        raise InputError("the memory of `recipe: matryoshka` is not estimated", fix=fix)

    def number(name: str) -> int | None:
        value = int(plan.value(name) or 0)
        return value if value > 0 else None

    zero = read_json(plan.deepspeed).get("zero_optimization") if plan.deepspeed else None
    zero = zero if isinstance(zero, dict) else {}
    unified = plan.recipe == "m3-unified" and plan.on("unified_finetuning")
    recipe: Literal["base", "m3-unified", "reranker"] = "m3-unified" if unified else "base"
    return Setting(
        recipe="reranker" if plan.recipe == "reranker" else recipe,
        precision="bf16" if plan.on("bf16") else "fp16" if plan.on("fp16") else "fp32",
        batch_size=number("per_device_train_batch_size") or 1,
        group_size=number("train_group_size") or 1,
        query_len=number("query_max_len") or 1,
        passage_len=number("passage_max_len") or 1,
        world_size=plan.world_size,
        zero_stage=zero.get("stage", 0) if plan.deepspeed else None,
        offload=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        checkpointing=plan.on("gradient_checkpointing") or plan.on("activation_checkpointing"),
        sub_batch_size=number("sub_batch_size"),
        cross_device=plan.on("negatives_cross_device"),
        pad_to_multiple_of=number("pad_to_multiple_of"),
        accumulation=number("gradient_accumulation_steps") or 1,
    )


def advice(plan: LaunchPlan, gpu_gib: float) -> str:
    """The estimate for a plan without errors as a table, and what to change if it does not fit into `gpu_gib` GiB."""
    shape, setting = shape_of(read_json(plan.model / "config.json")), setting_of(plan)
    proposals = propose(shape, setting, int(gpu_gib * GIB))
    return "\n".join([estimate(shape, setting).table(), *map(str, proposals[:SHOWN])])
