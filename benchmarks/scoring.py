"""How long the lexical features of many candidates take, beside the least that it could take, and plain Python.

    python -m benchmarks.scoring ../shared/data/cjrc --queries 200000 --candidates 10

COLLECTION is a folder with corpus.jsonl and queries.jsonl; its texts are cut into passages of about 300 characters.
Measured, in one run on one machine:

  ours       the table of a block as `bge-factory build` makes it, with LCS and edit distance alone, and with Jaccard alone
  bound      rapidfuzz' cpdist alone, on the same distinct pairs of texts, once for LCS and once for edit distance
  plain      the textbook's dynamic programming in Python, on a sample, extrapolated to all pairs (not only distinct ones)
"""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.common import collection_parser, parse, peak
from factory import hybrid
from factory.hybrid import Scorer
from factory.lexical import edit_dist, lcs_score, token_jaccard
from factory.records import Pair, read_lines
from factory.retrieve import BLOCK, Target

LENGTH = 300
BOTH, LCS, JACCARD = "ours, LCS and edit distance", "ours, LCS", "ours, Jaccard"
BOUND_LCS, BOUND_EDIT = "bound: cpdist, LCS", "bound: cpdist, edit distance"


def main() -> None:
    p = collection_parser(__doc__, model=False)
    p.add_argument("--queries", type=int, default=200_000)
    p.add_argument("--candidates", type=int, default=10)
    p.add_argument("--sample", type=int, default=30, help="pairs of each kind for plain Python")
    p.add_argument("--rounds", type=int, default=5)
    a = parse(p)
    pairs, targets = made_up(a.collection, a.queries)
    n = len(pairs) * a.candidates
    rng = np.random.default_rng(0)
    near = rng.integers(1, 400, n)  # candidates are other passages of the corpus
    own = np.repeat(np.arange(len(pairs)) * len(targets) // len(pairs), a.candidates)
    rows = (own + near) % len(targets)
    vectors = rng.normal(size=(len(targets), 4)).astype(np.float32)
    scorer = Scorer(pairs, targets, np.zeros((len(pairs), 4), np.float32), vectors)
    print(
        f"{len(pairs):,} questions x {a.candidates} candidates = {n:,}; {len(targets):,} passages of about {LENGTH} characters"
    )
    before = peak()
    token_jaccard(["a"], ["b"])  # compiled now, not while the clock runs
    keys = distinct(scorer, pairs, rows, a.candidates)
    rounds = [one_round(scorer, rows, a.candidates, keys) for _ in range(a.rounds)]
    for r in rounds:
        print("  " + ", ".join(f"{name} {value:.1f}" for name, value in r.items()), flush=True)
    memory = peak()
    plain = plain_python(keys, a.sample) * 4 * n
    seconds = {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}
    over_bound = [r[BOTH] / (r[BOUND_LCS] + r[BOUND_EDIT]) for r in rounds]
    over_lcs = [r[JACCARD] / r[LCS] for r in rounds]
    everything = seconds[BOTH] + seconds[JACCARD]
    print(f"{sum(len(left) for left, _ in keys):,} distinct pairs of texts of {4 * n:,}; medians of {a.rounds} rounds")
    print(f"{BOTH:30} {seconds[BOTH]:9.1f} s   {ratios(over_bound)} the bound")
    print(f"{BOUND_LCS:30} {seconds[BOUND_LCS]:9.1f} s")
    print(f"{BOUND_EDIT:30} {seconds[BOUND_EDIT]:9.1f} s")
    print(f"{JACCARD:30} {seconds[JACCARD]:9.1f} s   {ratios(over_lcs)} ours, LCS alone ({seconds[LCS]:.1f} s)")
    print(f"{'plain Python, extrapolated':30} {plain:9.0f} s   {plain / everything:6.0f} x ours (all three)")
    print(f"peak memory {memory:.2f} GiB, of which {before:.2f} GiB are the texts and the libraries")


def one_round(
    scorer: Scorer, rows: np.ndarray, candidates: int, keys: list[tuple[list[str], list[str]]]
) -> dict[str, float]:
    """Seconds of each. What is compared runs one beside the other, since a shared machine's speed changes by the minute."""
    seconds = {}
    for name, measures in ((BOTH, ("lcs_score", "edit_dist")), (LCS, ("lcs_score",)), (JACCARD, ("jaccard",))):
        with mock.patch.object(hybrid, "LEXICAL", {m: hybrid.LEXICAL[m] for m in measures}):
            seconds[name] = ours(scorer, rows, candidates)
        if name == BOTH:
            for bound, measure in ((BOUND_LCS, lcs_score), (BOUND_EDIT, edit_dist)):
                started = time.monotonic()
                for lefts, rights in keys:
                    measure(lefts, rights)
                seconds[bound] = time.monotonic() - started
    return seconds


def ratios(values: list[float]) -> str:
    return f"{np.median(values):6.2f} x ({min(values):.2f} to {max(values):.2f})"


def made_up(collection: Path, queries: int) -> tuple[list[Pair], list[Target]]:
    """Passages are windows of the corpus; questions are those of the collection, a number put to each to make it one of many."""
    text = "".join(str(row["text"]).replace("\n", "") for _, row in read_lines(collection / "corpus.jsonl"))
    step = max(1, (len(text) - LENGTH) // 20_000)
    windows = [text[i : i + LENGTH] for i in range(0, len(text) - LENGTH, step)][:20_000]
    targets = [Target(f"t{i}", w, f"t{i}", "train", f"d{i}") for i, w in enumerate(windows)]
    asked = [str(row["text"]) for _, row in read_lines(collection / "queries.jsonl")]
    pairs = []
    for i in range(queries):
        t = targets[i * len(targets) // queries]
        query = f"{asked[i % len(asked)]}{i}"
        pairs.append(
            Pair.model_construct(id=f"q{i}", query=query, target_id=t.id, target_text=t.text, duplicate_group=t.id)
        )
    return pairs, targets


def ours(scorer: Scorer, rows: np.ndarray, candidates: int) -> float:
    """Seconds for the features of every block, as `Scorer.table` computes them."""
    started = time.monotonic()
    for start in range(0, len(rows), BLOCK * candidates):
        ta = rows[start : start + BLOCK * candidates]
        q = np.arange(start, start + len(ta)) // candidates
        at = {"query": q, "answer": scorer._own[q], "target_query": scorer._question_of[ta], "target_answer": ta}
        for left, right in hybrid.SIDES.values():
            there = at[right] >= 0
            scorer._measures(left, at[left][there], right, at[right][there])
    return time.monotonic() - started


def distinct(scorer: Scorer, pairs: list[Pair], rows: np.ndarray, candidates: int) -> list[tuple[list[str], list[str]]]:
    """For each of the four kinds the distinct pairs of texts in the whole run, whichever text comes first."""
    q = np.repeat(np.arange(len(pairs)), candidates)
    at = {"query": q, "answer": scorer._own[q], "target_query": scorer._question_of[rows], "target_answer": rows}
    found = []
    for left, right in hybrid.SIDES.values():
        lt, rt = scorer._of(left)[1], scorer._of(right)[1]
        li, ri = at[left][at[right] >= 0], at[right][at[right] >= 0]
        if left.endswith("query") == right.endswith("query"):
            li, ri = np.minimum(li, ri), np.maximum(li, ri)
        keys = np.unique(li * (len(rt) + 1) + ri)
        found.append(([lt[i] for i in keys // (len(rt) + 1)], [rt[i] for i in keys % (len(rt) + 1)]))
    return found


def plain_python(keys: list[tuple[list[str], list[str]]], sample: int) -> float:
    """Seconds for one pair of texts, on average over the four kinds."""
    started = time.monotonic()
    for lefts, rights in keys:
        for a, b in zip(lefts[:sample], rights[:sample], strict=True):
            lcs = [0] * (len(b) + 1)
            edit = list(range(len(b) + 1))
            for i, x in enumerate(a, 1):
                above_lcs, above_edit = lcs, edit
                lcs, edit = [0] * (len(b) + 1), [i] * (len(b) + 1)
                for j, y in enumerate(b, 1):
                    lcs[j] = above_lcs[j - 1] + 1 if x == y else max(above_lcs[j], lcs[j - 1])
                    edit[j] = min(above_edit[j] + 1, edit[j - 1] + 1, above_edit[j - 1] + (x != y))
            words = {a[i : i + 2] for i in range(len(a))}, {b[i : i + 2] for i in range(len(b))}
            len(words[0] & words[1]) / max(len(words[0] | words[1]), 1)
    return (time.monotonic() - started) / (4 * sample)


if __name__ == "__main__":
    main()
