"""Evaluation: the metrics' values, the intervals, the eval set's errors, m3's four modes, a real model on real data."""

from __future__ import annotations

import json
from io import StringIO
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from filelock import FileLock

from factory import metrics
from factory.evaluate import Evaluation, Options, evaluate, evaluate_sets, read_eval_set, write_evaluation
from factory.evaluation import Change
from factory.evaluation_tables import render
from factory.records import InputError, read_lines
from factory.search import colbert_scores, search, search_bm25
from factory.settings import ModelConfig
from tests.tiny_models import make_tiny_bert, make_tiny_m3

CORPUS = [
    "焊前预热可以减少冷裂纹",
    "焊接电流过大会产生飞溅",
    "水箱里的水每天都要更换",
    "roast the coffee slowly",
    "机器必须保持清洁",
]
QUERIES = ["预热有什么用", "飞溅从哪里来", "how to roast coffee", "水多久更换"]


def write_set(folder: Path, judgements: list[str], header: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts, key in (("corpus", CORPUS, "d"), ("queries", QUERIES, "q")):
        rows = (json.dumps({"_id": f"{key}{i}", "text": t}, ensure_ascii=False) for i, t in enumerate(texts))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = (["query-id\tcorpus-id\tscore"] if header else []) + judgements
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


GOOD = ["q0\td0\t1", "q1\td1\t2", "q2\td3\t1", "q2\td2\t0", "q3\td2\t1"]


def test_metrics_are_those_computed_by_hand() -> None:
    relevant = [{7: 3, 8: 1}, {5: 1}, {9: 1}]
    ranking = np.array([[1, 8, 7, 2], [5, -1, -1, -1], [-1, -1, -1, -1]])  # the last query finds nothing
    found = metrics.measure(relevant, ranking, (1, 3))
    log = np.log2
    assert found["recall@1"].tolist() == [0, 1, 0] and found["recall@3"].tolist() == [1, 1, 0]
    assert found["mrr@1"].tolist() == [0, 1, 0] and found["mrr@3"].tolist() == [0.5, 1, 0]
    assert found["hit_rate@1"].tolist() == [0, 1, 0] and found["hit_rate@3"].tolist() == [1, 1, 0]
    gain, ideal = 1 / log(3) + 3 / log(4), 3 / log(2) + 1 / log(3)
    np.testing.assert_allclose(found["ndcg@3"], [gain / ideal, 1, 0])
    assert found["precision@1"].tolist() == [0, 1, 0] and found["precision@3"].tolist() == [2 / 3, 1 / 3, 0]
    assert found["map@1"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found["map@3"], [(1 / 2 + 2 / 3) / 2, 1, 0])
    assert list(found) == [f"{m}@{k}" for m in metrics.METRICS for k in (1, 3)]


def test_the_bootstrap_agrees_with_scipys() -> None:
    from scipy.stats import bootstrap

    differences = np.random.default_rng(1).normal(0.1, 1, (150, 2))
    ours = metrics.bootstrap(differences)
    for column, interval in zip(differences.T, ours, strict=True):
        theirs = bootstrap((column,), np.mean, n_resamples=10_000, method="percentile", rng=3).confidence_interval
        np.testing.assert_allclose(interval, theirs, atol=0.01)
    assert np.array_equal(ours, metrics.bootstrap(differences))


def test_the_interval_of_thirty_questions_holds_the_truth_in_95_of_100_experiments() -> None:
    # Three questions in four do not change; Hesterberg's percentiles alone hold it in 92.
    rng = np.random.default_rng(1)
    drawn = rng.normal(0, 1, (30, 2000)) * (rng.random((30, 2000)) < 0.25)
    low, high = metrics.bootstrap(drawn, resamples=4000).T
    assert 0.94 < ((low <= 0) & (high >= 0)).mean() < 0.97


def test_so_few_questions_that_the_test_cannot_tell_show_nothing_however_they_agree() -> None:
    for n in range(1, 8):
        gains = np.full((n, 1), 0.5)
        (low, high), p = metrics.bootstrap(gains)[0], metrics.randomisation(gains)[0]
        assert (low > 0) == (p < 0.05), n
        assert low <= 0.5 <= high
    for n in (1, 20):
        assert metrics.bootstrap(np.zeros((n, 1))).tolist() == [[0, 0]]


def test_an_interval_shows_nothing_that_the_test_calls_chance() -> None:
    few_losses = np.zeros((60, 1))
    few_losses[:4] = -1
    assert metrics.bootstrap(few_losses)[0, 1] < 0  # by itself it would call four lost hits of 60 sure
    (low, high), p = metrics.compare(few_losses)[0][0], metrics.compare(few_losses)[1][0]
    assert low < -0.13 and high == 0 and p > 0.1
    drawn = np.random.default_rng(2).choice([-1, 0, 1], (40, 300), p=[0.05, 0.8, 0.15])
    intervals, p = metrics.compare(drawn)
    assert not np.any((p >= 0.05) & ((intervals[:, 0] > 0) | (intervals[:, 1] < 0)))
    sure = p < 0.05
    assert sure.any() and np.array_equal(intervals[sure], metrics.bootstrap(drawn)[sure])


def test_bm25_finds_in_both_languages_and_leaves_out_what_shares_no_word() -> None:
    ranking = search_bm25([*QUERIES, "？！", "zzz"], CORPUS).rows
    assert ranking[:4, 0].tolist() == [0, 1, 3, 2]
    assert (ranking[4:] == -1).all() and (ranking[2, 1:] == -1).all()
    assert (search_bm25(["x"], ["。", "！"]).rows == -1).all()


def test_equal_models_differ_by_nothing_and_everything_is_written(tmp_path: Path) -> None:
    folder, model = write_set(tmp_path / "eval", GOOD[:4]), make_tiny_bert(tmp_path / "model")
    config = ModelConfig(path=str(model), device="cpu")
    out = tmp_path / "out"
    result = evaluate(folder, [("base", config), ("same", config)], cutoffs=(1, 3), cache=tmp_path / "cache", out=out)
    assert (result.queries, result.queries_without_judgement, result.passages) == (3, 1, 5)
    assert [(r.model, r.mode) for r in result.rows] == [
        ("BM25", ""),
        ("base", "dense"),
        ("base", "dense+BM25"),
        ("same", "dense"),
        ("same", "dense+BM25"),
    ]
    assert [(d.model, d.base, d.mode) for d in result.differences] == [
        ("same", "base", mode) for mode in ("dense", "dense+BM25")
    ]
    assert {(c.low, c.value, c.high, c.p) for c in result.differences[0].metrics.values()} == {(0, 0, 0, 1)}
    saved = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["metrics"]["recall@1"] == 1
    rows = [row for _, row in read_lines(out / "evaluation-queries.jsonl")]
    assert [row["_id"] for row in rows] == ["q0", "q1", "q2"]
    for metric, mean in saved["rows"][1]["metrics"].items():
        assert np.mean([row["base dense"][metric] for row in rows]) == pytest.approx(mean, abs=1e-6)


def test_two_evaluations_of_one_folder_that_end_together_do_not_mix_their_files(tmp_path: Path) -> None:
    folder, model = write_set(tmp_path / "eval", GOOD[:4]), make_tiny_bert(tmp_path / "model")
    done, results = evaluate_sets([("eval", folder)], [("base", ModelConfig(path=str(model), device="cpu"))], Options())
    out = tmp_path / "out"
    out.mkdir()
    writes = Thread(target=write_evaluation, args=(out, done, results))
    with FileLock(out / ".evaluation.lock"):  # as the other one holds it while it writes
        writes.start()
        writes.join(0.5)
        assert not list(out.glob("*.json*"))
    writes.join()
    assert len(list(out.glob("*.json*"))) == 3


def printed(result: Evaluation, width: int = 110) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=StringIO())
    for table in render(result):
        console.print(table)
    return console.export_text()


def test_m3_is_measured_in_its_four_modes_and_the_tables_fit_110_columns(tmp_path: Path) -> None:
    folder, model = write_set(tmp_path / "eval", GOOD), make_tiny_m3(tmp_path / "model")
    config = ModelConfig(path=str(model), device="cpu")
    dense_only = config.model_copy(update={"kind": "flag"})
    result = evaluate(folder, [("base", config), ("tuned", config), ("dense-only", dense_only)])
    modes = ["dense", "sparse", "colbert", "sum", "dense+BM25"]
    assert [r.mode for r in result.rows if r.model == "tuned"] == modes
    assert [(d.model, d.mode) for d in result.differences] == [
        *(("tuned", m) for m in modes),
        ("dense-only", "dense"),
        ("dense-only", "dense+BM25"),
    ]
    text = printed(result)
    assert all(word in text for word in (*modes, "ndcg@10", "hit_rate@1", "[+0.0, +0.0]", "BM25"))
    assert "…" not in text


def test_several_sums_are_measured_in_one_pass(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from factory.cli import app

    folder, model = write_set(tmp_path / "eval", GOOD), make_tiny_m3(tmp_path / "model")
    command = ["evaluate", str(folder), "-m", f"base={model}", "-m", f"tuned={model}", "--device", "cpu"]
    command += ["--out", str(tmp_path / "out"), "--weights", "0.4,0.2,0.4", "--weights", "1,0,0"]
    found = CliRunner().invoke(app, [*command, "--require", "tuned:sum@1,0,0 ndcg@10 -0.01"])
    assert found.exit_code == 0, found.output
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    of = {r["mode"]: r["metrics"] for r in saved["rows"] if r["model"] == "tuned"}
    assert of["sum@1,0,0"] == of["dense"] and "sum" in of
    assert ("sum@1,0,0", "BM25") in {(d["mode"], d["base"]) for d in saved["against_bm25"]}
    error = CliRunner().invoke(app, [*command, "--weights", "1,0,0"]).exception
    assert isinstance(error, InputError) and "the same weights twice" in str(error)


def test_a_runs_own_set_is_searched_as_its_model_was_told_to_read(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from factory.cli import app

    folder, model = write_set(tmp_path / "eval", GOOD), make_tiny_bert(tmp_path / "model")
    command = ["evaluate", str(folder), "-m", f"base={model}", "--device", "cpu", "--modes", "dense"]
    run = {
        "bge_factory": "0",
        "config": {"model": {"path": "/gone", "query_instruction": "q: ", "passage_max_length": 64}},
    }
    wanted = {"path": str(model), "query_instruction": "q: ", "passage_max_length": 64, "query_max_length": 128}
    for told, more in ((run, {}), ({"config": None}, {"query_instruction": "", "passage_max_length": 512}), ([], {})):
        (tmp_path / "run.json").write_text(json.dumps(told))
        out = tmp_path / f"out{len(more)}"
        found = CliRunner().invoke(app, [*command, "--out", str(out)], catch_exceptions=False)
        assert found.exit_code == 0
        used = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["models"]["base"]
        if told:
            assert {key: used[key] for key in wanted} == wanted | more
    assert CliRunner().invoke(app, [*command, "--query-max-length", "1"]).exit_code == 2


def test_many_models_stand_side_by_side_by_name_and_a_sure_difference_is_marked(tmp_path: Path) -> None:
    folder, model = write_set(tmp_path / "eval", GOOD), make_tiny_bert(tmp_path / "model")
    config = ModelConfig(path=str(model), device="cpu")
    names = ["base", "plain", "judged", "windowed", "hybrid-2", "关键词"]
    result = evaluate(folder, [(name, config) for name in names], cutoffs=(1, 3))
    of = {d.model: d.metrics for d in result.differences if d.mode == "dense"}
    of["judged"]["ndcg@3"] = Change(value=0.05, low=0.01, high=0.09)
    of["hybrid-2"]["ndcg@3"] = Change(value=0.05, low=-0.01, high=0.09)
    table = printed(result, 90).split("every k")[1]
    assert "…" not in table and all(name in table for name in names)
    row = next(line.split() for line in table.splitlines() if "ndcg@3" in line)
    assert [cell.endswith("*") for cell in row[1:]] == [name == "judged" for name in ("BM25", *names)]
    assert "surely other than base" in table


def test_colbert_and_the_sum_are_flagembeddings_own_scores(tmp_path: Path) -> None:
    from FlagEmbedding import BGEM3FlagModel

    from factory.models import load_encoder

    path = make_tiny_m3(tmp_path / "model")
    encoder = load_encoder(ModelConfig(path=str(path), device="cpu"))
    corpus = [a + b[: len(b) // n] for n in (1, 2, 3) for a in CORPUS for b in CORPUS]  # close scores: order is telling
    weights = ((0.4, 0.2, 0.4), (0.1, 0.8, 0.1))
    rankings = search(encoder, encoder.encode(QUERIES, "query", modes=("sum",)), corpus, weights=weights)
    theirs = BGEM3FlagModel(str(path), use_fp16=False, devices=["cpu"])
    pairs = [(q, p) for q in QUERIES for p in corpus]
    scores, otherwise = (
        theirs.compute_score(pairs, weights_for_different_modes=list(w), max_query_length=128) for w in weights
    )
    total = "colbert+sparse+dense"
    expected = {mode: scores[mode] for mode in ("dense", "colbert")}
    for mode, values in (expected | {"sum": scores[total], "sum@0.1,0.8,0.1": otherwise[total]}).items():
        table = np.array(values).reshape(len(QUERIES), len(corpus))
        for row, ranked in zip(table, rankings[mode].rows, strict=True):
            assert sorted(ranked[ranked >= 0]) == list(range(len(corpus)))
            assert (np.diff(row[ranked[ranked >= 0]]) <= 1e-5).all(), mode
    vectors = encoder.encode(QUERIES, "query", modes=("colbert",)).colbert
    assert vectors is not None
    late = colbert_scores(vectors[1:], vectors[0])
    np.testing.assert_allclose(late, [float(theirs.colbert_score(v, vectors[0])) for v in vectors[1:]], atol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0 d0 1", r"qrels\.tsv:3: expected 3 columns separated by tabs, got 1"),
        ("q0\td0\tyes", r"qrels\.tsv:3: the grade must be a whole number, got 'yes'"),
        ("q0\td0\t0.5", r"qrels\.tsv:3: the grade must be a whole number"),
        ("q0\td0\tnan", r"qrels\.tsv:3: the grade must be a whole number"),
        ("q0\td0\tinf", r"qrels\.tsv:3: the grade must be a whole number"),
        ("q9\td0\t1", r"qrels\.tsv:3: query 'q9' is judged, but not in queries\.jsonl"),
        ("q0\td9\t1", r"qrels\.tsv:3: passage 'd9' is judged, but not in corpus\.jsonl"),
    ],
)
def test_a_bad_judgement_is_an_error_that_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_eval_set(write_set(tmp_path, [GOOD[0], line]))


def test_the_set_is_read_in_both_layouts_with_and_without_a_header(tmp_path: Path) -> None:
    ours = read_eval_set(write_set(tmp_path / "a", GOOD))
    assert ours.relevant == [{0: 1}, {1: 2}, {3: 1}, {2: 1}]
    windows = write_set(tmp_path / "c", GOOD)
    (windows / "qrels.tsv").write_bytes((windows / "qrels.tsv").read_bytes().replace(b"\n", b"\r\n"))
    assert read_eval_set(windows) == ours
    odd = write_set(tmp_path / "d", GOOD)  # U+2028 ends no line
    for file in ("queries.jsonl", "qrels.tsv"):
        (odd / file).write_text((odd / file).read_text("utf-8").replace("q0", "q\u20280"), "utf-8")
    assert read_eval_set(odd).relevant == ours.relevant
    beir = write_set(tmp_path / "b", GOOD, header=False)
    (beir / "qrels").mkdir()
    (beir / "qrels.tsv").rename(beir / "qrels" / "test.tsv")
    assert read_eval_set(beir) == ours


def test_titles_are_put_before_the_text_once(tmp_path: Path) -> None:
    folder = write_set(tmp_path, GOOD)
    rows = [
        {"_id": f"d{i}", "title": title, "text": text}
        for i, (title, text) in enumerate([("", "a"), ("T", "b"), ("T", "T: c"), (None, "d"), ("T", "e")])
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_eval_set(folder).passages == ["a", "T\nb", "T: c", "d", "T\ne"]


def test_sets_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no query has a relevant passage"):
        read_eval_set(write_set(tmp_path / "a", ["q0\td0\t0"]))
    folder = write_set(tmp_path / "b", GOOD)
    with open(folder / "corpus.jsonl", "a", encoding="utf-8") as f:
        f.write('{"_id": "d0", "text": "again"}\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl:6: _id 'd0' is there twice"):
        read_eval_set(folder)
    (folder / "qrels.tsv").unlink()
    (folder / "corpus.jsonl").write_text('{"_id": "d0", "text": "x"}\n')
    with pytest.raises(InputError, match=r"neither qrels\.tsv"):
        read_eval_set(folder)
    config = ModelConfig(path="/nowhere")
    with pytest.raises(InputError, match="names must differ"):
        evaluate(tmp_path / "a", [("x", config), ("x", config)])


def test_e5_is_far_better_than_chance_on_human_questions(e5_small: Path, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "cmrc"
    corpus = [row for _, row in islice(read_lines(source / "corpus.jsonl"), 40)]
    judged = [line.split("\t") for line in (source / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    of = {query: passage for query, passage, _ in judged}
    kept = {row["_id"] for row in corpus}
    queries = [row for _, row in read_lines(source / "queries.jsonl") if of.get(row["_id"]) in kept][:60]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        text = "\n".join(json.dumps(row | {"text": row["text"][:120]}, ensure_ascii=False) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "qrels.tsv").write_text("\n".join(f"{q['_id']}\t{of[q['_id']]}\t1" for q in queries))
    config = ModelConfig(path=str(e5_small), query_instruction="query: ", passage_instruction="passage: ", device="cpu")
    untrained = ModelConfig(path=str(make_tiny_bert(tmp_path / "untrained")), device="cpu")
    result = evaluate(tmp_path, [("untrained", untrained), ("e5", config)])
    assert next(r for r in result.rows if (r.model, r.mode) == ("e5", "dense")).metrics["recall@1"] > 0.7
    assert result.differences[0].metrics["recall@1"].low > 0.3
