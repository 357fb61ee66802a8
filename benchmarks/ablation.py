"""What each family of features earns: the choice of negatives with one family left out, at equal hardness.

    python -m benchmarks.ablation ../shared/data/cran --model MODEL [--llm FILE.gguf] --out ~/bench/mining-cran

As `benchmarks.mining`, with the same options and the same folder, whose judgements it takes again. Nothing new is asked of
the LLM: the models are learnt once more from the same labels, with the columns of one family empty.
"""

from __future__ import annotations

import copy
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.miners import Ours
from benchmarks.mining import DIAL, SEEDS, arguments, configuration, equal, measure, read_problem, with_llm
from factory.config import Config
from factory.evidence import Evidence, learn, with_evidence
from factory.false_negatives import fit
from factory.judging import Outcome, Probabilities, eligible, stratified
from factory.presets import Columns, columns_of
from factory.tables import take, write_blocks
from factory.workspace import write_json

FAMILIES = {
    "nothing left out": (),
    "dense cosine and rank": ("query_tgt_answer_bge_cos", "score", "positive_score", "dense_*", "positive_dense_rank"),
    "BM25": ("bm25_*", "positive_bm25_rank"),
    "words and characters shared with the question": tuple(
        f"{side}_{m}" for side in ("query_tgt_answer", "positive") for m in ("lcs_score", "edit_dist", "jaccard")
    ),
    "likeness of the two passages": ("answer_tgt_answer_*",),
    "the candidate's own question": ("query_tgt_query_*", "answer_tgt_query_*"),
}


def main() -> None:
    a = arguments(__doc__)
    config = configuration(a)
    problem, hidden = read_problem(a, config)
    ours = with_llm(a, problem, config)
    variants: dict[str, Ours] = {name: without(ours, config, columns) for name, columns in FAMILIES.items()}
    if ours.outcome:
        variants["the judge"] = copy.copy(ours)
        variants["the judge"].probability = ours.evidence
        variants["the pairs' evidence"] = without(ours, config, (), evidence=False)
    variants["all that is learnt: the ceiling alone"] = copy.copy(ours)
    variants["all that is learnt: the ceiling alone"].probability = None
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, variant in variants.items():
        curves[name] = [
            measure(problem, hidden, [variant.choose(a.negatives, s, reject_at=p, depth=d) for s in SEEDS])
            for p, d in DIAL
        ]
    margins = [min(c["margin"] for c in curves["nothing left out"]) + 0.02, 0.2, 0.25]
    print(f"\n{'left out':48}" + "".join(f"  false at margin {m:.3f}" for m in margins))
    for name, curve in curves.items():
        shares = [equal(curve, "margin", m) for m in margins]
        print(f"{name:48}" + "".join(f"  {'out of reach' if s is None else f'{100 * s:.2f} %':>21}" for s in shares))
    write_json(a.out / "ablation.json", curves)


def without(ours: Ours, config: Config, patterns: tuple[str, ...], *, evidence: bool = True) -> Ours:
    """`ours` with its models learnt from tables in which these columns are empty."""
    other = copy.copy(ours)
    names = [n for n in ours.blocks[0].column_names if any(fnmatch(n, p) for p in patterns)]
    path = ours.scratch / "ablation.parquet"
    write_blocks(path, [_emptied(block, names) for block in ours.blocks])
    learnt = learn(path, len(ours.p.pairs))
    other.evidence = learnt if isinstance(learnt, Evidence) and evidence else None
    other.probability = _blind(other.evidence, names) if other.evidence else None
    if ours.outcome and not isinstance(ours.outcome.model, str):
        rows, weights = _sample(ours, config)
        columns = with_evidence(columns_of(take(path, rows)), other.evidence)
        yes = ours.outcome.judged.logits[: len(rows)] >= ours.outcome.error.threshold
        questions = take(path, rows, ["pair_id"])["pair_id"].to_pylist()
        model = fit(columns, yes, weights, questions, ours.outcome.error)
        assert not isinstance(model, str)
        judged = Outcome(ours.outcome.judged, ours.outcome.error, model).table(path)
        other.probability = _blind(Probabilities(model, judged, other.evidence), names)
    return other


def _emptied(block: pa.Table, names: list[str]) -> pa.Table:
    for name in names:
        place = block.column_names.index(name)
        block = block.set_column(place, name, pa.nulls(len(block), block.schema.field(place).type))
    return block


def _blind(probability: Any, names: list[str]) -> Any:
    def of(scores: pa.Table, columns: Columns) -> Columns:
        nothing = np.full(len(scores), np.nan)
        found: Columns = probability(scores, columns | dict.fromkeys(names, nothing))
        return found

    return of


def _sample(ours: Ours, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The rows that were judged to learn from, and their weights: drawn again with the same seed."""
    near, jaccard, rows = eligible(ours.scratch / "scores.parquet", config)
    sample, weights = stratified(near, jaccard, config.judge.labels, config.seed)
    return rows[sample], weights


if __name__ == "__main__":
    main()
