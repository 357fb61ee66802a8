"""`bge-factory export`: each format is read by the library that it is for, and nothing held out is trained on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory.evalset import read_eval_set
from factory.exports import FORMATS
from factory.exports.write import WRITERS, export
from factory.records import Example, InputError
from factory.workspace import write_jsonl
from tests.small_run import EXAMPLES, LONG, PAIRS, PASSAGES_MADE, TEXT, make_run, rows, strings
from tests.test_merge import small_disk

TRAINING = ("sentence-transformers", "flagembedding-lengths", "flagembedding-reranker", "ms-swift")


@pytest.fixture(scope="module")
def run(tmp_path_factory, models) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "小样 run", models / "bert")


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    """The run in every format."""
    folder = tmp_path_factory.mktemp("exports") / "all"
    export(run, list(FORMATS), folder, print)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> str:
    """Where `datasets` keeps what it has read."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return str(tmp_path / "cache")


def test_every_format_has_a_writer_and_a_line_in_help():
    assert list(WRITERS) == list(FORMATS)
    done = subprocess.run([sys.executable, "-m", "factory.cli", "export", "--help"], capture_output=True, text=True)
    assert all(name in done.stdout for name in FORMATS), done.stdout


def test_what_is_held_out_is_in_no_training_file(out, cache):
    from datasets import load_dataset, load_from_disk

    held = {p.text for p in PASSAGES_MADE if p.split != "train"} | {p.query for p in PAIRS if p.split != "train"}
    trained = {p.query for p in PAIRS if p.split == "train"} | set(TEXT[i] for i in ("p0", "p1", "p6"))
    read = 0
    for name in TRAINING:
        for path in (out / name).rglob("*.jsonl"):
            found = strings(rows(path))
            assert not found & held, path
            read += 1
    for path in (out / "sentence-transformers").glob("*.parquet"):
        found = strings(load_dataset("parquet", data_files=str(path), split="train").to_list())
        assert found and not found & held, path
        read += 1
    for found in (
        strings(json.loads((out / "llama-index/train.json").read_text())),
        strings(load_from_disk(str(out / "datasets"))["train"].to_list()),
    ):
        assert trained <= found and not found & held
    assert read == 4 + 4 + 2 + 2
    assert {p.query for p in PAIRS if p.split == "train"}.isdisjoint(strings(rows(out / "mteb" / "queries.jsonl")))
    test = {p.query for p in PAIRS if p.split == "eval"}
    assert set(load_from_disk(str(out / "datasets"))["test"]["query"]) == test


def test_a_leak_in_the_training_file_stops_the_export_and_leaves_nothing(run, tmp_path):
    import shutil

    for number, leaking in enumerate(
        (
            Example(query="Whatever?", pos=[TEXT["p0"]], neg=[TEXT["p1"], TEXT["p9"]]),
            Example(query=PAIRS[6].query, pos=[TEXT["p0"]], neg=[TEXT["p1"]]),
            Example(query="Whatever?", pos=[TEXT["p8"]], neg=[TEXT["p1"]]),
        )
    ):
        bad = shutil.copytree(run, tmp_path / f"bad{number}")
        write_jsonl(bad / "train.jsonl", [*(e.to_json() for e in EXAMPLES), leaking.to_json()])
        for name in (*TRAINING, "datasets"):
            with pytest.raises(InputError, match=r"train\.jsonl:5: .*held out"):
                export(bad, ["mteb", name], tmp_path / "out", print)
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []
    made = make_run(tmp_path / "trained on", test={"questions": "q.jsonl", "hold_out": False})  # as the user wished
    write_jsonl(made / "train.jsonl", [Example(query="Whatever?", pos=[TEXT["p9"]], neg=[TEXT["p1"]]).to_json()])
    assert export(made, ["ms-swift"], tmp_path / "out", print)["ms-swift"]["embedding.jsonl"] == 1


def test_sentence_transformers_reads_and_trains_on_triplets_and_tuples(out, models, cache, tmp_path):
    from datasets import load_dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    folder = str(out / "sentence-transformers")
    sets = {
        name: load_dataset(folder, name, split="train")
        for name in ("triplets", "n-tuples", "triplets-scored", "n-tuples-scored")
    }
    assert {name: len(s) for name, s in sets.items()} == {
        "triplets": 2 * 3 + 1 + 3 + 3,  # every positive with every negative
        "n-tuples": 5,
        "triplets-scored": 10,
        "n-tuples-scored": 4,
    }
    assert sets["n-tuples"].column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert sets["n-tuples"][2] == {"anchor": PAIRS[1].query, "positive": TEXT["p1"]} | {
        f"negative_{i}": TEXT["p2"] for i in (1, 2, 3)
    }
    assert sets["triplets-scored"][4]["label"] == 3.0 - -1.0 and sets["triplets-scored"][4]["positive"] == TEXT["p5"]
    assert sets["n-tuples-scored"]["label"][:3] == [
        [4.0, 0.5, -1.0, -2.5],
        [3.0, 0.5, -1.0, -2.5],
        [5.0, 1.0, 1.0, 1.0],
    ]
    model = SentenceTransformer(str(models / "bert"), device="cpu")
    for name, loss in (
        ("triplets", losses.MultipleNegativesRankingLoss),
        ("n-tuples", losses.MultipleNegativesRankingLoss),
        ("triplets-scored", losses.MarginMSELoss),
        ("n-tuples-scored", losses.MarginMSELoss),
        ("n-tuples-scored", losses.DistillKLDivLoss),
    ):
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / "trained"), max_steps=1, per_device_train_batch_size=2, batch_sampler="no_duplicates",
            report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=sets[name], loss=loss(model))
        assert trainer.train().training_loss > 0


def test_flagembedding_takes_each_batch_from_one_file_of_like_lengths(out, models, cache):
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderSameDatasetTrainDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "bert")
    folder = out / "flagembedding-lengths"
    length = len(tokenizer(LONG)["input_ids"])
    upper = next(b for b in (1000, 2000, 3000) if b > length)
    long = f"train_len-{500 if upper == 1000 else upper - 1000}-{upper}.jsonl"
    assert {p.name: len(rows(p)) for p in (folder / "train").iterdir()} == {"train_len-0-500.jsonl": 3, long: 1}
    arguments = AbsEmbedderDataArguments(
        train_data=[str(folder / "train")], cache_path=cache, train_group_size=3, same_dataset_within_batch=True,
        query_instruction_for_retrieval="",
    )  # fmt: skip
    dataset = AbsEmbedderSameDatasetTrainDataset(arguments, default_batch_size=1, seed=1, tokenizer=tokenizer)
    batches = [dataset[i] for i in range(len(dataset))]
    assert len(batches) == 4 and all(len(passages) == 3 for _, passages, _, _ in batches)
    assert {queries[0] for queries, *_ in batches} == {e.query for e in EXAMPLES}
    arguments = AbsEmbedderDataArguments(
        train_data=[str(folder / "train-scored")], cache_path=cache, train_group_size=2, knowledge_distillation=True
    )
    scored = AbsEmbedderSameDatasetTrainDataset(arguments, default_batch_size=1, seed=1, tokenizer=tokenizer)
    assert len(scored) == 3 and all(len(scored[i][2]) == 2 for i in range(3))


@pytest.mark.parametrize(("tokens", "name"), [(0, "0-500"), (499, "0-500"), (500, "500-1000"), (8192, "7000-inf")])
def test_a_row_goes_to_the_file_of_its_longest_text(tokens, name):
    from factory.exports.flagembedding import name_of

    assert name_of(tokens) == f"train_len-{name}.jsonl"


def test_flagembeddings_reranker_reads_its_rows_with_and_without_scores(out, models, cache):
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments
    from FlagEmbedding.abc.finetune.reranker.AbsDataset import AbsRerankerTrainDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "reranker")
    folder = out / "flagembedding-reranker"
    for name, distil, count in (("train.jsonl", False, 4), ("train-scored.jsonl", True, 3)):
        arguments = AbsRerankerDataArguments(
            train_data=[str(folder / name)], cache_path=cache, train_group_size=4, knowledge_distillation=distil
        )
        dataset = AbsRerankerTrainDataset(arguments, tokenizer)
        assert len(dataset) == count
        texts, scores = dataset[count - 1]
        assert len(texts) == 4 and (scores[0] == 6.0 if distil else scores is None)
    assert set(rows(folder / "train.jsonl")[0]) == {"query", "pos", "neg"}


def test_ms_swift_has_one_positive_in_an_embedding_row_and_all_in_a_rerankers(out, tmp_path):
    folder = out / "ms-swift"
    embedding, reranker = rows(folder / "embedding.jsonl"), rows(folder / "reranker.jsonl")
    assert [len(r["positive_messages"]) for r in embedding] == [1] * 5
    assert [len(r["positive_messages"]) for r in reranker] == [2, 1, 1, 1]
    assert embedding[1]["messages"] == [{"role": "user", "content": PAIRS[0].query}]
    assert embedding[1]["positive_messages"] == [[{"role": "user", "content": TEXT["p5"]}]]
    assert [m[0]["content"] for m in embedding[1]["negative_messages"]] == [TEXT[i] for i in ("p1", "p2", "p3")]
    assert reranker[0]["negative_messages"][0][0]["role"] == "assistant"
    swift = pytest.importorskip("swift.dataset", reason="ms-swift is not installed")
    for name, count in (("embedding", 5), ("reranker", 4)):
        train, _ = swift.load_dataset(str(folder / f"{name}.jsonl"), split_dataset_ratio=0, num_proc=1)
        assert len(train) == count and train[0]["negative_messages"]


def test_llama_index_finds_every_relevant_passage_in_its_corpus(out):
    read = {part: json.loads((out / f"llama-index/{part}.json").read_bytes()) for part in ("train", "dev", "test")}
    assert list(read["train"]["queries"]) == ["q0", "q1", "q2", "q3"] and list(read["test"]["queries"]) == ["q5", "q6"]
    assert read["train"]["relevant_docs"]["q0"] == ["p0", "p7", "p5"]  # its passage, a copy of it, a promoted one
    assert set(read["train"]["corpus"]) == {f"p{i}" for i in range(8)} and read["test"]["corpus"] == TEXT
    module = next(
        (m for m in ("llama_index.core.llama_dataset.legacy.embedding", "llama_index.finetuning") if _there(m)), None
    )
    if module is None:
        pytest.skip("no llama-index with EmbeddingQAFinetuneDataset is installed")
    kind = importlib.import_module(module).EmbeddingQAFinetuneDataset
    for part, known in read.items():
        loaded = kind.from_json(str(out / f"llama-index/{part}.json"))
        assert loaded.queries == known["queries"] and loaded.corpus == known["corpus"]
        assert all(i in loaded.corpus for _, ids in loaded.query_docid_pairs for i in ids)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_beir_reads_each_split(out):
    ours = read_eval_set(out / "beir")
    assert ours.query_ids == ["q5", "q6"] and ours.passage_ids == list(TEXT)
    loader = pytest.importorskip("beir.datasets.data_loader", reason="beir is not installed")
    for split, relevant in (
        ("train", {"q0": {"p0": 1, "p7": 1, "p5": 1}, "q1": {"p1": 1}, "q2": {"p2": 1}, "q3": {"p6": 1}}),
        ("dev", {"q4": {"p8": 1}}),
        ("test", {"q5": {"p9": 1}, "q6": {"p10": 1}}),
    ):
        corpus, queries, qrels = loader.GenericDataLoader(str(out / "beir")).load(split=split)
        assert qrels == relevant and set(queries) == set(relevant)
        assert {key: row["text"] for key, row in corpus.items()} == TEXT


def test_mteb_evaluates_a_model_on_the_folder(out, models, cache, monkeypatch):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    from sentence_transformers import SentenceTransformer

    monkeypatch.syspath_prepend(str(out / "mteb"))
    task = importlib.import_module("task").Task()
    model = SentenceTransformer(str(models / "bert"), device="cpu")
    found = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results[0]
    scores = found.scores["test"][0]
    assert scores["recall_at_20"] == 1.0 and 0 < scores["ndcg_at_10"] <= 1
    assert sorted(task.metadata.eval_langs) == ["eng-Latn", "zho-Hans"]


def test_datasets_loads_all_splits_from_the_disk(out):
    from datasets import load_from_disk

    loaded = load_from_disk(str(out / "datasets"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "dev": 1, "test": 2}
    assert loaded["train"][0]["neg_scores"] == [0.5, -1.0, -2.5] and loaded["train"][2]["pos_scores"] == []
    assert loaded["test"][1]["pos"] == [TEXT["p10"]]


def test_under_question_answer_the_answers_are_the_corpus(tmp_path):
    """What a search should find is then a text of its own, not a passage."""
    from factory.pipeline import KEPT

    run = make_run(tmp_path / "run")
    pairs = [p.model_copy(update={"target_id": f"{p.id}#answer", "target_text": f"Answer {p.id}"}) for p in PAIRS]
    write_jsonl(run / KEPT, pairs)
    write_jsonl(run / "train.jsonl", [Example(query=pairs[0].query, pos=["Answer q0"], neg=["Answer q1"]).to_json()])
    for name in ("eval", "dev"):
        (run / name / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq5\tq5#answer\t1\n")
    export(run, ["beir", "llama-index"], tmp_path / "out", print)
    assert [r["text"] for r in rows(tmp_path / "out/beir/corpus.jsonl")] == [f"Answer {p.id}" for p in pairs]
    train = json.loads((tmp_path / "out/llama-index/train.json").read_text())
    assert train["relevant_docs"] == {"train-1": ["q0#answer"]}
    write_jsonl(run / "train.jsonl", [Example(query=pairs[0].query, pos=["Answer q0"], neg=["Answer q5"]).to_json()])
    with pytest.raises(InputError, match="held out"):
        export(run, ["ms-swift"], tmp_path / "leak", print)


def test_what_a_user_can_get_wrong(run, tmp_path):
    with pytest.raises(InputError, match="unknown format 'colbert'") as caught:
        export(run, ["beir", "colbert"], tmp_path / "out", print)
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(InputError, match=r"run\.json is not there"):
        export(tmp_path, ["beir"], tmp_path / "out", print)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(run, ["beir"], tmp_path / "full", print)
    nowhere = make_run(tmp_path / "nowhere", tmp_path / "no-model")
    with pytest.raises(InputError, match="--model"):
        export(nowhere, ["beir", "flagembedding-lengths"], tmp_path / "out", print)
    with open(nowhere / "eval" / "qrels.tsv", "a") as f:
        f.write("q6\tp77\t1\n")
    with pytest.raises(InputError, match=r"qrels\.tsv:4: passage 'p77'"):
        export(nowhere, ["beir"], tmp_path / "out", print)
    (nowhere / "eval" / "queries.jsonl").unlink()
    with pytest.raises(InputError, match="no held-out questions"):
        export(nowhere, ["mteb"], tmp_path / "out", print)
    write_jsonl(nowhere / "train.jsonl", [Example(query="?", pos=["typed by hand"], neg=[TEXT["p1"]]).to_json()])
    with pytest.raises(InputError, match="typed by hand"):
        export(nowhere, ["beir"], tmp_path / "out", print)
    (nowhere / "train.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no row"):
        export(nowhere, ["sentence-transformers"], tmp_path / "out", print)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "nowhere"]
    (tmp_path / "out").mkdir()  # an empty folder may be there
    export(run, ["beir"], tmp_path / "out", print)
    assert (tmp_path / "out" / "beir" / "qrels" / "test.tsv").is_file()


def test_a_set_that_reviewers_emptied_is_no_split(tmp_path, models, cache):
    from datasets import load_from_disk

    run = make_run(tmp_path / "run", models / "bert")
    (run / "eval" / "queries.jsonl").write_text("")
    (run / "eval" / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n")
    export(run, [name for name in FORMATS if name != "mteb"], tmp_path / "out", print)
    loaded = load_from_disk(str(tmp_path / "out" / "datasets"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "dev": 1}
    assert sorted(p.name for p in (tmp_path / "out/beir/qrels").iterdir()) == ["dev.tsv", "train.tsv"]
    with pytest.raises(InputError, match="no held-out questions"):
        export(run, ["mteb"], tmp_path / "mteb", print)


def test_an_id_may_hold_what_python_takes_for_a_line_end(tmp_path):
    run = make_run(tmp_path / "run")
    write_jsonl(run / "eval" / "queries.jsonl", [{"_id": "q\u20285\x0c", "text": PAIRS[5].query}])
    judged = "query-id\tcorpus-id\tscore\nq\u20285\x0c\tp9\t1\n"
    (run / "eval" / "qrels.tsv").write_text(judged, encoding="utf-8")
    export(run, ["beir"], tmp_path / "out", print)
    assert (tmp_path / "out/beir/qrels/test.tsv").read_text(encoding="utf-8") == judged


def test_judgements_that_are_gone_are_missed(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "eval" / "qrels.tsv").unlink()
    for name in ("beir", "datasets"):
        with pytest.raises(InputError, match=r"eval/qrels\.tsv: is not there(.|\n)*fix: build again"):
            export(run, [name], tmp_path / "out", print)


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_full_disk_is_told_and_nothing_half_written_stays(run, tmp_path, name):
    for number, free in enumerate((4, 8, 16)):
        with small_disk(tmp_path / f"disk{number}", free) as disk:
            with pytest.raises(InputError, match=r"disk\d/out: the disk is full\n  fix: free some space"):
                export(run, [name], disk / "out", print)
            assert not list(disk.iterdir())


def test_what_killed_exports_left_is_removed_and_nothing_else(run, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    gone, kept = (
        f".train.{ended.pid}.tmp",
        [".train.v2.tmp", f".train.v2.{ended.pid}.tmp", f".train.{os.getppid()}.tmp"],
    )
    for folder in (gone, *kept):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.jsonl").write_text("{}")
    export(run, ["ms-swift"], tmp_path / "train", print)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "train"])
