"""Our figures against others': trec_eval's code on our own run files, FlagEmbedding's evaluation, the plain matrix product."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from factory import metrics, search
from factory.backends import Encoded
from factory.evalset import read_eval_set
from factory.evaluate import Options, evaluate_sets
from factory.fusion import reciprocal_rank_fusion
from factory.search import shortened
from factory.settings import ModelConfig
from tests.test_evaluate import CORPUS, QUERIES
from tests.tiny_models import make_tiny_bert, make_tiny_m3

TREC = {"recall": "recall", "precision": "P", "ndcg": "ndcg_cut", "map": "map_cut", "hit_rate": "success"}
PASSAGES = [a + b[: len(b) // n] for n in (1, 2, 3) for a in CORPUS for b in CORPUS]


def write(folder: Path, passages: list[str], queries: list[str], seed: int = 3) -> Path:
    """An eval set with ids that hold spaces and with grades from 0 to 3."""
    folder.mkdir(parents=True)
    for name, texts, key in (("corpus", passages, "doc "), ("queries", queries, "q")):
        lines = (json.dumps({"_id": f"{key}{i}", "text": t}) for i, t in enumerate(texts))
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    draw = np.random.default_rng(seed)
    judged = [
        (q, d, g)
        for q in range(len(queries))
        for d, g in enumerate(draw.choice(4, len(passages), p=[0.8, 0.1, 0.06, 0.04]))
    ]
    (folder / "qrels.tsv").write_text("\n".join(f"q{q}\tdoc {d}\t{g}" for q, d, g in judged), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, object]:
    """A tiny m3 in every mode, cut and fused, on 75 passages, with its run files."""
    folder = tmp_path_factory.mktemp("checked")
    write(folder / "set", PASSAGES, QUERIES)
    model = make_tiny_m3(folder / "m3")
    config = ModelConfig(path=str(model), device="cpu", query_instruction="问：")
    options = Options(cutoffs=(1, 3, 10), dims=(16,), instructions="both")
    done, _ = evaluate_sets([("set", folder / "set")], [("m3", config)], options, run_files=folder / "runs")
    return folder, model, done[0]


def test_every_figure_is_trec_evals_on_our_run_file_to_a_billionth(measured) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    folder, _, done = measured
    qrels = pytrec_eval.parse_qrel((folder / "runs/set/qrels.trec").read_text().splitlines())
    wanted = {f"{theirs}.1,3,10" for theirs in TREC.values()} | {"recip_rank"}
    names = {"": "BM25"} | {r.mode: f"m3.{r.mode.replace('/', '.')}" for r in done.rows if r.mode}
    assert len(names) == 13  # BM25; with and without instruction: 4 modes, dense@16, dense+BM25
    for r in done.rows:
        run = pytrec_eval.parse_run((folder / f"runs/set/{names[r.mode]}.trec").read_text().splitlines())
        found = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(run)
        for metric, value in r.metrics.items():
            name, k = metric.split("@")
            theirs = [found.get(q, {}).get(f"{TREC.get(name)}_{k}", 0.0) for q in qrels]
            if name == "mrr":  # which trec_eval does not cut off
                theirs = [
                    rr if rr * int(k) >= 0.999 else 0.0
                    for rr in (found.get(q, {}).get("recip_rank", 0.0) for q in qrels)
                ]
            assert value == pytest.approx(np.mean(theirs), abs=1e-9), (r.mode, metric)


def test_m3s_modes_are_flagembeddings_own_evaluation(measured) -> None:
    pytest.importorskip("pytrec_eval")  # which FlagEmbedding's evaluation needs
    from FlagEmbedding import BGEM3FlagModel
    from FlagEmbedding.abc.evaluation.searcher import EvalDenseRetriever
    from FlagEmbedding.abc.evaluation.utils import evaluate_metrics, evaluate_mrr

    folder, model, done = measured
    data = read_eval_set(folder / "set")
    qrels = {
        q: {data.passage_ids[p]: g for p, g in r.items()} for q, r in zip(data.query_ids, data.relevant, strict=True)
    }
    instructed = {"query_instruction_for_retrieval": "问：", "query_instruction_format": "{}{}"}
    theirs = BGEM3FlagModel(str(model), use_fp16=False, devices=["cpu"], query_max_length=128, **instructed)
    asked = dict(zip(data.query_ids, data.queries, strict=True))
    corpus = {key: {"text": text} for key, text in zip(data.passage_ids, data.passages, strict=True)}
    results = {"dense": EvalDenseRetriever(theirs, search_top_k=100)(corpus, asked)}
    pairs = [("问：" + q, p) for q in data.queries for p in data.passages]
    scores = theirs.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    for mode, name in (("sparse", "sparse"), ("colbert", "colbert"), ("sum", "colbert+sparse+dense")):
        table = np.array(scores[name]).reshape(len(data.queries), -1)
        results[mode] = {
            q: {d: s for d, s in zip(data.passage_ids, row, strict=True) if s > 0}  # 0: no word in common
            for q, row in zip(data.query_ids, table.tolist(), strict=True)
        }
    rows = {r.mode: r.metrics for r in done.rows}
    for mode, result in results.items():
        ndcg, average, recall, precision = evaluate_metrics(qrels, result, [1, 3, 10])
        mrr = evaluate_mrr(qrels, result, [1, 3, 10])
        for ours, values in (
            ("ndcg", ndcg),
            ("map", average),
            ("recall", recall),
            ("precision", precision),
            ("mrr", mrr),
        ):
            for name, value in values.items():
                assert rows[mode][f"{ours}@{name.split('@')[1]}"] == pytest.approx(value, abs=1e-4), (mode, name)


class Fixed:
    """An encoder of numbers: text "7" is the seventh row. It counts what it is given at once."""

    fingerprint, modes = "fixed", ("dense",)

    def __init__(self, rows: np.ndarray):
        self.rows, self.most = rows, 0

    def encode(self, texts, role, *, modes=("dense",)) -> Encoded:
        self.most = max(self.most, len(texts))
        return Encoded(self.rows[[int(t) for t in texts]])


def test_a_search_in_blocks_is_the_plain_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    vectors = draw.normal(size=(1000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[900:950] = vectors[:50]  # copies: the earlier one comes first
    queries = Encoded(vectors[draw.integers(0, 1000, 60)] + draw.normal(size=(60, 32)).astype(np.float32) * 0.1)
    monkeypatch.setattr(search, "PASSAGES", 64)
    encoder = Fixed(vectors)
    found = search.search(encoder, queries, [str(i) for i in range(1000)], 20, dims=(8,))
    assert encoder.most == 64
    for mode, q, p in (
        ("dense", queries.dense, vectors),
        ("dense@8", shortened(queries.dense, 8), shortened(vectors, 8)),
    ):
        product = q @ p.T
        np.testing.assert_allclose(np.take_along_axis(product, found[mode].rows, 1), found[mode].scores, atol=1e-5)
        best = np.argsort(-product, axis=1, kind="stable")[:, :20]
        np.testing.assert_allclose(np.take_along_axis(product, best, 1), found[mode].scores, atol=1e-5)
        assert (found[mode].rows == best).mean() > 0.99  # but for scores that are the same to the last bit
    np.testing.assert_allclose(np.linalg.norm(shortened(vectors, 8), axis=1), 1, atol=1e-6)


def test_m3s_searches_do_not_depend_on_the_blocks(measured, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.models import load_encoder

    _, model, _ = measured
    encoder = load_encoder(ModelConfig(path=str(model), device="cpu"))
    queries = encoder.encode(QUERIES, "query", modes=("sum",))
    whole = search.search(encoder, queries, PASSAGES, 10)
    monkeypatch.setattr(search, "PASSAGES", 16)
    blocks = search.search(encoder, queries, PASSAGES, 10)
    for mode in ("dense", "sparse", "colbert", "sum"):
        np.testing.assert_allclose(blocks[mode].scores, whole[mode].scores, atol=1e-5)


def test_fusion_by_hand() -> None:
    first = np.array([[3, 5, 7], [1, 2, -1], [-1, -1, -1]])
    second = np.array([[5, 9, 3], [-1, -1, -1], [-1, -1, -1]])
    rows, scores = reciprocal_rank_fusion(first, second, 4)
    assert rows.tolist() == [[5, 3, 9, 7], [1, 2, -1, -1], [-1, -1, -1, -1]]
    np.testing.assert_allclose(scores[0], [1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])
    even, _ = reciprocal_rank_fusion(np.array([[1, 2]]), np.array([[3, 1]]), 9)
    assert even.tolist() == [[1, 3, 2, -1]]
    swapped, _ = reciprocal_rank_fusion(np.array([[4]]), np.array([[6]]), 2)
    assert swapped.tolist() == [[4, 6]]  # a tie: the first ranking's comes first


def test_the_randomisation_test_agrees_with_all_signs_tried() -> None:
    from itertools import product

    differences = np.array([0.5, 0.1, 0, 0.3, -0.2, 0.4, 0, 0.25, -0.1, 0.6])
    signs = np.array(list(product([-1, 1], repeat=len(differences))))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    ours = metrics.randomisation(np.column_stack([differences, -differences, 0 * differences]))
    assert ours[:2] == pytest.approx([exact, exact], abs=0.01) and ours[2] == 1


def test_a_cut_beyond_the_vectors_is_refused(tmp_path: Path) -> None:
    from factory.records import InputError

    config = ModelConfig(path=str(make_tiny_bert(tmp_path / "bert")), device="cpu")
    sets = [("s", write(tmp_path / "s", PASSAGES[:9], QUERIES))]
    with pytest.raises(InputError, match="64 numbers and cannot be cut to 64"):
        evaluate_sets(sets, [("a", config)], Options(dims=(64,)))
    with pytest.raises(InputError, match="no model has a query instruction"):
        evaluate_sets(sets, [("a", config)], Options(instructions="both"))
    with pytest.raises(InputError, match="no mode 'sprase'"):
        evaluate_sets(sets, [("a", config)], Options(modes=("sprase",)))
