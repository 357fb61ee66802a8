"""How many of the chosen negatives are false ones: our choice beside other miners', against human judgements.

    python -m benchmarks.mining ../shared/data/cran --model MODEL [--llm FILE.gguf] --out ~/bench/mining-cran
    python -m benchmarks.mining ../shared/data/cmrc --model MODEL --plant --out ~/bench/mining-cmrc

Each query keeps one of its relevant passages as its positive (the one judged best); the others are hidden, and a
negative that is one of them is a false negative. --plant adds to the corpus, for 300 queries, two copies of the
positive that nobody labelled: one with other white space and punctuation, one with a sentence moved and a note added.

An easy negative is seldom false, so every other miner is compared with ours at its own hardness: the mean margin,
cos(query, positive) − cos(query, negative), or the mean rank, over the *true* negatives of each. Queries are evaluation data: nothing
here is tuned on them. With --llm the LLM judges, as in a build; without it what the pairs teach decides.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import collection_parser, parse
from benchmarks.miners import Negatives, Ours, Problem, others
from factory.config import Config
from factory.duplicates import near_duplicate_groups
from factory.evalset import read_eval_set
from factory.models import CachedEncoder, load_encoder, model_fingerprint
from factory.records import Pair
from factory.retrieve import Target
from factory.workspace import write_json

SEEDS = (1, 2, 3)
EQUAL = ("margin", "rank")
# Ours from hard to easy: what is refused (reject_at), and how deep is drawn from (depth); 40 is the default
DIAL = [
    *((0.1, d) for d in (7, 14, 20, 30)),
    *((p, 40) for p in (0.1, 0.05, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001)),
]


def main() -> None:
    a = arguments(__doc__)
    config = configuration(a)
    problem, hidden = read_problem(a, config)
    print(
        f"{len(problem.pairs)} queries, {len(problem.targets)} passages, "
        f"{sum(map(len, hidden)) / len(hidden):.2f} hidden positives a query"
    )
    ours = with_llm(a, problem, config)
    n = a.negatives
    miners = others(problem, n) | {
        "ours, topk": lambda s: ours.choose(n, s, preset="topk"),
        "ours, perc 0.95": lambda s: ours.choose(n, s, preset="perc"),
        "ours, resolve": lambda s: ours.choose(n, s, judge=False),
    }
    if ours.outcome:
        miners["ours, resolve, judged"] = lambda s: ours.choose(n, s)
    rows: dict[str, dict[str, Any]] = {
        name: measure(problem, hidden, [miner(s) for s in SEEDS]) for name, miner in miners.items()
    }
    curves = {
        name: [
            measure(problem, hidden, [ours.choose(n, s, judge=judge, reject_at=p, depth=d) for s in SEEDS])
            | {"reject_at": p, "depth": d}
            for p, d in DIAL
        ]
        for name, judge in {"ours": False, "ours, judged": True}.items()
        if ours.outcome or not judge
    }
    print(
        f"\n{'miner':24} {'margin':>8} {'rank':>7} {'false':>8}",
        *(f"{c + ' at that ' + m:>28}" for c in curves for m in EQUAL),
    )
    for name, row in rows.items():
        said = f"{name:24} {row['margin']:8.3f} {row['rank']:7.0f} {100 * row['false']:7.2f} %"
        for which, curve in curves.items():
            for measure_of in EQUAL:
                found = row[f"{which} at equal {measure_of}"] = equal(curve, measure_of, row[measure_of])
                said += (
                    f" {'out of reach' if found is None else f'{100 * found:.2f} %' + ratio(found, row['false']):>28}"
                )
        print(said)
    for which, curve in curves.items():
        print(f"\n{which}, by reject_at and depth: margin, rank, false")
        for c in curve:
            print(
                f"  {c['reject_at']:.3f} {c['depth']:4d}  {c['margin']:.3f} {c['rank']:5.0f} {100 * c['false']:6.2f} %"
            )
    if ours.evidence:
        e = ours.evidence
        print(
            f"\nevidence from {e.questions} pairs: held-out AUC {e.auc:.3f}, labelled share {e.labelled:.2f}",
            *e.in_words(),
            sep="\n  ",
        )
    result: dict[str, Any] = {"miners": rows, "curves": curves, "queries": len(problem.pairs)}
    if ours.outcome:
        result["judge"] = ours.outcome.error.model_dump()
        print("judge:", json.dumps(result["judge"]))
        result["judge against people"] = against_people(ours, problem, hidden)
        print("judge against people:", json.dumps(result["judge against people"]))
        if not isinstance(ours.outcome.model, str):
            print(*ours.outcome.model.in_words()[:8], sep="\n")
    write_json(a.out / "result.json", result)


def arguments(description: str | None) -> argparse.Namespace:
    p = collection_parser(description)
    p.add_argument("--llm", default="", help="a GGUF file or an URL: judges candidates as in a build")
    p.add_argument("--labels", type=int, default=200)
    p.add_argument("--band", type=int, default=200)
    p.add_argument("--controls", type=int, default=50)
    p.add_argument("--negatives", type=int, default=7)
    p.add_argument("--plant", action="store_true")
    p.add_argument("--out", type=Path, required=True, help="caches and result.json; not in the work tree")
    return parse(p)


def configuration(a: argparse.Namespace) -> Config:
    llm = {"serve": "endpoint", "url": a.llm} if a.llm.startswith("http") else {"model": a.llm}
    settings = {
        "input": {"path": str(a.collection)},
        "model": {
            "path": str(a.model.expanduser()),
            "query_instruction": a.query_instruction,
            "passage_instruction": a.passage_instruction,
        },
        "llm": llm | {"context": 1536},
        "mine": {"top_k": 210},  # as deep as hn_mine looks
        "judge": {"labels": a.labels, "band": a.band, "controls": a.controls},
    }
    return Config.model_validate(settings)


def read_problem(a: argparse.Namespace, config: Config) -> tuple[Problem, list[set[int]]]:
    """The problem, and for each pair the targets that answer it as well but are not labelled."""
    data = read_eval_set(a.collection)
    texts = list(data.passages)
    relevant = [dict(r) for r in data.relevant]
    positive = [min(r, key=lambda i: (-r[i], i)) for r in relevant]
    asked = range(len(data.queries))
    if a.plant:
        asked = sorted(random.Random(0).sample(asked, min(300, len(data.queries))))
        for q in asked:
            for copy in planted(texts[positive[q]]):
                relevant[q][len(texts)] = 1
                texts.append(copy)
    groups = near_duplicate_groups(texts, config.passages.near_duplicate)
    targets = [Target(f"t{i}", t, f"t{groups[i]}", "train", f"t{i}") for i, t in enumerate(texts)]
    pairs = [
        Pair(
            id=f"q{q}", passage_id=f"t{positive[q]}", query=data.queries[q], target_id=f"t{positive[q]}",
            target_text=texts[positive[q]], duplicate_group=f"t{groups[positive[q]]}", split="train",
        )
        for q in asked
    ]  # fmt: skip
    encoder = CachedEncoder(load_encoder(config.model), a.out / "cache")
    answers = encoder.encode(texts, "passage").dense
    queries = encoder.encode([p.query for p in pairs], "query").dense
    return Problem(pairs, targets, queries, answers), [set(relevant[q]) - {positive[q]} for q in asked]


def planted(text: str) -> list[str]:
    """Two texts that answer what this one answers: the same but for white space and the width of punctuation, and one
    with its last sentence first and a note before it."""
    stop = "。" if "。" in text else ". "
    wide = text.replace("，", ", ").replace("。", "。\n").replace(". ", ".  ")
    sentences = [s for s in text.split(stop) if s.strip()]
    moved = stop.join([sentences[-1].strip(), *sentences[:-1]])
    note = (
        "（本条据原件转录，校对日期见卷宗封面）"
        if stop == "。"
        else "(Transcribed from the original; see the file's cover.) "
    )
    return [wide + " ", note + moved]


def with_llm(a: argparse.Namespace, problem: Problem, config: Config) -> Ours:
    if not a.llm:
        return Ours(problem, config, a.out, None, print)
    from factory.judge import LLMJudge
    from factory.llm import LLM

    identity = a.llm if a.llm.startswith("http") else model_fingerprint(Path(a.llm).expanduser())
    with LLM(config.llm, identity, a.out / "llm.sqlite", a.out / "llm-server.log", print) as llm:
        return Ours(problem, config, a.out, LLMJudge(llm), print)


def measure(problem: Problem, hidden: list[set[int]], draws: list[Negatives]) -> dict[str, float]:
    """Share of false negatives, and how hard the true ones are: mean margin, mean rank."""
    own = np.array(problem.positives())
    positive = (problem.queries * problem.answers[own]).sum(axis=1)
    false = total = 0
    margins, ranks = [], []
    for q in range(len(own)):
        scores = problem.answers @ problem.queries[q]
        order = np.argsort(-scores, kind="stable")
        rank = np.empty(len(order), int)
        rank[order] = np.arange(1, len(order) + 1)
        for draw in draws:
            total += len(draw[q])
            for i in draw[q]:
                if i in hidden[q]:
                    false += 1
                else:
                    margins.append(positive[q] - scores[i])
                    ranks.append(rank[i])
    return {
        "false": false / max(total, 1),
        "margin": float(np.mean(margins)),
        "rank": float(np.mean(ranks)),
        "n": total,
    }


def equal(curve: list[dict[str, float]], measure_of: str, value: float) -> float | None:
    """Our share of false negatives at this margin, or at this rank, between the points measured; None where we go
    neither so hard nor so easy (by more than a twentieth)."""
    points = sorted((c[measure_of], c["false"]) for c in curve)
    x, y = [m for m, _ in points], [f for _, f in points]
    return float(np.interp(value, x, y)) if 0.95 * x[0] <= value <= 1.05 * x[-1] else None


def ratio(ours: float, other: float) -> str:
    return f" ({ours / other:.2f} x)" if other else ""


def against_people(ours: Ours, problem: Problem, hidden: list[set[int]]) -> dict[str, float]:
    """Of the judged candidates: how often the judge and the people agree."""
    assert ours.outcome
    at = {t.id: i for i, t in enumerate(problem.targets)}
    place = {p.id: i for i, p in enumerate(problem.pairs)}
    table = ours.outcome.table(ours.scratch / "scores.parquet").to_pylist()
    both = [(r["yes"], at[r["candidate_id"]] in hidden[place[r["pair_id"]]]) for r in table]
    yes, true = np.array([y for y, _ in both], bool), np.array([t for _, t in both], bool)
    return {
        "judged": len(both),
        "relevant": int(true.sum()),
        "affirmed": int(yes.sum()),
        "sensitivity": float(yes[true].mean()) if true.any() else float("nan"),
        "specificity": float((~yes[~true]).mean()) if (~true).any() else float("nan"),
    }


if __name__ == "__main__":
    main()
