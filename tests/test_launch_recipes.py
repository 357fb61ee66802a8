"""The recipes reranker, matryoshka and base with matryoshka_dims: trained on two ranks, and refused with reasons."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.errors import InputError
from launch.config import load_config
from launch.contract import Contract, installed
from launch.finish import LoadFailed, load_test
from launch.fit import setting_of
from launch.migrate import migrate
from launch.plan import LaunchPlan, Machine, make_plan, summary
from launch.preflight import check
from launch.problems import Problem
from launch.recipes import default_dims
from tests.test_launch_run import half, launch, rows, weights, write
from tests.tiny_models import make_tiny_reranker

CPU = Machine(gpus=0, bf16=False, cores=4)
GPUS = Machine(gpus=8, bf16=True, cores=64)
TWO_RANKS = {"device": "cpu", "nproc_per_node": 2}
PAIRS = [("什么是预热温度？", "焊前预热可以减少冷裂纹的产生。"), ("what is number 3 焊接", "coffee 3 is dark")]
Plan = Callable[..., LaunchPlan]


@pytest.fixture(scope="module")
def contracts() -> dict[str, Contract]:
    return {recipe: installed(recipe) for recipe in ("base", "m3-unified", "matryoshka", "reranker")}


@pytest.fixture
def plan(tmp_path: Path, models: Path, contracts: dict[str, Contract]) -> Plan:
    """The plan of a recipe on the model of that name, or on the tiny BERT."""

    def made(recipe: str, machine: Machine = CPU, **keys: Any) -> LaunchPlan:
        model = models / recipe if (models / recipe).is_dir() else models / "bert"
        config = load_config(write(tmp_path, keys.pop("model", model), recipe=recipe, **keys))
        return make_plan(config, machine, contracts[recipe])

    return made


def found(made: LaunchPlan) -> dict[str, Problem]:
    return {p.id: p for p in check(made)}


def logged(out: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"'{name}': '?([0-9.e+-]+)", out)]


# Training


@pytest.mark.slow
def test_two_ranks_train_a_reranker(tmp_path: Path, models: Path) -> None:
    """Scores of teachers are used; the tuned folder gives the same scores in both libraries."""
    import numpy as np
    import torch
    from FlagEmbedding import FlagReranker
    from sentence_transformers import CrossEncoder

    base = models / "reranker"
    keys = {"recipe": "reranker", "hardware": TWO_RANKS, "query_instruction": "query: ", "epochs": 2}
    code, out, err = launch("run", write(tmp_path, base, **keys))
    assert code == 0, err
    tuned = tmp_path / "out" / "tuned"
    manifest = json.loads((tuned / "launch.json").read_text())
    assert (manifest["batch"]["hard_negatives"], manifest["batch"]["in_batch_negatives"]) == (2, 0)
    assert "4/4" in out and "--knowledge_distillation \\\n" not in out
    assert all(0 < loss < 20 for loss in logged(out, "loss"))
    before, after = weights(base), weights(tuned)
    assert before.keys() == after.keys()
    assert not torch.equal(before["classifier.out_proj.weight"], after["classifier.out_proj.weight"])
    assert not (tuned / "1_Pooling").exists() and not (tuned / "modules.json").exists()
    assert json.loads((tuned / "config.json").read_text())["hidden_dropout_prob"] == 0.1

    ours = FlagReranker(str(tuned), use_fp16=False, devices="cpu").compute_score(PAIRS)
    theirs = CrossEncoder(str(tuned), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    untuned = CrossEncoder(str(base), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs - untuned).min() > 1e-4

    (tuned / "model.safetensors").write_bytes(b"no")
    with pytest.raises(LoadFailed, match="does not load"):
        load_test(tuned, "reranker")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["matryoshka", "base"])
def test_two_ranks_train_vectors_that_may_be_cut(tmp_path: Path, models: Path, recipe: str) -> None:
    """The same keys for both trainers; the tuned folder gives the same vectors in both libraries, whole and cut."""
    import numpy as np
    import torch
    from FlagEmbedding import FlagModel
    from sentence_transformers import SentenceTransformer

    keys = {"recipe": recipe, "hardware": TWO_RANKS, "matryoshka_dims": [64, 32, 16], "query_instruction": "query: "}
    arguments = {"mini_batch_size": 3} if recipe == "matryoshka" else {}
    base = half(models / "bert", tmp_path / "half")
    code, out, err = launch("run", write(tmp_path, base, **keys, arguments=arguments))
    assert code == 0, err
    tuned = tmp_path / "out" / "tuned"
    assert json.loads((tuned / "launch.json").read_text())["batch"]["in_batch_negatives"] == 21
    assert "2/2" in out
    if recipe == "matryoshka":
        assert "vectors of 64, 32, 16 dimensions" in out
        each = [logged(out, f"loss_{dim}") for dim in (64, 32, 16)]
        assert len(logged(out, "loss")) == 2
        for loss, *parts in zip(logged(out, "loss"), *each, strict=True):
            assert loss == pytest.approx(sum(parts) / 3, abs=0.01)
            assert len(set(parts)) == 3
    before, after = weights(base), weights(tuned)
    assert before.keys() == after.keys()
    assert {w.dtype for w in after.values()} == {torch.float32}
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(before[name], after[name].half())
    assert "README.md" not in {f.name for f in tuned.iterdir()}  # sentence-transformers' card shows training rows
    assert json.loads((tuned / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    assert not (tuned / ".cache").exists() and not list(tmp_path.glob("out/.*"))

    texts = [text for pair in PAIRS for text in pair]
    for cut in (None, 16):
        theirs = SentenceTransformer(str(tuned), device="cpu", truncate_dim=cut).encode(texts)
        flag = FlagModel(str(tuned), use_fp16=False, devices="cpu", pooling_method="mean", truncate_dim=cut)
        vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (flag.encode(texts), theirs)]
        np.testing.assert_allclose(*vectors, atol=1e-5)
    untuned = SentenceTransformer(str(models / "bert"), device="cpu", truncate_dim=16).encode(texts)
    assert np.abs(theirs - untuned).max() > 1e-3


# What the loss is given


def test_a_group_is_one_positive_and_negatives_that_repeat_only_where_they_must() -> None:
    from launch.matryoshka import draw

    random.seed(1)
    row = {"query": "q", "pos": ["a", "b"], "neg": ["1", "2", "3", "4"]}
    drawn = [draw(row, 4) for _ in range(50)]
    assert {d[0] for d in drawn} == {"a", "b"}
    assert {d[1] for d in drawn} == {"1", "2", "3", "4"}
    assert all(len(set(d[1:])) == 3 for d in drawn)
    assert sorted(draw(row, 9)[1:]) == sorted("12341234")
    assert draw(row, 1)[1:] == []


def test_columns_have_instructions_prompts_and_lengths_of_their_own(models: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from launch.matryoshka import Collator, MatryoshkaArguments

    arguments = MatryoshkaArguments(
        model_name_or_path="",
        train_data=[],
        matryoshka_dims=[64],
        train_group_size=3,
        query_max_len=8,
        passage_max_len=11,
        query_instruction_for_retrieval="ask: ",
        passage_instruction_for_retrieval="text: ",
    )
    model = SentenceTransformer(str(models / "bert"), device="cpu")
    row = {"query": "q" * 30, "pos": ["p"], "neg": ["n" * 30, "n" * 30]}
    batch = Collator(model, arguments)([row, row])
    tokens = {name.removesuffix("_input_ids"): t for name, t in batch.items() if name.endswith("_input_ids")}
    assert list(tokens) == ["query", "passage_0", "passage_1", "passage_2"]
    assert [tokens[name].shape for name in ("query", "passage_1", "passage_2")] == [(2, 8), (2, 11), (2, 11)]
    read = model.tokenizer.decode
    assert "ask: q" in read(tokens["query"][0]) and "text: p" in read(tokens["passage_0"][0])
    prompted = Collator(model, arguments)([row | {"prompt": "find: "}])
    assert "find: q" in read(prompted["query_input_ids"][0]) and "ask" not in read(prompted["query_input_ids"][0])


def test_a_base_that_says_nothing_of_its_modules_is_pooled_as_told(models: Path, tmp_path: Path) -> None:
    import numpy as np

    from launch.matryoshka import MatryoshkaArguments, load_model

    shutil.copytree(models / "bert", tmp_path / "bare")
    (tmp_path / "bare" / "modules.json").unlink()
    for pooling, mode in (("cls", "cls"), ("last_token", "lasttoken")):
        arguments = MatryoshkaArguments(str(tmp_path / "bare"), [], [64], sentence_pooling_method=pooling)
        model = load_model(arguments, "cpu")
        assert [type(m).__name__ for m in model] == ["Transformer", "Pooling", "Normalize"]
        assert model[1].pooling_mode == mode
        assert np.linalg.norm(model.encode(["焊接"])) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1024, (1024, 512, 256, 128, 64)), (4096, (4096, 2048, 1024, 512, 256)), (768, (768, 384, 192, 96)),
     (100, (100,)), (64, (64,)), (32, (32,))],
)  # fmt: skip
def test_default_lengths_are_halves_and_none_is_below_64(width: int, expected: tuple[int, ...]) -> None:
    assert default_dims(width) == expected


# The plan


@pytest.mark.parametrize("recipe", ["matryoshka", "reranker"])
@pytest.mark.parametrize("machine", [CPU, GPUS])
def test_every_argument_has_a_reason_and_is_accepted(plan: Plan, recipe: str, machine: Machine) -> None:
    hardware = {"device": "cuda" if machine.gpus else "cpu"}
    made = plan(recipe, machine, hardware=hardware, batch_size=2, passage_max_len=64)
    assert [p for p in check(made) if p.severity == "error"] == []
    assert all(a.reason for a in made.arguments)
    assert made.on("negatives_cross_device") == (recipe == "matryoshka" and machine.gpus > 0)
    assert made.value("warmup_steps") == "0.1"
    assert made.on("gradient_checkpointing") == (recipe == "reranker" and machine.gpus > 0)


def test_summary_says_what_the_negatives_are_and_which_lengths_are_trained(plan: Plan) -> None:
    facts = summary(plan("reranker"))
    assert "none in batch" in facts["negatives per query"] and "pooling" not in facts
    facts = summary(plan("matryoshka", matryoshka_dims=[64, 16]))
    assert facts["negatives per query"] == "2 hard + 9 in batch"
    assert (facts["lengths of a vector"], facts["pooling"]) == ("64, 16", "mean")
    made = plan("base", matryoshka_dims=[64, 16])
    assert made.on("use_mrl") and summary(made)["lengths of a vector"] == "64, 16"
    assert plan("base").value("use_mrl") is None


def test_lengths_of_vectors_come_from_the_model_if_nobody_says(plan: Plan, tmp_path: Path, models: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text()) | {"hidden_size": 256}
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    made = plan("matryoshka", model=tmp_path / "wide")
    assert next(a.words for a in made.arguments if a.name == "matryoshka_dims") == ("256", "128", "64")


def test_memory_of_a_reranker_is_estimated_that_of_matryoshka_is_not(plan: Plan) -> None:
    assert setting_of(plan("reranker")).recipe == "reranker"
    with pytest.raises(InputError, match="not estimated"):
        setting_of(plan("matryoshka"))


# Mistakes


@pytest.mark.parametrize(
    ("recipe", "given", "nearest"),
    [("matryoshka", "minibatch_size", "mini_batch_size"), ("reranker", "shuffle_ration", "shuffle_ratio")],
)
def test_unknown_arguments_name_the_nearest(plan: Plan, recipe: str, given: str, nearest: str) -> None:
    assert nearest in found(plan(recipe, arguments={given: 1}))["argument.unknown"].fix


@pytest.mark.parametrize(
    ("recipe", "name", "key"),
    [
        ("matryoshka", "matryoshka_dims", "matryoshka_dims"),
        ("reranker", "query_instruction_for_rerank", "query_instruction"),
        ("reranker", "passage_instruction_for_rerank", "passage_instruction"),
    ],
)
def test_arguments_with_a_key_of_their_own_name_it(plan: Plan, recipe: str, name: str, key: str) -> None:
    assert f"`{key}:`" in found(plan(recipe, arguments={name: 1}))["argument.owned"].fix


@pytest.mark.parametrize(
    ("recipe", "dims", "message"),
    [
        ("m3-unified", [64], "m3 trainer cannot"),
        ("reranker", [64], "no vector"),
        ("matryoshka", [16, 64], "smaller than the one before"),
        ("base", [64, 64], "smaller than the one before"),
        ("base", [64, 0], "smaller than the one before"),
        ("base", [], "smaller than the one before"),
        ("base", ["wide"], "matryoshka_dims"),
    ],
)
def test_lengths_that_cannot_be_are_refused_at_load(
    tmp_path: Path, models: Path, recipe: str, dims: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(write(tmp_path, models / "bert", recipe=recipe, matryoshka_dims=dims))
    assert caught.value.where == tmp_path / "launch.yaml"


def test_lengths_are_compared_with_the_model(plan: Plan) -> None:
    for recipe in ("base", "matryoshka"):
        assert "64 numbers" in found(plan(recipe, matryoshka_dims=[128, 64]))["matryoshka.dims"].reason
        assert "whole vector" in found(plan(recipe, matryoshka_dims=[32]))["matryoshka.whole"].reason
    assert found(plan("base", arguments={"use_mrl": True}))["matryoshka.dims"].severity == "error"


def test_the_cached_loss_is_not_started_under_deepspeed(plan: Plan) -> None:
    assert "recipe: base" in found(plan("matryoshka", deepspeed="stage1"))["deepspeed.matryoshka"].fix


def test_a_rerankers_head_is_looked_at(plan: Plan, models: Path, tmp_path: Path) -> None:
    assert found(plan("reranker")) == {}
    assert "random" in found(plan("reranker", model=models / "bert"))["model.head"].reason
    for labels in (2, 3):
        three = make_tiny_reranker(tmp_path / f"labels{labels}", labels=labels)
        assert f"{labels} values" in found(plan("reranker", model=three))["model.labels"].reason


def test_a_pair_must_fit_into_the_model(plan: Plan) -> None:
    assert found(plan("reranker", query_max_len=256, passage_max_len=256)) == {}
    fix = found(plan("reranker", query_max_len=256, passage_max_len=300))["model.length"].fix
    assert fix == "set passage_max_len: 256"
    assert "model.length" in found(plan("reranker", passage_max_len=5))
    assert "model.length" not in found(plan("reranker", passage_max_len=8))


def test_short_last_batches_of_a_reranker_are_refused(plan: Plan, models: Path) -> None:
    """What happens without us: two queries of two passages each become four groups of one, which are always right."""
    import torch
    from FlagEmbedding.finetune.reranker.encoder_only.base import CrossEncoderModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = models / "reranker"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = CrossEncoderModel(AutoModelForSequenceClassification.from_pretrained(folder), tokenizer, train_batch_size=4)
    with torch.no_grad():
        assert float(model.train()(tokenizer(["q"] * 4, ["p", "n", "p", "n"], return_tensors="pt")).loss) == 0

    keep = {"arguments": {"dataloader_drop_last": False}}
    assert "batch.mixed-groups" in found(plan("reranker", count=14, **keep))
    assert found(plan("reranker", count=14)) == {}
    assert found(plan("reranker", count=16, **keep)) == {}
    assert found(plan("reranker", count=14, hardware=TWO_RANKS, **keep)) == {}


def test_what_the_rerankers_trainer_never_reads_is_named(plan: Plan, tmp_path: Path) -> None:
    made = plan("reranker", arguments={"max_len": 512})
    assert "max_len" in found(made)["argument.unread"].reason
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r | {"prompt": "find: "}) + "\n" for r in rows(8)))
    config = load_config(tmp_path / "launch.yaml")
    prompted = make_plan(config, CPU, installed("reranker"))
    assert "data.prompt-unread" in found(prompted) and "data.prompt-wins" not in found(prompted)


def test_a_migrated_reranker_command_passes_the_check(tmp_path: Path, models: Path) -> None:
    write(tmp_path, models / "reranker")
    command = (
        "torchrun --nproc_per_node 2 -m FlagEmbedding.finetune.reranker.encoder_only.base "
        f"--model_name_or_path {models / 'reranker'} --train_data train.jsonl --output_dir new --use_cpu "
        "--query_instruction_for_rerank 'find: ' --query_max_len 32 --passage_max_len 64 --per_device_train_batch_size 2"
    )
    made = migrate(command, folder=tmp_path, names=installed("reranker").names)
    (tmp_path / "migrated.yaml").write_text(made.yaml(), encoding="utf-8")
    config = load_config(tmp_path / "migrated.yaml")
    assert (config.recipe, config.query_instruction) == ("reranker", "find: ")
    problems = check(make_plan(config, CPU, installed("reranker")))
    assert [p for p in problems if p.severity == "error"] == []


@pytest.mark.slow
def test_m3_trained_as_a_dense_model_keeps_its_bases_heads(tmp_path: Path, models: Path) -> None:
    config = write(tmp_path, models / "m3", recipe="m3-unified", arguments={"unified_finetuning": False})
    code, _, err = launch("run", config)
    assert code == 0, err
    for name in ("colbert_linear.pt", "sparse_linear.pt"):
        assert (tmp_path / "out" / "tuned" / name).read_bytes() == (models / "m3" / name).read_bytes()
