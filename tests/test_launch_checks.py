"""Single checks: for each, a row or setting that triggers it, and one beside it that does not."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from factory.errors import InputError
from launch import checks_machine
from launch.checks_text import sample, truncation
from launch.columns import FIRST_CHUNK
from launch.config import load_config
from launch.contract import Contract, installed
from launch.plan import LaunchPlan, Machine, make_plan
from launch.preflight import check
from launch.problems import Problem
from launch.run import move_aside

CPU = Machine(gpus=0, bf16=False, cores=4)
ROW: dict[str, Any] = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
WHOLE = ROW | {"pos_scores": [5], "neg_scores": [-1, -2]}
DECIMAL = ROW | {"pos_scores": [5.5], "neg_scores": [-1.5, -2.0]}
SAME = {"same_dataset_within_batch": True}
LONG = {"query": "q" * 2000, "neg": ["n" * 3000, "m"]}


@pytest.fixture(scope="module")
def contracts() -> dict[str, Contract]:
    return {"base": installed("base"), "m3-unified": installed("m3-unified")}


@pytest.fixture
def planned(tmp_path: Path, models: Path, contracts: dict[str, Contract]) -> Any:
    """A plan with these files: lists of rows, each written to f0.jsonl, f1.jsonl, …"""

    def make(*files: list[Any], recipe: str = "base", **keys: Any) -> LaunchPlan:
        for i, rows in enumerate(files):
            (tmp_path / f"f{i}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
        settings: dict[str, Any] = {"model": str(models / ("m3" if recipe == "m3-unified" else "bert"))}
        settings |= {"train_data": [f"f{i}.jsonl" for i in range(len(files))], "output": "tuned", "recipe": recipe}
        settings |= {"batch_size": 2, "train_group_size": 3, "hardware": {"device": "cpu"}} | keys
        (tmp_path / "launch.yaml").write_text(json.dumps(settings))
        return make_plan(load_config(tmp_path / "launch.yaml"), CPU, contracts[recipe])

    return make


@pytest.fixture
def found(planned: Any) -> Any:
    def look(*files: list[Any], **keys: Any) -> dict[str, Problem]:
        return {p.id: p for p in check(planned(*files, **keys))}

    return look


def loaded(folder: Path, distil: bool, *files: str) -> int:
    """How many rows FlagEmbedding's own loader finds; whatever it raises is raised."""
    from FlagEmbedding.abc.finetune.embedder import AbsDataset
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderDataArguments

    names = [str(folder / f) for f in files]
    args = AbsEmbedderDataArguments(train_data=names, cache_path=str(folder / "cache"), knowledge_distillation=distil)
    return len(AbsDataset.AbsEmbedderTrainDataset(args, None))


# Columns


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        (ROW, ROW | {"id": "x"}, "id"),
        (ROW | {"prompt": None}, ROW | {"prompt": "x"}, "prompt"),
        (WHOLE, DECIMAL, "pos_scores and neg_scores"),
    ],
)
def test_a_column_that_comes_after_the_first_chunk(
    found: Any, tmp_path: Path, first: Any, last: Any, name: str
) -> None:
    many = FIRST_CHUNK // len(json.dumps(first | LONG)) + 10
    problem = found([first | LONG] * many + [last])["data.late-column"]
    assert problem.severity == "error" and f"and {name} come" in problem.reason
    with pytest.raises(Exception, match="generating the dataset"):
        loaded(tmp_path, False, "f0.jsonl")
    assert "data.late-column" not in found([last] + [first | LONG] * many)
    assert loaded(tmp_path, False, "f0.jsonl") == many + 1


def test_a_column_that_comes_late_in_a_small_file(found: Any, tmp_path: Path) -> None:
    assert "data.late-column" not in found([ROW] * 9 + [ROW | {"id": "x"}])
    assert loaded(tmp_path, False, "f0.jsonl") == 10


def test_whole_numbers_in_one_file_and_decimals_in_the_other(found: Any, tmp_path: Path) -> None:
    on = {"recipe": "m3-unified"}  # distils, because every row has scores
    assert found([WHOLE] * 4, [DECIMAL] * 4, **on)["data.score-kinds"].severity == "error"
    with pytest.raises(ValueError, match="can't be aligned"):
        loaded(tmp_path, True, "f0.jsonl", "f1.jsonl")
    assert "data.score-kinds" not in found([WHOLE] * 4, [DECIMAL] * 4)  # without distillation they are dropped
    assert loaded(tmp_path, False, "f0.jsonl", "f1.jsonl") == 8
    for files in (([WHOLE, DECIMAL] * 2, [DECIMAL] * 4), ([WHOLE] * 4, [WHOLE] * 4)):
        assert "data.score-kinds" not in found(*files, **on)
        assert loaded(tmp_path, True, "f0.jsonl", "f1.jsonl") == 8


def test_columns_of_one_file_only_are_filled_up(found: Any, tmp_path: Path) -> None:
    assert found([ROW | {"id": "x", "type": "t"}] * 4, [ROW] * 4) == {}
    assert loaded(tmp_path, False, "f0.jsonl", "f1.jsonl") == 8


def test_rows_of_several_types_in_one_file(found: Any, tmp_path: Path) -> None:
    rows = [ROW | {"type": t} for t in ("a", "b") * 4]
    assert found(rows, arguments=SAME)["data.mixed-types"].severity == "error"
    assert found(rows) == {}  # only that mode looks at it
    assert "data.mixed-types" not in found(rows[::2], rows[1::2], arguments=SAME)
    from FlagEmbedding.abc.finetune.embedder import AbsDataset
    from FlagEmbedding.abc.finetune.embedder.AbsArguments import AbsEmbedderDataArguments

    found(rows)
    args = AbsEmbedderDataArguments(train_data=[str(tmp_path / "f0.jsonl")], cache_path=str(tmp_path / "cache"))
    with pytest.raises(AssertionError, match="not consistent"):
        AbsDataset.AbsEmbedderSameDatasetTrainDataset(args, 8, 42, None)[0]


def test_a_file_below_small_threshold(found: Any) -> None:
    problems = found([ROW] * 8, [ROW] * 6, arguments=SAME | {"small_threshold": 8})
    assert "f1.jsonl: 6 rows, fewer than small_threshold's 8" in problems["data.small-file"].reason
    assert "data.small-file" not in found([ROW] * 8, [ROW] * 6, arguments=SAME | {"small_threshold": 6})


@pytest.mark.parametrize("name", ["f[1].jsonl", "f?.jsonl", "f*.jsonl", "f::1.jsonl", "run [v2]/f.jsonl"])
def test_a_path_that_the_loader_takes_for_a_pattern(found: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for one in (tmp_path / "f1.jsonl", tmp_path / "f[1.jsonl", file):
        one.parent.mkdir(exist_ok=True)
        one.write_text((json.dumps(ROW) + "\n") * (9 if one.name == "f1.jsonl" else 8))
    problem = found(train_data=[name])["data.pattern"]
    assert problem.severity == "error" and str(file) in problem.reason and problem.fix
    with contextlib.suppress(FileNotFoundError, StopIteration):
        assert loaded(tmp_path, False, name) != 8  # another file, or several
    assert found(train_data=["f[1.jsonl"]) == {}
    assert loaded(tmp_path, False, "f[1.jsonl") == 8


# Negatives


def test_a_batch_of_one_has_no_negatives_in_batch(found: Any) -> None:
    two = {"device": "cpu", "nproc_per_node": 2}
    alone = found([ROW] * 8, batch_size=1)["batch.no-in-batch"].reason
    assert "each query sees only the 2 negatives of the query's own row" in alone
    m3 = found([ROW] * 8, batch_size=1, recipe="m3-unified", hardware=two)["batch.no-in-batch"].reason
    assert "sparse and ColBERT losses see only" in m3 and "dense loss also 3" in m3
    assert "batch.no-in-batch" not in found([ROW] * 8, batch_size=2)
    assert "batch.no-in-batch" not in found([ROW] * 8, batch_size=1, hardware=two)  # base: those of the other process


def test_a_number_that_is_none_is_one_problem_and_no_traceback(found: Any) -> None:
    names = ("gradient_accumulation_steps", "sub_batch_size", "save_steps", "save_total_limit")
    problems = found([ROW] * 8, arguments=dict.fromkeys(names, "many"), recipe="m3-unified")
    assert {id for id, p in problems.items() if p.severity == "error"} == {"argument.value"}


# Texts


def test_texts_that_are_cut(found: Any, models: Path) -> None:
    long = "the welding current is too high " * 20
    rows = [ROW] * 5 + [ROW | {"pos": [long], "query": long}] * 5
    problems = found(rows, query_max_len=16, passage_max_len=32)
    assert set(problems) == {"data.cut-queries", "data.cut-passages"}
    assert "50% of the queries (of 10 looked at)" in problems["data.cut-queries"].reason
    assert "25% of the passages (of 20 looked at)" in problems["data.cut-passages"].reason
    from transformers import AutoTokenizer

    tokens = len(AutoTokenizer.from_pretrained(models / "bert")(long)["input_ids"])
    assert f"the longest has {tokens};" in problems["data.cut-queries"].reason
    enough = -(-tokens // 64) * 64
    assert f"of {enough} holds 95 %" in problems["data.cut-passages"].fix
    assert found(rows, query_max_len=tokens, passage_max_len=tokens) == {}
    assert "data.cut-queries" in found(rows, query_max_len=tokens - 1, passage_max_len=tokens)
    assert "data.cut-queries" in found(rows, query_max_len=tokens, passage_max_len=tokens, query_instruction="find ")


def test_a_reranker_takes_query_and_passage_together(planned: Any, models: Path) -> None:
    from transformers import AutoTokenizer

    row = ROW | {"query": "which current? " * 5, "pos": ["the welding current " * 9], "neg": ["short"]}
    tokens = len(AutoTokenizer.from_pretrained(models / "bert")(row["query"], row["pos"][0])["input_ids"])

    def cut(query: int, passage: int) -> list[str]:
        plan = planned([row] * 8, query_max_len=query, passage_max_len=passage)
        return [p.reason for p in truncation(plan.model_copy(update={"recipe": "reranker"}))]

    assert cut(32, tokens - 32) == []
    [said] = cut(32, tokens - 33)
    assert "50% of the pairs (of 16 looked at) are longer than query_max_len + passage_max_len" in said


def test_texts_longer_than_the_model(found: Any) -> None:
    problems = found([ROW | {"pos": ["焊接电流 " * 400]}] * 8, passage_max_len=512)
    assert "the model takes 512 tokens" in problems["data.cut-passages"].fix


def test_without_tokenizer_json_the_share_is_not_known(found: Any, tmp_path: Path, models: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "old")
    (tmp_path / "old" / "tokenizer.json").rename(tmp_path / "old" / "vocab.txt")
    problems = found([ROW] * 8, model=str(tmp_path / "old"))
    assert set(problems) == {"data.lengths-unknown"} and problems["data.lengths-unknown"].severity == "warning"


def test_a_tokenizer_json_that_is_none(found: Any, tmp_path: Path, models: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    rows = [ROW | {"query": "long " * 50}] * 8
    assert found(rows, model=str(tmp_path / "broken"))["model.tokenizer"].severity == "error"


def test_the_sample_is_spread_over_all_files(planned: Any, tmp_path: Path) -> None:
    planned([ROW | {"query": f"{i}"} for i in range(1000)], [ROW | {"query": f"x{i}"} for i in range(1000)], ["bad"])
    rows = sample([tmp_path / f"f{i}.jsonl" for i in range(3)] + [tmp_path / "gone"], 200)
    assert 190 <= len(rows) <= 202 and len({r["query"] for r in rows}) == len(rows)
    assert 90 <= sum(r["query"].startswith("x") for r in rows) <= 110
    assert sum(r["query"].isdigit() and int(r["query"]) >= 500 for r in rows) in range(40, 60)
    assert len(sample([tmp_path / "f0.jsonl"], 5000)) == 1000


# The model


def test_a_copy_that_was_cut_short(found: Any, tmp_path: Path, models: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(models / "m3", model)
    given: dict[str, Any] = {"recipe": "m3-unified", "model": str(model)}
    assert found([ROW] * 8, **given) == {}
    weights = (model / "model.safetensors").read_bytes()
    for size, said in ((len(weights) - 1, f"{len(weights) - 1} bytes of {len(weights)}"), (1000, "cut short"), (3, "")):
        (model / "model.safetensors").write_bytes(weights[:size])
        assert said in found([ROW] * 8, **given)["model.weights"].reason
    (model / "model.safetensors").write_bytes(weights)
    (model / "sparse_linear.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "Git LFS pointer" in found([ROW] * 8, **given)["model.heads"].reason
    assert found([ROW] * 8, model=str(model)) == {}  # base has no use for the head


def test_shards_that_the_index_names(found: Any, tmp_path: Path, models: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(models / "bert", model)
    (model / "model.safetensors").rename(model / "model-1-of-1.safetensors")
    index = {"weight_map": {"a": "model-1-of-1.safetensors", "b": "model-2-of-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-2-of-2.safetensors, not there" in found([ROW] * 8, model=str(model))["model.weights"].reason
    del index["weight_map"]["b"]
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert found([ROW] * 8, model=str(model)) == {}


# The machine


def test_a_fixed_port_in_use(planned: Any) -> None:
    plan = planned([ROW] * 8)
    assert "--standalone" in plan.argv and not list(checks_machine.ports(plan))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words in (("--master_port", f"{port}"), (f"--rdzv-endpoint=localhost:{port}",)):
            fixed = plan.model_copy(update={"argv": (plan.argv[0], *words, *plan.argv[2:])})
            assert [p.id for p in checks_machine.ports(fixed)] == ["port.in-use"]
        elsewhere = plan.model_copy(update={"argv": ("torchrun", f"--rdzv_endpoint=other-node:{port}")})
        assert not list(checks_machine.ports(elsewhere))
    assert not list(checks_machine.ports(fixed))


def test_an_output_of_ones_own_in_a_folder_of_others(planned: Any) -> None:
    """Asked as nobody: for root every folder can be written."""
    plan = planned([ROW] * 8)
    assert plan.prepared and plan.prepared.parent == plan.output.parent  # as a plan for the CPU has it
    with tempfile.TemporaryDirectory() as name:  # where nobody can look into it
        theirs, ours = Path(name), Path(name) / "tuned"
        ours.mkdir()
        theirs.chmod(0o555)
        if os.getuid() == 0:
            os.chown(ours, 65534, 65534)

        def said(conn: Connection) -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            for output, prepared in (
                (ours, None),
                (ours, theirs / ".tuned-base"),
                (theirs / "new", None),
                (theirs, None),
            ):
                asked = plan.model_copy(update={"output": output, "prepared": prepared})
                conn.send([p.reason for p in checks_machine.output(asked, True) if p.id == "output.read-only"])

            (ours / "old").touch()
            try:
                move_aside(ours)
            except InputError as e:
                conn.send([e.what])

        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=said, args=(there,))
        child.start()
        child.join(60)
        found = [here.recv() for _ in range(5) if here.poll(10)]
        theirs.chmod(0o755)
    assert found == [[], *[[f"{theirs}: cannot be written"]] * 3, ["cannot be moved aside: Permission denied"]]


def test_disk_space_for_the_checkpoints(planned: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = (models / "bert" / "model.safetensors").stat().st_size

    def enough(free: float, **arguments: Any) -> bool:
        plan = planned([ROW] * 40, arguments=arguments)  # 20 updates an epoch, two epochs
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, int(free)))
        return not [p for p in checks_machine.disk(plan) if p.id == "disk.space"]

    assert enough(1.1 * model) and not enough(0.9 * model)  # only the final model is saved
    steps = {"save_strategy": "steps", "save_steps": 5}  # eight times
    assert enough(25.1 * model, **steps) and not enough(24.9 * model, **steps)
    assert enough(10.1 * model, save_total_limit=2, **steps) and not enough(9.9 * model, save_total_limit=2, **steps)
    third = steps | {"save_steps": 15}  # after 15, 30 and, because it is the last, 40 updates
    assert enough(10.1 * model, **third) and not enough(9.9 * model, **third)
    only = steps | {"save_total_limit": 2, "save_only_model": True}
    assert enough(4.1 * model, **only) and not enough(3.9 * model, **only)
    assert not enough(6.9 * model, save_strategy="epoch") and enough(7.1 * model, save_strategy="epoch")
