"""The memory estimate: published numbers, what FlagEmbedding's own models allocate, and proposals that really fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.memory import CONFIG, SETTINGS, write_config
from factory.errors import InputError
from launch.config import load_config
from launch.contract import Contract
from launch.fit import advice, propose, setting_of
from launch.memory import GIB, Memory, ModelShape, Part, Setting, estimate, moments, shape_of, trained
from launch.plan import LaunchPlan, Machine, make_plan

ROOT = Path(__file__).resolve().parent.parent
BERT = {"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 30522,
        "num_attention_heads": 12, "max_position_embeddings": 512, "type_vocab_size": 2}  # fmt: skip
M3 = shape_of(CONFIG)
SMALL = shape_of(CONFIG | {"num_hidden_layers": 12, "hidden_size": 384, "intermediate_size": 1536})
ODD_SHAPE = shape_of(BERT | {"num_hidden_layers": 6, "intermediate_size": 2048, "max_position_embeddings": 8194})


def setting(recipe: Any = "m3-unified", batch: int = 8, group: int = 8, length: int = 512, **more: Any) -> Setting:
    settings = {"precision": "bf16", "batch_size": batch, "group_size": group, "query_len": 64, "passage_len": length}
    return Setting(recipe=recipe, **(settings | more))


def named(memory: Memory, name: str) -> Part:
    return next(p for p in memory.parts if p.name == name)


def gib(parts: tuple[Part, ...]) -> float:
    return sum(p.bytes for p in parts) / GIB


# Published numbers


def test_parameters_are_those_of_the_known_models() -> None:
    assert M3.parameters == 567_754_752  # bge-m3
    assert shape_of(CONFIG | {"max_position_embeddings": 514}).parameters == 559_890_432  # XLM-R large
    assert shape_of(BERT).parameters == 109_482_240  # BERT base
    assert trained(M3, "m3-unified") == 568_805_377  # with sparse_linear.pt and colbert_linear.pt


@pytest.mark.parametrize(("texts", "length", "published"), [(16, 512, 3.8), (6, 2048, 5.7), (128, 512, 30.5)])
def test_sparse_head_is_two_of_the_published_tensors(texts: int, length: int, published: float) -> None:
    memory = estimate(M3, setting(batch=1, group=texts, length=length, precision="fp16"))
    assert named(memory, "sparse head").bytes / GIB / 2 == pytest.approx(published, abs=0.05)


def test_published_10_6_gib_of_states_are_20_bytes_a_parameter() -> None:
    """DeepSpeed 0 in the optimizer's step: 2 + 2 + 4 + 4 + 8. Plain DDP at the end of backward too: 4 + 4 + 4 + 8."""
    step = moments(M3, setting(zero_stage=0))["the optimizer's step"]
    assert gib(tuple(p for p in step if p.name != "Adam's work space")) == pytest.approx(10.6, abs=0.05)
    end = moments(M3, setting(world_size=2))["the end of the backward pass"]
    assert gib(tuple(p for p in end if p.name != "second gradient")) == pytest.approx(10.6, abs=0.05)


# Peak of live bytes in forward and backward of FlagEmbedding 1.4.2's own models under torch's FakeTensorMode (weights,
# gradients, activations; no optimizer), on transformers 5.23 and torch 2.13, every text at its full length, padding
# mask on, dropout as on a GPU (a mask of one byte).
SEEN = [
    (M3, setting(), 71_275_762_134),
    (M3, setting(checkpointing=True, sub_batch_size=8), 11_103_375_894),
    (M3, setting(query_len=512, sub_batch_size=8), 46_919_747_094),
    (M3, setting(checkpointing=True, zero_stage=0), 35_755_368_882),
    (M3, setting(batch=2, group=3, length=2048, zero_stage=0), 25_100_530_858),
    (M3, setting(batch=1, group=2, length=8192, query_len=128, checkpointing=True), 21_215_961_350),
    (M3, setting(batch=2, group=4, checkpointing=True, precision="fp32"), 10_931_366_396),
    (M3, setting("base"), 38_894_344_272),
    (M3, setting("base", precision="fp32"), 58_757_083_224),
    (M3, setting("base", batch=64, checkpointing=True, sub_batch_size=16), 31_783_668_240),
    (M3, setting("base", batch=32, zero_stage=0), 117_458_827_416),
    (M3, setting("base", batch=4, attention="eager"), 43_611_631_664),
    (M3, setting("base", batch=4, attention="eager", checkpointing=True), 6_468_642_872),
    (M3, setting("reranker", batch=16, zero_stage=0), 65_825_583_132),
    (shape_of(CONFIG | {"num_hidden_layers": 4}), setting("base", batch=2, group=4), 3_547_042_840),  # gradients
    (ODD_SHAPE, setting(batch=32, group=4, query_len=512, checkpointing=True), 10_708_766_294),  # token scores
    (ODD_SHAPE, setting("base", batch=16, group=4, query_len=512, length=64, zero_stage=0), 1_872_008_792),
]


@pytest.mark.parametrize(("shape", "wanted", "seen"), SEEN)
def test_agrees_with_what_the_models_really_allocate(shape: ModelShape, wanted: Setting, seen: int) -> None:
    before_the_step = list(moments(shape, wanted).values())[:-1]
    sums = [sum(p.bytes for p in parts if p.name != "optimizer states") for parts in before_the_step]
    assert max(sums) == pytest.approx(seen, rel=0.04)


def test_every_part_counts_and_the_table_begins_with_the_largest() -> None:
    memory = estimate(M3, setting())
    assert memory.total == sum(p.bytes for p in memory.parts)
    lines = memory.table().splitlines()
    assert lines[0] == f"{memory.total / GIB:.1f} GiB on each GPU, most during the heads' forward pass"
    assert lines[1].startswith("activations of the passages") and lines[2].startswith("sparse head")
    assert len(lines) == len(memory.parts) + 1


def test_sub_batches_shrink_the_sparse_head_and_leave_the_activations() -> None:
    whole, chunks = estimate(M3, setting()), estimate(M3, setting(sub_batch_size=8))
    assert named(whole, "sparse head").bytes == 8 * named(chunks, "sparse head").bytes
    assert named(whole, "activations of the passages").bytes == named(chunks, "activations of the passages").bytes


def test_padding_to_a_multiple_lengthens_the_queries_too() -> None:
    padded = estimate(M3, setting(pad_to_multiple_of=512, sub_batch_size=8))
    assert padded == estimate(M3, setting(query_len=512, pad_to_multiple_of=512, sub_batch_size=8))


def test_accumulation_keeps_the_gradients_through_the_forward_pass() -> None:
    once, often = (estimate(M3, setting(accumulation=n)) for n in (1, 4))
    assert set(often.parts) - set(once.parts) >= {named(often, "gradients")}
    assert named(often, "gradients").bytes == 4 * trained(M3, "m3-unified")


def test_zero_divides_the_optimizer_and_offload_empties_it() -> None:
    one, eight = (estimate(M3, setting(zero_stage=1, world_size=n)) for n in (1, 8))
    assert named(one, "optimizer states").bytes == pytest.approx(8 * named(eight, "optimizer states").bytes, abs=96)
    offloaded = estimate(M3, setting(zero_stage=1, offload=True))
    assert "optimizer states" not in [p.name for p in offloaded.parts]
    with pytest.raises(ValidationError, match="offload needs zero_stage"):
        setting(zero_stage=0, offload=True)


def test_zero_1_on_one_gpu_needs_more_than_stage_0() -> None:
    """FlagEmbedding#1277: ZeRO-1's bucket of 0.9 GiB is allocated whole, and one GPU has nobody to share with."""
    small = {"batch": 1, "group": 2, "length": 64, "checkpointing": True}
    ends = [moments(M3, setting("base", zero_stage=n, **small))["the end of the backward pass"] for n in (1, 0)]
    assert gib(ends[0]) - gib(ends[1]) > 0.9


def test_other_models_are_refused() -> None:
    with pytest.raises(InputError, match="got model_type 'qwen2'"):
        shape_of({"model_type": "qwen2"})
    with pytest.raises(InputError, match="no hidden_size, vocab_size"):
        shape_of({k: v for k, v in CONFIG.items() if k not in ("hidden_size", "vocab_size")})


def any_setting(**fixed: Any) -> st.SearchStrategy[Setting]:
    free = {"recipe": st.sampled_from(["base", "m3-unified", "reranker"]), "precision": st.sampled_from(["fp32", "bf16"]),
            "batch_size": st.integers(1, 64), "group_size": st.integers(1, 16), "query_len": st.integers(2, 1024),
            "passage_len": st.integers(2, 4096), "world_size": st.integers(1, 16), "checkpointing": st.booleans(),
            "zero_stage": st.sampled_from([None, 0, 1, 2]), "sub_batch_size": st.none() | st.integers(1, 64),
            "cross_device": st.booleans(), "attention": st.sampled_from(["sdpa", "eager"])}  # fmt: skip
    return st.builds(Setting, **(free | {k: st.just(v) for k, v in fixed.items()}))


def total(shape: ModelShape, wanted: Setting, **changes: Any) -> int:
    return estimate(shape, wanted.model_copy(update=changes)).total


SHAPES = st.sampled_from([M3, SMALL, ODD_SHAPE, shape_of(BERT)])


@given(SHAPES, any_setting(), st.integers(1, 100))
@hypothesis_settings(deadline=None, max_examples=60)
def test_more_of_anything_never_needs_less(shape: ModelShape, wanted: Setting, more: int) -> None:
    before = total(shape, wanted)
    for name in ("batch_size", "group_size", "query_len", "passage_len"):
        assert total(shape, wanted, **{name: getattr(wanted, name) + more}) >= before, name


@given(SHAPES, any_setting())
@hypothesis_settings(deadline=None, max_examples=60)
def test_checkpointing_and_smaller_sub_batches_never_need_more(shape: ModelShape, wanted: Setting) -> None:
    assert total(shape, wanted, checkpointing=True) <= total(shape, wanted, checkpointing=False)
    sizes = [total(shape, wanted, sub_batch_size=n) for n in (None, 64, 8, 1)]
    assert sizes == sorted(sizes, reverse=True)


@given(SHAPES, any_setting(cross_device=False), st.integers(2, 8), st.integers(1, 8))
@hypothesis_settings(deadline=None, max_examples=60)
def test_zero_1_on_more_gpus_never_needs_more(shape: ModelShape, wanted: Setting, few: int, more: int) -> None:
    """From two GPUs on, since NCCL comes with the second; without the scores that cross devices."""
    a, b = (total(shape, wanted, zero_stage=1, world_size=n) for n in (few, few + more))
    assert b <= a


# Proposals

WORDS = {"checkpointing": "gradient_checkpointing", "zero_stage": "deepspeed"}
WORDS |= {name: name for name in ("sub_batch_size", "pad_to_multiple_of", "batch_size")}


@given(SHAPES, any_setting(), st.integers(2, 140))
@hypothesis_settings(deadline=None, max_examples=40)
def test_proposals_fit_and_name_all_that_they_change(shape: ModelShape, wanted: Setting, gpu: int) -> None:
    proposals = propose(shape, wanted, gpu * GIB)
    assert proposals
    for p in proposals:
        assert p.memory == estimate(shape, p.setting)
        assert p.fits == (p.memory.total <= 0.9 * gpu * GIB)
        assert p.fits or len(proposals) == 1
        before, after = wanted.model_dump(), p.setting.model_dump()
        changed = {WORDS[k] for k in before if before[k] != after[k]}  # KeyError: something else changed
        assert changed == {cost.split(":")[0] for cost in p.costs}
    if total(shape, wanted) <= 0.9 * gpu * GIB:
        assert [p.setting for p in proposals] == [wanted]


def test_the_first_proposal_keeps_the_negatives_where_any_does() -> None:
    wanted = setting(world_size=4, cross_device=True)
    costs = [p.costs for p in propose(M3, wanted, 80 * GIB)]
    first = [c[0].split(":")[0] for c in costs]
    assert first == ["gradient_checkpointing", "sub_batch_size", "deepspeed", "batch_size"]
    assert costs[0] == ("gradient_checkpointing: about a third more time, for a second forward pass",)
    assert "negatives per query in batch 248 → 120 (sparse and ColBERT: 56 → 24); steps 2×" in costs[3][0]


def test_a_smaller_batch_says_how_many_negatives_it_loses() -> None:
    made = propose(M3, setting("base", checkpointing=True, sub_batch_size=1, length=8192), 48 * GIB)
    assert made[0].setting.batch_size == 4
    assert made[0].costs == ("batch_size: 8 → 4: negatives per query in batch 56 → 24; steps 2×",)


def test_sub_batches_of_m3_come_with_padding() -> None:
    """m3's encode concatenates ColBERT vectors of the sub-batches, which must be of the same length (seen to fail)."""
    (made,) = [p for p in propose(M3, setting(checkpointing=True), 24 * GIB) if len(p.costs) == 2]
    assert made.setting.pad_to_multiple_of == 512 and made.setting.sub_batch_size == 16
    assert "m3 stops when two sub-batches differ in length" in made.costs[1]


def test_the_reranker_loses_no_negatives_and_gets_no_sub_batches() -> None:
    made = propose(M3, setting("reranker", batch=16, group=16), 40 * GIB)
    assert all(p.fits and p.setting.sub_batch_size is None for p in made)
    assert "no negatives lost" in made[-1].costs[-1]


def test_where_nothing_fits_the_smallest_need_and_its_cause_are_told() -> None:
    (made,) = propose(M3, setting(), 4 * GIB)
    smallest = setting(batch=1, checkpointing=True, sub_batch_size=1, pad_to_multiple_of=512)
    assert not made.fits and made.memory.total == estimate(M3, smallest).total
    assert made.setting.batch_size == 2  # already as small: what stays is the states
    least = made.memory.total / GIB
    assert str(made).startswith(
        f"nothing fits into 3.6 GiB; the least is {least:.1f} GiB, mostly optimizer states, 4.2"
    )


def test_zero_3_is_refused_for_m3_and_never_proposed() -> None:
    for ask in (estimate, lambda shape, wanted: propose(shape, wanted, 80 * GIB)):
        with pytest.raises(InputError, match="ZeRO-3 with m3"):
            ask(M3, setting(zero_stage=3))
    assert all(p.setting.zero_stage != 3 for gpu in (8, 24) for p in propose(M3, setting(world_size=8), gpu * GIB))


NAMES = frozenset({"max_steps", "report_to", "warmup_steps", "gradient_checkpointing", "gradient_checkpointing_kwargs",
                   "sub_batch_size", "pad_to_multiple_of"})  # fmt: skip


def plan(folder: Path, wanted: Setting) -> LaunchPlan:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    config = load_config(write_config(folder, folder / "model", wanted.model_copy(update={"passage_len": 16})))
    config = config.model_copy(update={"passage_max_len": wanted.passage_len})  # long texts take long to write
    return make_plan(config, Machine(gpus=1, bf16=True, cores=8), Contract(NAMES))


def test_a_plan_has_the_setting_that_its_launch_yaml_describes(tmp_path: Path) -> None:
    for wanted in SETTINGS:
        assert setting_of(plan(tmp_path, wanted)) == wanted


def test_advice_is_the_table_and_what_to_change(tmp_path: Path) -> None:
    made = plan(tmp_path, setting(batch=8))
    assert advice(made, 141).splitlines()[-1].startswith("fits, ")
    lines = advice(made, 80).splitlines()
    assert lines[0].endswith("most during the heads' forward pass") and "fits, 44.8 GiB with" in lines


# Without torch, without a GPU


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = "import sys, launch.memory, launch.fit; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_benchmark_is_skipped_without_a_gpu(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--out", str(tmp_path / "out")],
        cwd=ROOT, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (
        run.returncode and run.stderr.strip() == "skipped: no NVIDIA GPU on this machine (nvidia-smi does not answer)"
    )
    assert not (tmp_path / "out").exists()
