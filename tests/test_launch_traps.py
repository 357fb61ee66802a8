"""The traps of FlagEmbedding 1.4.2: its own classes show what happens without us, `check` or the plan what with us.

Each test is named after the trap's letter in the table of traps.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.config import load_config
from launch.contract import installed
from launch.finish import restore_files
from launch.plan import LaunchPlan, Machine, make_plan, summary

pytest.importorskip("FlagEmbedding")
ROW: dict[str, Any] = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
SCORES = {"pos_scores": [6.5], "neg_scores": [-2.0, -4.5]}
SAME = {"same_dataset_within_batch": True}
CPU = Machine(gpus=0, bf16=False, cores=4)


@pytest.fixture
def write(tmp_path: Path, models: Path) -> Callable[..., Path]:
    """Writes launch.yaml, and train.jsonl with `rows`."""

    def make(rows: list[Any], recipe: str = "base", **keys: Any) -> Path:
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        model = models / ("m3" if recipe == "m3-unified" else "bert")
        settings: dict[str, Any] = {"recipe": recipe, "model": str(model), "train_data": "train.jsonl"}
        settings |= {"output": "tuned", "batch_size": 4, "train_group_size": 3, "hardware": {"device": "cpu"}} | keys
        (tmp_path / "launch.yaml").write_text(json.dumps(settings))
        return tmp_path / "launch.yaml"

    return make


@pytest.fixture
def checked(write: Callable[..., Path]) -> Callable[..., tuple[int, str]]:
    """Exit code and words of `bge-launch check`."""

    def look(rows: list[Any], **keys: Any) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["check", str(write(rows, **keys))])
        return done.exit_code, done.stderr

    return look


def planned(config: Path) -> LaunchPlan:
    read = load_config(config)
    return make_plan(read, CPU, installed(read.recipe))


def theirs(folder: Path, *files: str, same: bool = True, rank: int = 0, world: int = 1, batch: int = 4, **given: Any):
    """FlagEmbedding's own data set of these files, under its own defaults unless told otherwise."""
    from FlagEmbedding.abc.finetune.embedder import AbsDataset
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderDataArguments

    names = [str(folder / f) for f in files or ("train.jsonl",)]
    args = AbsEmbedderDataArguments(
        train_data=names, cache_path=str(folder / "cache"), **{"train_group_size": 3} | given
    )
    if same:
        return AbsDataset.AbsEmbedderSameDatasetTrainDataset(args, batch, 42, None, rank, world)
    return AbsDataset.AbsEmbedderTrainDataset(args, None)


def as_planned(plan: LaunchPlan, batch: int = 4) -> Any:
    """FlagEmbedding's data set with the plan's very words."""
    from FlagEmbedding.abc.finetune.embedder import AbsDataset
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderDataArguments
    from transformers import HfArgumentParser

    words = list(plan.argv[plan.argv.index("-m") + 2 :])
    args, _ = HfArgumentParser(AbsEmbedderDataArguments).parse_args_into_dataclasses(
        words, return_remaining_strings=True
    )
    if args.same_dataset_within_batch:
        return AbsDataset.AbsEmbedderSameDatasetTrainDataset(args, batch, 42, None)
    return AbsDataset.AbsEmbedderTrainDataset(args, None)


def trainer(models: Path, folder: Path, rows: int = 8, **given: Any) -> Any:
    """FlagEmbedding's trainer of a tiny BERT on one CPU process, in this process."""
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderTrainingArguments
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderCollator
    from FlagEmbedding.finetune.embedder.encoder_only.base.modeling import BiEncoderOnlyEmbedderModel
    from FlagEmbedding.finetune.embedder.encoder_only.base.trainer import EncoderOnlyEmbedderTrainer
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "bert")
    model = BiEncoderOnlyEmbedderModel(AutoModel.from_pretrained(models / "bert"), tokenizer)
    args = AbsEmbedderTrainingArguments(str(folder), use_cpu=True, report_to="none", save_strategy="no", **given)
    texts = [(f"query {i}", [f"answer {i}", f"other {i}"], None) for i in range(rows)]
    collator = AbsEmbedderCollator(tokenizer=tokenizer)
    return EncoderOnlyEmbedderTrainer(
        model=model, args=args, train_dataset=texts, data_collator=collator, processing_class=tokenizer
    )


def m3(models: Path, **given: Any) -> Any:
    """FlagEmbedding's m3 for training, and its tokenizer."""
    from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
    from FlagEmbedding.finetune.embedder.encoder_only.m3.runner import EncoderOnlyEmbedderM3Runner
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "m3")
    parts = EncoderOnlyEmbedderM3Runner.get_model(str(models / "m3"))
    return EncoderOnlyEmbedderM3Model(parts, tokenizer, normalize_embeddings=True, **given), tokenizer


def test_trap_a_queries_get_none_before_them_without_an_instruction(tmp_path: Path, write: Any, checked: Any) -> None:
    plan = planned(write([ROW] * 4, arguments=SAME))
    assert set(theirs(tmp_path)[0][0]) == {"Noneq"}
    assert set(as_planned(plan)[0][0]) == {"q"}
    mixed = [ROW] * 4 + [ROW | {"prompt": "find: "}] * 4
    code, said = checked(mixed, arguments=SAME)
    assert code == 2 and "'None' + query" in said
    assert {q for i in range(2) for q in theirs(tmp_path)[i][0]} == {"Noneq", "find: q"}


def test_trap_b_distillation_is_silently_off_without_scores(tmp_path: Path, checked: Any) -> None:
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderSameDatasetCollator
    from transformers import PreTrainedTokenizerFast

    code, said = checked([ROW] * 8, arguments=SAME | {"knowledge_distillation": True})
    assert code == 2 and "knowledge_distillation needs scores on every row; 0 of 8" in said
    item = theirs(tmp_path, knowledge_distillation=True)[0]
    assert item[2] == []  # and of an empty list the collator makes "no teacher":
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_words(), pad_token="q")
    assert AbsEmbedderSameDatasetCollator(tokenizer=tokenizer)([item])["teacher_scores"] is None


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"q": 0, "p": 1, "n": 2, "m": 3}, unk_token="q"))


def test_trap_c_a_file_smaller_than_a_step_gives_nothing(tmp_path: Path, checked: Any) -> None:
    (tmp_path / "small.jsonl").write_text(json.dumps(ROW | {"query": "small"}) + "\n")
    code, said = checked([ROW] * 8, train_data=["train.jsonl", "small.jsonl"], arguments=SAME)
    assert code == 0 and "small.jsonl: 1 rows, fewer than one step's 4: never trained on" in said
    data = theirs(tmp_path, "train.jsonl", "small.jsonl")
    assert {q for i in range(len(data)) for q in data[i][0]} == {"Noneq"}
    assert len(theirs(tmp_path, "small.jsonl")) == 0  # zero steps, and no word about it
    code, said = checked([ROW] * 3, arguments=SAME)
    assert code == 2 and "3 rows give no step" in said


def test_trap_d_a_files_name_turns_in_batch_negatives_off(tmp_path: Path, write: Any, checked: Any) -> None:
    name = "faq_no_in_batch_neg"
    write([ROW] * 4)
    (tmp_path / name).mkdir()
    for file in (f"{name}.jsonl", f"{name}/faq.jsonl", "train"):
        (tmp_path / file).write_text((json.dumps(ROW) + "\n") * 4)
    flags = [theirs(tmp_path, f)[0][3] for f in (f"{name}.jsonl", name, "train.jsonl")]
    assert flags == [True, True, False]
    from FlagEmbedding.abc.finetune.embedder import AbsDataset

    args = theirs(tmp_path).args
    args.train_data = [str(tmp_path / name) + "/"]
    assert AbsDataset.AbsEmbedderSameDatasetTrainDataset(args, 4, 42, None)[0][3] is False  # the slash loses it
    args.train_data = ["no-dot-in-this-path"]
    with pytest.raises(IndexError):
        AbsDataset.AbsEmbedderSameDatasetTrainDataset(args, 4, 42, None)

    _, said = checked([ROW] * 4, train_data=f"{name}.jsonl", arguments=SAME)
    assert "its name turns in-batch negatives off" in said
    _, said = checked([ROW] * 4, train_data=f"{name}/", arguments=SAME)
    assert "its folder's name does not turn in-batch negatives off" in said
    assert as_planned(planned(write([ROW] * 4, train_data=f"{name}/", arguments=SAME)))[0][3] is False
    code, said = checked([ROW] * 4, train_data="train", arguments=SAME)
    assert code == 2 and "[data.extension]" in said


def test_trap_e_only_the_dense_loss_sees_other_devices(write: Any, models: Path, tmp_path: Path) -> None:
    import torch

    model, tokenizer = m3(models)
    model.train()
    model.negatives_cross_device, model.process_rank, model.world_size = True, 0, 2
    model._dist_gather_tensor = lambda tensor: torch.cat([tensor, tensor])  # what two processes would gather
    widths: list[int] = []
    inner = model.compute_loss
    model.compute_loss = lambda scores, target: widths.append(scores.shape[1]) or inner(scores, target)
    queries, passages = (tokenizer(["text"] * n, return_tensors="pt", padding=True) for n in (4, 12))
    model(queries=queries, passages=passages)
    assert widths == [24, 12, 12, 12]  # dense; sparse, ColBERT and their sum: their own process's 12 only
    hardware = {"device": "cpu", "nproc_per_node": 2}
    plan = planned(write([ROW] * 16, recipe="m3-unified", hardware=hardware))
    assert (plan.batch.in_batch_negatives, plan.batch.local_negatives) == (24 - 3, 12 - 3)
    assert "21 in batch (sparse and ColBERT: 9, they never cross devices)" in str(summary(plan)["negatives per query"])


def test_trap_f_rows_that_stop_the_trainer_or_teach_it_nonsense(tmp_path: Path, checked: Any) -> None:
    code, said = checked([ROW, ROW | {"neg": []}])
    assert code == 2 and "train.jsonl:2: neg" in said
    with pytest.raises(ZeroDivisionError):
        [theirs(tmp_path, same=False)[i] for i in range(2)]

    code, said = checked([ROW, ROW | {"neg": ["n", ""]}])
    assert code == 2 and "train.jsonl:2: neg.1: is empty" in said
    assert "" in theirs(tmp_path, same=False)[1][1]  # an empty passage is trained on

    code, said = checked([ROW | {"pos": "answer"}] * 4)
    assert code == 2 and "train.jsonl:4: pos" in said
    positives = theirs(tmp_path)[0][1][::3]
    assert all(len(p) == 1 and p in "answer" for p in positives)  # a letter is the positive


def test_trap_g_a_checkpoint_of_the_trainer_is_not_its_own(tmp_path: Path, models: Path) -> None:
    """Resuming without DeepSpeed stops: the keys lack the wrapper's prefix, and the wrapper an attribute."""
    from safetensors import safe_open

    run = trainer(models, tmp_path / "out")
    run._save(str(tmp_path / "checkpoint-1"))
    with safe_open(tmp_path / "checkpoint-1" / "model.safetensors", "pt") as saved:
        assert all(f"model.{key}" in run.model.state_dict() for key in saved.keys())  # noqa: SIM118
    with pytest.raises(AttributeError, match="_keys_to_ignore_on_save"):
        run._load_from_checkpoint(str(tmp_path / "checkpoint-1"))


def test_trap_h_scores_within_zero_and_one_teach_next_to_nothing(tmp_path: Path, checked: Any) -> None:
    import torch

    def share(scores: dict[str, list[float]]) -> float:
        """The positive's weight, as the models' `forward` takes it from the teacher's scores."""
        row = {"query": "q", "pos": ["p"], "neg": [str(i) for i in range(7)]} | scores
        code, said = checked([row] * 4, train_group_size=8, recipe="m3-unified")
        assert code == 0 and ("[data.scores-in-unit]" in said) == (scores["pos_scores"] == [1.0])
        assert "only 0.28 of the weight" in said or scores["pos_scores"] != [1.0]
        item = theirs(tmp_path, same=False, train_group_size=8, knowledge_distillation=True)[0]
        return float(torch.softmax(torch.tensor(item[2]).view(1, -1), dim=-1)[0, 0])

    assert share({"pos_scores": [1.0], "neg_scores": [0.0] * 7}) == pytest.approx(0.28, abs=0.005)
    assert share({"pos_scores": [6.5], "neg_scores": [-4.0] * 7}) > 0.99


def test_trap_i_the_order_of_a_folder_is_the_plans(tmp_path: Path, write: Any, monkeypatch: Any) -> None:
    (tmp_path / "many").mkdir()
    for name in "bca":
        (tmp_path / "many" / f"{name}.jsonl").write_text((json.dumps(ROW | {"query": name}) + "\n") * 4)
    plan = planned(write([ROW], train_data="many"))
    listed, orders = os.listdir, []
    for backwards in (False, True):  # as two nodes' file systems may have it
        monkeypatch.setattr(os, "listdir", lambda path, b=backwards: sorted(listed(path), reverse=b))
        orders.append((theirs(tmp_path, "many", same=False)[0][0], as_planned(plan)[0][0]))
    assert orders == [("a", "a"), ("c", "a")]


def test_trap_j_a_full_output_folder(tmp_path: Path, models: Path, checked: Any) -> None:
    from FlagEmbedding.abc.finetune.embedder.AbsRunner import AbsEmbedderRunner
    from transformers import TrainingArguments

    class Runner(AbsEmbedderRunner):
        load_tokenizer_and_model = load_trainer = load_train_dataset = load_data_collator = lambda self: (None, None)

    (tmp_path / "tuned" / "checkpoint-500").mkdir(parents=True)
    for do_train in (False, True):
        args = TrainingArguments(str(tmp_path / "tuned"), use_cpu=True, do_train=do_train, report_to="none")
        if do_train:
            with pytest.raises(ValueError, match="not empty"):
                Runner(None, None, args)
        else:
            assert Runner(None, None, args)  # old and new checkpoints would lie side by side
    code, said = checked([ROW] * 8)
    assert code == 2 and "[output.not-empty]" in said and "run --overwrite" in said


def test_trap_k_the_gathered_weights_are_not_what_is_saved(tmp_path: Path, models: Path, checked: Any) -> None:
    """With ZeRO-3 what the model itself holds is empty (test_launch_deepspeed.py trains with it, and without us)."""
    import torch
    from safetensors.torch import load_file

    run = trainer(models, tmp_path / "out")
    gathered = {k: torch.full_like(v, 7.0) for k, v in run.model.state_dict().items()}
    run._save(str(tmp_path / "saved"), state_dict=gathered)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert not any(bool((v == 7.0).all()) for v in saved.values())
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    code, said = checked([ROW] * 8, recipe="m3-unified", deepspeed="ds.json")
    assert code == 2 and "[deepspeed.zero3]" in said


def test_trap_l_too_few_negatives_are_repeated(tmp_path: Path, checked: Any) -> None:
    code, said = checked([ROW] * 4 + [ROW | {"neg": ["n"]}] * 4, train_group_size=5)
    assert code == 0 and "8 of 8 rows have fewer than train_group_size - 1 = 4 negatives (the fewest: 1)" in said
    assert sorted(theirs(tmp_path, same=False, train_group_size=5)[7][1]) == ["n", "n", "n", "n", "p"]


def test_trap_m_one_of_several_positives_is_drawn(tmp_path: Path, checked: Any) -> None:
    rows = [ROW | {"pos": ["best", "so-so"], "pos_scores": [9.0, 1.0], "neg_scores": [0.0, 0.0]}] * 4
    code, said = checked(rows)
    assert code == 0 and "4 of 4 rows have two positives or more" in said and "[data.several-positives]" in said
    random.seed(0)
    data = theirs(tmp_path, same=False)
    drawn = [data[0][1] for _ in range(50)]
    assert {len(group) for group in drawn} == {3}
    assert {group[0] for group in drawn} == {"best", "so-so"}
    assert 10 < sum(group[0] == "so-so" for group in drawn) < 40  # as often as the best
    assert "[data.several-positives]" not in checked([ROW] * 4)[1]


def test_trap_n_m3_has_no_mrl(models: Path, checked: Any) -> None:
    with pytest.raises(NotImplementedError):
        m3(models, use_mrl=True)
    mrl = {"use_mrl": True, "mrl_dims": [32, 64]}
    code, said = checked([ROW] * 8, recipe="m3-unified", arguments=mrl)
    assert code == 2 and "[model.mrl]" in said
    assert checked([ROW] * 8, arguments=mrl)[0] == 0


def test_trap_o_accumulation_adds_no_negatives(tmp_path: Path, models: Path, checked: Any, write: Any) -> None:
    run = trainer(models, tmp_path / "out", per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1)
    widths: list[int] = []
    inner = run.model.compute_loss
    run.model.compute_loss = lambda scores, target: widths.append(scores.shape[1]) or inner(scores, target)
    run.train()
    assert widths == [4, 4, 4, 4]  # eight queries in the update, but each among its own step's 2 × 2 passages
    arguments = {"gradient_accumulation_steps": 4}
    plan = planned(write([ROW] * 64, arguments=arguments))
    assert plan.batch.in_batch_negatives == planned(write([ROW] * 64)).batch.in_batch_negatives == 9
    assert (
        "averages 4 steps but adds no negatives: each query still has 2 hard ones and 9 in the batch"
        in checked([ROW] * 64, arguments=arguments)[1]
    )
    assert "[batch.accumulation]" not in checked([ROW] * 64)[1]


def test_trap_p_the_saved_folder_pools_by_mean_elsewhere(tmp_path: Path, models: Path) -> None:
    from FlagEmbedding.finetune.embedder.encoder_only.m3.trainer import EncoderOnlyEmbedderM3Trainer
    from sentence_transformers import SentenceTransformer

    run = trainer(models, tmp_path / "out")
    run.model = m3(models)[0]
    EncoderOnlyEmbedderM3Trainer._save(run, str(tmp_path / "saved"))
    assert "'pooling_mode': 'mean'" in str(SentenceTransformer(str(tmp_path / "saved"), device="cpu"))
    restore_files(models / "m3", tmp_path / "saved", "cls")
    model = str(SentenceTransformer(str(tmp_path / "saved"), device="cpu"))
    assert "'pooling_mode': 'cls'" in model and "Normalize" in model


def test_trap_q_the_entry_points_record_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchrun's summary gets a worker's traceback through TORCHELASTIC_ERROR_FILE, which `record` would write."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    words = ["x", "--model_name_or_path", "none", "--train_data", str(tmp_path / "none.jsonl"), "--output_dir", "none"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(FileNotFoundError):
        runpy.run_module("FlagEmbedding.finetune.embedder.encoder_only.m3", run_name="__main__", alter_sys=True)
    assert not file.exists()


def test_sub_batches_of_m3_must_have_one_length(models: Path, checked: Any) -> None:
    """Not in the table: read in the source, seen here."""
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderCollator

    model, tokenizer = m3(models, sub_batch_size=2)
    item = ("q", ["short", "short", "a much longer passage than that"], None)
    for multiple, works in ((None, False), (32, True)):
        collator = AbsEmbedderCollator(
            tokenizer=tokenizer, sub_batch_size=2, pad_to_multiple_of=multiple, passage_max_len=32
        )
        passages = collator([item])["passages"]
        if works:
            assert model.encode(passages)[2].shape == (3, 31, 64)
        else:
            with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
                model.encode(passages)
    common: dict[str, Any] = {"recipe": "m3-unified", "passage_max_len": 256}
    code, said = checked([ROW] * 8, arguments={"sub_batch_size": 2}, **common)
    assert code == 2 and "[m3.sub-batch]" in said and "pad_to_multiple_of: 256" in said
    padded = {"sub_batch_size": 2, "pad_to_multiple_of": 256}
    assert checked([ROW] * 8, arguments=padded, **common)[0] == 0
    assert checked([ROW] * 8, arguments={"sub_batch_size": 12}, **common)[0] == 0  # one sub-batch holds them all
    assert checked([ROW] * 8, arguments={"sub_batch_size": 2})[0] == 0  # base joins vectors without a length
    assert "stops at that" in checked([ROW] * 8, arguments={"sub_batch_size": 0}, **common)[1]
