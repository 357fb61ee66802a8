"""`bge-factory audit`: what is wrong with a training file's negatives, ours or anybody's, and how hard they are."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from factory.duplicates import near_duplicate_groups
from factory.false_negatives import JudgeError, judge_error, wilson
from factory.indexes import BM25Index
from factory.languages import squeeze
from factory.models import Encoder, Reranker
from factory.records import InputError, LooseExample, parse, read_lines
from factory.settings import Part

SHOWN = 20  # findings of a kind that are listed; all are counted
OUTLIER = 8.0  # times the median length, or below its 1/8
COMMON = 0.05  # share of the rows in which one negative may stand before it says little
JUDGED_ROWS = 200  # rows judged for the estimate of false negatives, one negative each
CONTROLS = 100  # of these rows, each judged with its own positive and with another's
SAME_SUBJECT = slice(5, 30)  # places in BM25's order from which that other is drawn: the first may answer, too


class Finding(Part):
    """One fault. `line` is the row's line in the file, from 1."""

    kind: str
    line: int
    detail: str


class FalseNegatives(Part):
    """Of a random sample of negatives, the share that answers the question by the judge's word, with 95 % interval;
    `corrected` for the judge's error, where controls show it to be usable."""

    sample: int
    affirmed: int
    share: float
    interval: tuple[float, float]
    corrected: float | None
    corrected_interval: tuple[float, float] | None
    judge: JudgeError


class Audit(Part):
    """Everything found. `margins` are cosines of the positive minus that of each negative."""

    file: str
    rows: int
    positives: int
    negatives: int
    distinct_negatives: int
    counts: dict[str, int]
    findings: list[Finding]
    coverage: float | None = None  # share of the corpus that is a positive or a negative somewhere
    margins: list[float] | None = None
    false_negatives: FalseNegatives | None = None


# What each kind of finding means; the keys are the kinds.
KINDS = {
    "negative-is-positive": "a negative is one of the row's own positives, after white space, width and case",
    "negative-copies-positive": "a negative is a near-copy of one of the row's own positives",
    "negative-answers-same-question": "a negative is, or copies, the positive of another row with the same question",
    "repeated-negative": "the same text stands twice among a row's negatives",
    "repeated-row": "a row with the same question and the same positive stands in the file before",
    "query-as-passage": "a positive or negative is the question itself",
    "same-negatives-everywhere": "one text is a negative in more than 5 % of the rows",
    "length-outlier": "a passage is over 8 times as long as the median one, or under an eighth of it",
    "uneven-groups": "a row has fewer negatives than most; the trainer repeats them to fill the group",
}


def audit(
    path: Path,
    *,
    corpus: Sequence[str] = (),
    encoder: Encoder | None = None,
    judge: Reranker | None = None,
    near_copy: float = 0.8,
    seed: int = 42,
) -> Audit:
    """Read a training file and look for every fault of `KINDS`.

    Args:
        corpus: all passages, for the coverage. encoder: for the margins. judge: for the share of false negatives.
        near_copy: Jaccard on character 5-grams from which two texts are copies.

    Raises:
        InputError: the file is missing or holds no row, or a line does not fit (`bge-factory validate` lists them all).
    """
    numbered = [(number, parse(LooseExample, row, f"{path}:{number}")) for number, row in read_lines(path)]
    rows = [row for _, row in numbered]
    if not rows:
        raise InputError("holds no row", where=path)
    findings = _findings(numbered, near_copy)
    counts = Counter(f.kind for f in findings)
    shown: Counter[str] = Counter()
    listed = []
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= SHOWN:
            listed.append(finding)
    used = {squeeze(t) for r in rows for t in (*r.pos, *r.neg)}
    known = {squeeze(t) for t in corpus}
    return Audit(
        file=str(path),
        rows=len(rows),
        positives=sum(len(r.pos) for r in rows),
        negatives=sum(len(r.neg) for r in rows),
        distinct_negatives=len({n for r in rows for n in r.neg}),
        counts={kind: counts[kind] for kind in KINDS if counts[kind]},
        findings=listed,
        coverage=len(known & used) / len(known) if known else None,
        margins=_margins(rows, encoder) if encoder else None,
        false_negatives=_false_negatives(rows, judge, seed) if judge else None,
    )


def _findings(numbered: Sequence[tuple[int, LooseExample]], near_copy: float) -> list[Finding]:
    rows = [row for _, row in numbered]
    texts = list(dict.fromkeys(t for r in rows for t in (*r.pos, *r.neg)))
    at = {t: i for i, t in enumerate(texts)}
    plain = [squeeze(t) for t in texts]
    groups = near_duplicate_groups(texts, near_copy)
    lengths = np.array([len(t) for t in texts])
    median = float(np.median([lengths[at[t]] for r in rows for t in (*r.pos, *r.neg)])) if rows else 0
    usual = Counter(len(r.neg) for r in rows).most_common(1)[0][0] if rows else 0
    answers: dict[str, set[int]] = defaultdict(set)  # of each question, the groups of its positives in any row
    for r in rows:
        answers[squeeze(r.query)] |= {groups[at[t]] for t in r.pos}
    in_rows = Counter(at[n] for r in rows for n in set(r.neg))
    seen: set[tuple[str, ...]] = set()
    found: list[Finding] = []

    def add(kind: str, line: int, text: str, more: str = "") -> None:
        found.append(Finding(kind=kind, line=line, detail=(more and f"{more}: ") + text[:80]))

    for line, r in numbered:
        own, own_groups = {plain[at[t]] for t in r.pos}, {groups[at[t]] for t in r.pos}
        query = squeeze(r.query)
        key = (query, *sorted(own))
        if key in seen:
            add("repeated-row", line, r.query)
        seen.add(key)
        before: set[str] = set()
        for n in r.neg:
            text, group = plain[at[n]], groups[at[n]]
            if text in own:
                add("negative-is-positive", line, n)
            elif group in own_groups:
                add("negative-copies-positive", line, n)
            elif group in answers[query]:
                add("negative-answers-same-question", line, n)
            if text in before:
                add("repeated-negative", line, n)
            before.add(text)
        for t in (*r.pos, *r.neg):
            if plain[at[t]] == query:
                add("query-as-passage", line, t)
            if len(t) > OUTLIER * median or len(t) * OUTLIER < median:
                add("length-outlier", line, t, f"{len(t)} characters, the median is {median:.0f}")
        if len(r.neg) < usual:
            add("uneven-groups", line, r.query, f"{len(r.neg)} negatives, most rows have {usual}")
    for i, count in in_rows.most_common():
        if len(rows) < 2 / COMMON or count <= COMMON * len(rows):  # a handful of rows cannot tell
            break
        line = next(number for number, r in numbered if texts[i] in r.neg)
        add("same-negatives-everywhere", line, texts[i], f"in {count} of {len(rows)} rows")
    return found


def _margins(rows: Sequence[LooseExample], encoder: Encoder) -> list[float]:
    """cos(query, first positive) − cos(query, negative), for every negative of the file."""
    texts = list(dict.fromkeys(t for r in rows for t in (*r.pos[:1], *r.neg)))
    at = {t: i for i, t in enumerate(texts)}
    vectors = encoder.encode(texts, "passage").dense
    queries = encoder.encode([r.query for r in rows], "query").dense
    found: list[float] = []
    for r, query in zip(rows, queries, strict=True):
        scores = vectors[[at[t] for t in (r.pos[0], *r.neg)]] @ query
        found.extend((scores[0] - scores[1:]).tolist())
    return found


def _false_negatives(rows: Sequence[LooseExample], judge: Reranker, seed: int) -> FalseNegatives:
    draw = random.Random(seed)
    sample = draw.sample(list(rows), min(JUDGED_ROWS, len(rows)))
    pairs = [(r.query, draw.choice(r.neg)) for r in sample]
    controls = [(r.query, r.pos[0]) for r in sample[:CONTROLS]]
    wrong = _same_subject(sample[:CONTROLS], rows, draw)
    logits = judge.score([*pairs, *controls, *wrong])
    n, m = len(pairs), len(pairs) + len(controls)
    error = judge_error(logits[n:m], logits[m:])
    affirmed = int((logits[:n] >= error.threshold).sum())
    low, high = wilson(affirmed, n)
    ends = error.corrected(np.array([affirmed / n, low, high])).tolist() if error.usable else None
    return FalseNegatives(
        sample=n,
        affirmed=affirmed,
        share=affirmed / n,
        interval=(low, high),
        corrected=ends[0] if ends else None,
        corrected_interval=(ends[1], ends[2]) if ends else None,
        judge=error,
    )


def _same_subject(
    sample: Sequence[LooseExample], rows: Sequence[LooseExample], draw: random.Random
) -> list[tuple[str, str]]:
    """Each question with another row's positive that shares words with it. A small LLM tells its own passage from any
    other subject, and yet affirms whatever is of the same one: an unrelated passage would flatter it."""
    answers: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        answers[squeeze(r.query)].update(r.pos)
    texts = list(dict.fromkeys(r.pos[0] for r in rows))
    wrong = []
    for r, found in zip(sample, BM25Index(texts).search([r.query for r in sample], SAME_SUBJECT.stop)[1], strict=True):
        others = [t for i in found if i >= 0 and (t := texts[i]) not in answers[squeeze(r.query)]]
        others = others[SAME_SUBJECT] or others[-1:] or [t for t in texts if t not in answers[squeeze(r.query)]]
        if others:
            wrong.append((r.query, draw.choice(others)))
    return wrong


def render(a: Audit) -> list[Any]:
    """The audit for a terminal: rich renderables."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{a.file}: {a.rows:,} rows, {a.positives:,} positives, {a.negatives:,} negatives "
        f"({a.distinct_negatives:,} distinct)",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for name, justify in (("finding", "left"), ("rows", "right"), ("what it means", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for kind, meaning in KINDS.items():
        table.add_row(kind, f"{a.counts.get(kind, 0):,}", meaning, style="red" if a.counts.get(kind) else "dim")
    lines: list[Any] = [table]
    lines += [f"  line {f.line}: {f.kind}: {f.detail}" for f in a.findings]
    if a.coverage is not None:
        lines.append(f"coverage: {100 * a.coverage:.1f} % of the corpus is a positive or a negative somewhere")
    if a.margins is not None:
        lines += histogram(a.margins)
    if a.false_negatives is not None:
        lines += _said(a.false_negatives)
    return lines


def _said(f: FalseNegatives) -> list[str]:
    lines = [
        f"false negatives: the judge affirms {f.affirmed} of {f.sample} negatives drawn at random, "
        f"{100 * f.share:.1f} % [{100 * f.interval[0]:.1f}, {100 * f.interval[1]:.1f}]",
        f"  on {f.judge.controls} controls it is right on {100 * f.judge.sensitivity:.0f} % of the positives and "
        f"{100 * f.judge.specificity:.0f} % of other passages on the subject",
    ]
    if f.corrected is None or f.corrected_interval is None:
        return [*lines, "  that is too often wrong: the share above says nothing about the file"]
    low, high = f.corrected_interval
    return [*lines, f"  corrected for that: {100 * f.corrected:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"]


def histogram(margins: Sequence[float]) -> list[str]:
    """How hard the negatives are, as bars: the margin by which the positive beats each."""
    values = np.asarray(margins)
    edges = np.array([-np.inf, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.3, np.inf])
    counts = np.histogram(values, edges)[0]
    lines = [f"hardness: margin of the positive over each negative, median {np.median(values):.3f}"]
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        name = (
            f"below {high:.2f}"
            if low == -np.inf
            else f"above {low:.2f}"
            if high == np.inf
            else f"{low:.2f} to {high:.2f}"
        )
        bar = "█" * round(40 * count / max(counts.max(), 1))
        lines.append(f"  {name:>14}  {bar} {100 * count / max(len(values), 1):.1f} %")
    return lines
