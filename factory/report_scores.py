"""The report's section on negatives: how scores, ranks and probabilities lie, and the thresholds that decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.negatives import DECISIONS, SCORES
from factory.records import InputError
from factory.report_charts import GREEN, GREY, ORANGE, RED, Chart, histogram
from factory.report_words import Text, join, known, say
from factory.settings import ChooseConfig

BINS = 40
FINE = 4000  # bins of a first count, from which those of the chart and the quartiles are made
NUMBERS = ("score", "rank", "dense_rank", "positive_score", "chance_score", "rerank_score")
QUARTILES = (("low", 0.25), ("median", 0.5), ("high", 0.75))
REACH = (-2, 3)  # of nearness to the positive: 0 is an unrelated passage, 1 the positive
GROUPS = (("negative", RED), ("rejected", ORANGE), ("unused", GREY))


@dataclass(frozen=True)
class Spread:
    """One chart with its heading and what it says in words."""

    title: Text
    chart: Chart
    caption: Text


@dataclass(frozen=True)
class Scores:
    """`decisions`: (name, count, reasons) of each kind of candidate; `questions`: that have candidates."""

    decisions: list[tuple[Text, int, list[tuple[Text, int]]]]
    charts: list[Spread]
    questions: int


@dataclass(frozen=True)
class _Counted:
    """Fine counts of one number by group, over [low, high]."""

    low: float
    high: float
    of: Mapping[str, np.ndarray]

    def quantile(self, group: str, q: float) -> float:
        """To within one fine bin."""
        cumulated = np.cumsum(self.of[group])
        place = int(np.searchsorted(cumulated, q * cumulated[-1]))
        return self.low + (place + 0.5) * (self.high - self.low) / FINE

    def total(self, group: str) -> int:
        return int(self.of[group].sum()) if group in self.of else 0

    def binned(self, group: str, low: float, high: float, bins: int) -> np.ndarray:
        centres = self.low + (np.arange(FINE) + 0.5) * (self.high - self.low) / FINE
        return np.histogram(np.clip(centres, low, high), bins, (low, high), weights=self.of[group])[0]


def scores_view(run_folder: Path, run: Mapping[str, Any]) -> Scores | None:
    """None where the run has not come so far.

    Args:
        run: run.json.

    Raises:
        InputError: one of the two files is no Parquet file, or lacks a column.
    """
    scores, decisions = run_folder / SCORES, run_folder / DECISIONS
    if not scores.is_file() or not decisions.is_file():
        return None
    import polars as pl

    try:
        return _view(scores, decisions, _choose(run), "judge" in run.get("stages", {}))
    except (pl.exceptions.PolarsError, OSError) as e:
        what = f"cannot be read: {str(e).splitlines()[0][:200]}"
        raise InputError(what, where=f"{scores}, {decisions}", fix="delete them and build again") from e


def _choose(run: Mapping[str, Any]) -> ChooseConfig:
    """The run's thresholds; keys of other versions are left out."""
    stored = run.get("config", {}).get("choose", {})
    known_keys = {k: v for k, v in stored.items() if k in ChooseConfig.model_fields}
    try:
        return ChooseConfig.model_validate(known_keys)
    except ValueError:
        return ChooseConfig()


def _view(scores: Path, decisions: Path, config: ChooseConfig, judged: bool) -> Scores:
    import polars as pl

    rows = pl.scan_parquet(scores)
    names = rows.collect_schema().names()
    chosen = pl.scan_parquet(decisions)
    if "probability" not in chosen.collect_schema().names():
        chosen = chosen.with_columns(probability=pl.lit(None, pl.Float32))
    counted = (
        chosen.group_by("decision", "reason").len().sort(["len", "decision", "reason"], descending=[True, False, False])
    ).collect(engine="streaming")
    keys = ["pair_id", "candidate_id"]
    numbers = [n for n in names if n in NUMBERS]
    words = chosen.select(*keys, pl.col("decision").cast(pl.Categorical), "probability")
    told = (  # the numbers alone, 40 bytes a candidate
        rows.select(*keys, *numbers).join(words, on=keys, how="inner").drop(keys).collect(engine="streaming").lazy()
    )
    own = [n for n in ("positive_score", "positive_rerank_score") if n in names]
    positives = rows.select("pair_id", *own).unique("pair_id").collect(engine="streaming").lazy()
    charts = [
        _cosines(told, positives),
        _hardness(told, config, judged),
        _probabilities(told, config, judged),
        _ranks(told, config),
        _reranked(told, positives, names),
    ]
    questions = int(positives.select(pl.len()).collect(engine="streaming").item())
    return Scores(_decisions(counted.rows()), [c for c in charts if c], questions)


def _decisions(counted: Sequence[tuple[str, str, int]]) -> list[tuple[Text, int, list[tuple[Text, int]]]]:
    found = []
    for kind in ("negative", "promoted", "rejected", "unused"):
        reasons = [(known("choice", reason), n) for decision, reason, n in counted if decision == kind]
        if reasons:
            found.append((say(f"decision.{kind}"), sum(n for _, n in reasons), reasons))
    return found


def _cosines(told: Any, positives: Any) -> Spread | None:
    import polars as pl

    found = _count(told, pl.col("score"))
    own = _count(positives.with_columns(decision=pl.lit("own")), pl.col("positive_score"))
    if not found or not own:
        return None
    both = _together(found, own)
    chance = float(told.select(pl.col("chance_score").mean()).collect(engine="streaming").item())
    groups = [("own", GREEN), ("negative", RED), ("rejected", ORANGE)]
    caption = say("scores.cosine-caption", own=both.quantile("own", 0.5), negative=_median(both), chance=chance)
    return _spread("cosine", both, groups, [(say("scores.chance", at=chance), chance)], caption)


def _hardness(told: Any, config: ChooseConfig, judged: bool) -> Spread | None:
    """How near to the positive, on the scale on which the preset draws its line."""
    import polars as pl

    score, positive, chance = pl.col("score"), pl.col("positive_score"), pl.col("chance_score")
    closeness = (score - chance) / (positive - chance).clip(lower_bound=1e-6)
    scales: dict[str, tuple[Any, list[tuple[str, float]]]] = {
        "resolve": (closeness, [] if judged else [("ceiling", config.ceiling)]),
        "perc": (1 - (positive - score) / positive.abs().clip(lower_bound=1e-6), [("ceiling", config.ceiling)]),
        "margin": (score - positive, [("margin", -config.margin)]),
        "window": (2 - 2 * score, [("window", config.window[0]), ("window", config.window[1])]),
    }
    expression, marks = scales.get(config.preset, (closeness, []))
    kind = config.preset if config.preset in scales else "resolve"
    found = _count(told, expression.clip(*REACH))
    if not found or not found.total("negative"):
        return None
    lines = [(say(f"scores.{name}", at=value), value) for name, value in marks]
    caption = say(
        f"scores.hardness-{kind}-caption", low=found.quantile("negative", 0.25), high=found.quantile("negative", 0.75)
    )
    drawn = pl.col("decision").is_in([name for name, _ in GROUPS[:2]])
    if kind == "resolve" and (beyond := _how_many(told, drawn & ~expression.is_between(*REACH))):
        caption = join([caption, say("scores.beyond", n=beyond, low=REACH[0], high=REACH[1])], " ", "")
    return _spread(f"hardness-{kind}", found, GROUPS[:2], lines, caption)


def _probabilities(told: Any, config: ChooseConfig, judged: bool) -> Spread | None:
    import polars as pl

    found = _count(told, pl.col("probability"), (0.0, 1.0))
    if not found:
        return None
    first = round(config.reject_at * FINE)
    above = {kind: int(n[first:].sum()) for kind, n in found.of.items()}
    total = sum(found.total(kind) for kind in found.of)
    marks = [(say("scores.reject_at", at=config.reject_at), config.reject_at)]
    if judged and config.promote_at < 1:
        marks.append((say("scores.promote_at", at=config.promote_at), config.promote_at))
    chosen = above.get("negative", 0)
    caption = say("scores.probability-caption", above=sum(above.values()), of=total, at=config.reject_at, chosen=chosen)
    return _spread("probability", found, GROUPS, marks, caption, bins=50)


def _ranks(told: Any, config: ChooseConfig) -> Spread | None:
    import polars as pl

    names = told.collect_schema().names()
    by_dense = "dense_rank" in names
    found = _count(told, pl.col("dense_rank" if by_dense else "rank").cast(pl.Float64))
    if not found or not found.total("negative"):
        return None
    marks = []
    if config.preset == "range" and by_dense:
        marks = [(say("scores.range", at=rank), float(rank)) for rank in config.range]
    key = "dense" if by_dense else "fused"
    caption = say(f"scores.rank-{key}", **{n: round(found.quantile("negative", q)) for n, q in QUARTILES})
    if by_dense and (without := _how_many(told, (pl.col("decision") == "negative") & pl.col("dense_rank").is_null())):
        caption = join([caption, say("scores.rank-none", n=without)], " ", "")
    return _spread("rank", found, GROUPS[:2], marks, caption)


def _reranked(told: Any, positives: Any, names: Sequence[str]) -> Spread | None:
    import polars as pl

    if "positive_rerank_score" not in names:
        return None
    found = _count(told, pl.col("rerank_score"))
    own = _count(positives.with_columns(decision=pl.lit("own")), pl.col("positive_rerank_score"))
    if not found or not own:
        return None
    both = _together(found, own)
    caption = say("scores.reranker-caption", own=both.quantile("own", 0.5), negative=_median(both))
    return _spread("reranker", both, [("own", GREEN), *GROUPS[:2]], [], caption)


def _median(found: _Counted) -> float:
    return found.quantile("negative", 0.5) if found.total("negative") else float("nan")


def _how_many(rows: Any, which: Any) -> int:
    return int(rows.select(which.sum()).collect(engine="streaming").item())


def _count(rows: Any, number: Any, reach: tuple[float, float] | None = None) -> _Counted | None:
    """Fine counts of `number` for each decision; None where there is no value at all."""
    import polars as pl

    rows = rows.select("decision", value=number.cast(pl.Float64)).filter(pl.col("value").is_finite())
    if reach is None:
        reach = rows.select(low=pl.col("value").min(), high=pl.col("value").max()).collect(engine="streaming").row(0)
    low, high = reach
    if low is None:
        return None
    high = max(high, low + 1e-9)
    place = ((pl.col("value") - low) / (high - low) * FINE).floor().clip(0, FINE - 1).cast(pl.Int32).alias("place")
    counted = rows.group_by(pl.col("decision").cast(pl.String), place).len().collect(engine="streaming")
    of = {kind: np.zeros(FINE, np.int64) for kind in sorted(counted["decision"].unique())}
    for kind, at, n in counted.rows():
        of[kind][at] = n
    return _Counted(low, high, of) if of else None


def _together(a: _Counted, b: _Counted) -> _Counted:
    """Both on one scale."""
    low, high = min(a.low, b.low), max(a.high, b.high)
    return _Counted(low, high, {n: c.binned(n, low, high, FINE) for c in (a, b) for n in c.of})


def _spread(
    key: str,
    found: _Counted,
    groups: Sequence[tuple[str, str]],
    marks: Sequence[tuple[Text, float]],
    caption: Text,
    bins: int = BINS,
) -> Spread:
    """A chart from the lowest to the highest value but for the outermost thousandth, and with every mark in it."""
    there = [(n, colour) for n, colour in groups if found.total(n)]
    values = [value for _, value in marks]
    low = min([*(found.quantile(n, 0.001) for n, _ in there), *values])
    high = max([*(found.quantile(n, 0.999) for n, _ in there), *values])
    if key == "probability":
        low, high = found.low, found.high
    if key == "rank":  # bins of as many whole ranks each
        width = -(-round(found.high - found.low + 1) // bins)
        bins = -(-round(found.high - found.low + 1) // width)
        low, high = found.low - 0.5, found.low - 0.5 + width * bins
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = {n: found.binned(n, low, high, bins) for n, _ in there}
    shown = [(say(f"scores.group-{n}", n=found.total(n)), colour, counts[n]) for n, colour in there]
    tips = [_tip(key, edges[i], edges[i + 1], {n: int(c[i]) for n, c in counts.items()}) for i in range(bins)]
    chart = histogram(edges, shown, marks, across=say(f"axis.{key}"), tips=tips, log=key == "probability")
    return Spread(say(f"scores.{key}"), chart, caption)


def _tip(key: str, low: float, high: float, counts: Mapping[str, int]) -> Text:
    """What a bin holds; its ends with as many digits as tell them apart."""
    if key == "rank":  # the edges lie half a rank outside
        ends = [f"{low + 0.5:.0f}", f"{high - 0.5:.0f}"]
    else:
        digits = max(0, math.ceil(-math.log10(high - low) - 1e-9))
        ends = [f"{low:.{digits}f}", f"{high:.{digits}f}"]
    held = join(say(f"scores.group-{group}", n=n) for group, n in counts.items())
    return join([" … ".join(dict.fromkeys(ends)), held], ": ", "：")
