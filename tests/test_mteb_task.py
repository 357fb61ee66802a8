"""MTEB's tasks on disk are the same set as BEIR's files; what would give other figures than MTEB's is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.evalset import read_eval_set
from factory.records import InputError
from tests.test_evaluate import CORPUS, GOOD, QUERIES, write_set

JUDGED = [dict(zip(("query-id", "corpus-id", "score"), line.split("\t"), strict=True)) for line in GOOD]


def hub_folder(folder: Path, prefix: str = "", more: tuple[str, ...] = (), kind: str = "jsonl") -> Path:
    """As a hub has them: README.md names the configurations; JSON lines (older tasks) or Parquet (newer ones)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "qrels").mkdir(parents=True)
    rows = [row | {"score": int(row["score"])} for row in JUDGED]
    tables = {
        "corpus": [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(CORPUS)],
        "queries": [{"_id": f"q{i}", "text": t} for i, t in enumerate(QUERIES)],
        "qrels/test": rows,
        "qrels/dev": rows[:1],
    }
    for name, table in tables.items():
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
        else:
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
    lines = ["---", "configs:"]
    for name, files in (
        (f"{prefix}corpus", {"corpus": "corpus"}),
        (f"{prefix}queries", {"queries": "queries"}),
        (f"{prefix}qrels" if prefix else "default", {"test": "qrels/test", "dev": "qrels/dev"}),
        *((name, {"test": "qrels/dev"}) for name in more),
    ):
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {path}.{kind}" for split, path in files.items()]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def test_a_hubs_folder_is_the_same_set_as_beirs_files(tmp_path: Path) -> None:
    beir = read_eval_set(write_set(tmp_path / "beir", GOOD))
    assert read_eval_set(hub_folder(tmp_path / "task")) == beir
    assert read_eval_set(hub_folder(tmp_path / "parquet", kind="parquet")) == beir
    dev = read_eval_set(tmp_path / "task", split="dev")
    assert dev.query_ids == ["q0"] and dev.unjudged == 3
    zh = hub_folder(tmp_path / "languages", "zh-")
    assert read_eval_set(zh, subset="zh") == beir
    with pytest.raises(InputError, match=r"--subset zh"):
        read_eval_set(zh)
    with pytest.raises(InputError, match=r"no split 'train', only test, dev"):
        read_eval_set(tmp_path / "task", split="train")


def test_saved_datasets_are_too(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    corpus = [{"id": f"d{i}", "text": t} for i, t in enumerate(CORPUS)]  # MTEB 2 says id
    Dataset.from_list(corpus).save_to_disk(tmp_path / "task" / "corpus")
    queries = Dataset.from_list([{"id": f"q{i}", "text": t} for i, t in enumerate(QUERIES)])
    DatasetDict({"test": queries, "dev": queries.select([0])}).save_to_disk(tmp_path / "task" / "queries")
    Dataset.from_list(JUDGED).save_to_disk(tmp_path / "task" / "qrels")
    assert read_eval_set(tmp_path / "task") == read_eval_set(write_set(tmp_path / "beir", GOOD))


def test_what_is_no_plain_retrieval_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a reranking task"):
        read_eval_set(hub_folder(tmp_path / "a", more=("top_ranked",)))
    folder = hub_folder(tmp_path / "b")
    (folder / "corpus.jsonl").write_text('{"_id": "d0", "image": 1}\n')
    with pytest.raises(InputError, match="expected the keys _id and text"):
        read_eval_set(folder)
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match=r"neither qrels\.tsv nor qrels/test\.tsv"):
        read_eval_set(tmp_path / "c")


def test_a_beir_folders_other_split_is_read_and_named(tmp_path: Path) -> None:
    beir = write_set(tmp_path, GOOD)
    (beir / "qrels").mkdir()
    (beir / "qrels.tsv").rename(beir / "qrels" / "dev.tsv")
    assert len(read_eval_set(beir, split="dev").queries) == 4
    with pytest.raises(InputError, match="--split dev"):
        read_eval_set(beir)
