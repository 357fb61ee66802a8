"""What the pairs teach without a judge: a planted truth is found, and it decides what is drawn."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from factory.choose import Chooser, choose
from factory.evidence import LEAST, Evidence, learn, looks
from factory.presets import columns_of
from factory.retrieve import RANKED
from factory.settings import ChooseConfig
from factory.tables import write_blocks
from tests.handmade import pair, target


def planted(questions: int = 150, candidates: int = 30, answering: int = 3, seed: int = 0):
    """Scores of questions with `answering` answers each, one of them the labelled positive.

    Cosines say nothing of which candidate answers; words do: BM25 ranks the answers first, with some noise.
    Returns the table and whether each candidate answers.
    """
    draw = np.random.default_rng(seed)
    rows, truth = [], []
    for q in range(questions):
        answers = np.arange(candidates + 1) < answering
        bm25 = np.argsort(np.argsort(-(answers * 2.0 + draw.normal(size=candidates + 1)))) + 1
        dense = draw.permutation(candidates + 1) + 1
        cosine = 0.8 - 0.01 * dense
        jaccard = np.clip(draw.normal(0.2, 0.05, candidates + 1), 0, 1)
        own = 0  # an answer, which one does not matter
        for rank, c in enumerate([i for i in np.argsort(dense) if i != own], 1):
            row = {"pair_id": f"q{q}", "candidate_id": f"t{q}-{c}", "rank": rank, "score": cosine[c]}
            row |= {"positive_score": cosine[own], "chance_score": 0.0, "answer_tgt_answer_jaccard": 0.0}
            row |= {"query_tgt_query_jaccard": 0.0}
            row |= {"dense_rank": int(dense[c]), "dense_deep_rank": int(dense[c])}
            row |= {"positive_dense_rank": int(dense[own])}
            row |= {"bm25_deep_rank": int(bm25[c]) if bm25[c] <= 20 else None, "positive_bm25_rank": int(bm25[own])}
            row |= {"query_tgt_answer_jaccard": jaccard[c], "positive_jaccard": jaccard[own]}
            for measure in ("lcs_score", "edit_dist"):
                row |= {f"query_tgt_answer_{measure}": 0.5, f"positive_{measure}": 0.5}
            row |= {"rerank_score": None, "positive_rerank_score": None, "answer_found": None}
            rows.append(row)
            truth.append(bool(answers[c]))
    nothing = {"rerank_score": pa.float32(), "positive_rerank_score": pa.float32(), "answer_found": pa.float32()}
    table = pa.Table.from_pylist(rows)
    for name, kind in nothing.items():
        table = table.set_column(table.column_names.index(name), name, pa.nulls(len(table), kind))
    return table, np.array(truth)


def learnt(tmp_path, table):
    write_blocks(tmp_path / "s.parquet", [table.slice(0, 1500), table.slice(1500)])
    return learn(tmp_path / "s.parquet", len(set(table["pair_id"].to_pylist())))


def test_the_labelled_ones_show_which_others_answer(tmp_path):
    table, truth = planted()
    found = learnt(tmp_path, table)
    assert found.questions == 150
    assert max(found.coefficients, key=lambda c: abs(c.weight)).feature == "bm25_rank"
    assert "bm25_rank higher by" in found.in_words()[0]
    p = found.probability(columns_of(table))
    assert p[truth].mean() > 6 * p[~truth].mean()
    # one answer in three is labelled, and yet the probability of answering is not below the truth: Elkan and Noto's c
    assert truth.mean() < p.mean() < 3 * truth.mean()
    assert found.labelled < 0.5


def test_it_is_kept_on_disk_and_few_pairs_teach_nothing(tmp_path):
    found = learnt(tmp_path, planted()[0])
    found.save(tmp_path / "e.json")
    assert Evidence.load(tmp_path / "e.json") == found
    assert f"{LEAST} are needed" in learnt(tmp_path, planted(LEAST - 1)[0])


def test_a_missing_rank_is_the_deepest_and_the_positive_has_features_of_its_own(tmp_path):
    columns = columns_of(planted(questions=2)[0])
    candidate, own = looks(columns), looks(columns, own=True)
    assert np.isnan(columns["bm25_deep_rank"]).any()
    assert (candidate["bm25_rank"][np.isnan(columns["bm25_deep_rank"])] == np.log2(RANKED + 1)).all()
    assert set(candidate) == set(own) and len(set(own["cosine"][:30])) == 1


def test_what_probably_answers_is_refused_and_the_hardest_of_the_rest_is_drawn(tmp_path):
    table, truth = planted()
    found = learnt(tmp_path, table)
    ids = list(dict.fromkeys(table["candidate_id"].to_pylist()))
    targets = [replace(target(i), id=c, duplicate_group=c, text=c) for i, c in enumerate(ids)]
    own = [target(q, text=f"own {q}") for q in range(150)]
    pairs = [pair(q, own[q]) for q in range(150)]

    def false(evidence) -> float:
        chooser = Chooser(pairs, targets + own, ChooseConfig(negatives=5, ceiling=1, depth=10), 1, evidence)
        rows = pa.concat_tables(choose([table], chooser, len(table))).to_pylist()
        answers = dict(zip(table["candidate_id"].to_pylist(), truth, strict=True))
        drawn = [r for r in rows if r["decision"] == "negative"]
        assert any(r["reason"] == "probably-answers" for r in rows) == (evidence is not None)
        return float(np.mean([answers.get(r["candidate_id"], False) for r in drawn]))

    assert false(found) < false(None) / 2
