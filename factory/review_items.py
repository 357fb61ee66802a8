"""What the review page shows of a run: each question with its positive and its negatives, the doubtful ones first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from factory.records import InputError, Pair, Passage, read_records
from factory.retrieve import SOURCES, targets_of
from factory.review import REVIEW, Decision, Review, digest
from factory.settings import ChooseConfig

ALSO = "also"  # the reason of a positive that the question's pair names


@dataclass(frozen=True)
class Text:
    """A passage on the page, and in small print why it is there. A number that is not known is None.

    Attributes:
        source: file and headings. closeness: its score from a chance pair's (0) to the positive's (1).
        probability: that it answers the question, as it was learnt. ranks: by the name of the search.
    """

    id: str
    text: str
    source: str = ""
    reason: str = ""
    probability: float | None = None
    closeness: float | None = None
    ranks: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Item:
    """A question to decide on. `positives`: its own text and those that a judge said to answer, too; `texts` as in
    `Decision`, of all that can be decided on."""

    pair: Pair
    positives: tuple[Text, ...]
    candidates: tuple[Text, ...]
    texts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """For the page and for other tools: plain values."""
        p = self.pair
        told = {
            name: getattr(p, name) for name in ("id", "query", "answer", "type", "asker", "split", "origin", "rank")
        }
        return told | {
            "positives": [asdict(t) for t in self.positives],
            "candidates": [asdict(t) for t in self.candidates],
        }


class Items:
    """All questions of a run, in the order in which to read them.

    The uncertain ones first, since there a word of an expert changes most: training questions by how near, in log-odds,
    the learnt probability of answering of one of their negatives lies to `choose.reject_at` (of a promoted candidate: to
    `choose.promote_at`; the judge's word is in these probabilities). Where none was learnt, those first of which a
    negative comes closest to the positive's score. Then held-out questions, those first whose passage the base model
    ranks deepest. A question's negatives come likewise: the likeliest to answer first. Ties stay in the order of the file.

    Raises:
        InputError: the folder holds no questions yet.
    """

    def __init__(self, run: Path):
        kept = run / "4-kept.jsonl"
        if not kept.is_file():
            raise InputError("no questions to review", where=run, fix="give the --out of a `bge-factory build`")
        pairs = read_records(kept, Pair)
        self.pairs = {p.id: p for p in pairs}
        passages = read_records(run / "2-passages.jsonl", Passage)
        self._targets = {t.id: t for t in targets_of(passages, pairs)}
        self._text = {t.id: t.text for t in self._targets.values()}
        self._passages = {p.id: p for p in passages}
        self._by_text = {t.text: t.id for t in self._targets.values()}
        self._columns = _candidates(run)
        owner = self._columns["pair_id"]
        begins = [i for i in range(len(owner)) if i == 0 or owner[i] != owner[i - 1]]
        self._rows = {owner[b]: range(b, e) for b, e in zip(begins, [*begins[1:], len(owner)], strict=True)}
        doubts = _doubts(self._columns, _choose_config(run))
        self.order = sorted(self.pairs, key=lambda i: self._priority(self.pairs[i], doubts))

    def item(self, pair_id: str, decision: Decision | None = None) -> Item:
        """A question; candidates that the decision names are there, whatever a build made of them since."""
        pair = self.pairs[pair_id]
        own = self._by_text.get(pair.target_text, pair.target_id)
        positives = [Text(own, pair.target_text, self._source(pair.passage_id))]
        also = [self._targets[i] for i in pair.also if i in self._targets and self._targets[i].text != pair.target_text]
        positives += [Text(t.id, t.text, self._source(t.id), ALSO) for t in also]
        candidates: list[Text] = []
        for row in self._rows.get(pair_id, ()):
            text = self._candidate(row)
            promoted = self._columns["decision"][row] == "promoted" and text.reason != REVIEW
            (positives if promoted else candidates).append(text)
        there = {t.id for t in (*positives, *candidates)}
        for name in decision.negatives if decision else ():
            if name in self._targets and name not in there:
                candidates.append(Text(name, self._targets[name].text, self._source(name), REVIEW))
        candidates.sort(key=lambda t: (-(t.probability or 0), -(t.closeness or 0)))
        texts = {pair.id: digest(pair.query, pair.target_text)} | {t.id: digest(t.text) for t in candidates}
        return Item(pair, tuple(positives), tuple(candidates), texts)

    def holding(self, decision: Decision | None) -> Decision | None:
        """The decision as a build would apply it; None if it is on a question or a text that is no longer here."""
        pair = self.pairs.get(decision.id) if decision else None
        return Review({pair.id: decision}).holding([pair], self._text).get(pair.id) if decision and pair else None

    def _candidate(self, row: int) -> Text:
        c = self._columns
        name = c["candidate_id"][row]
        ranks = {s: int(c[f"{s}_rank"][row]) for s in SOURCES if f"{s}_rank" in c and not np.isnan(c[f"{s}_rank"][row])}
        return Text(
            id=name,
            text=self._targets[name].text if name in self._targets else "",
            source=self._source(name),
            reason=c["reason"][row],
            probability=_number(c["probability"][row]),
            closeness=_number(c["closeness"][row]),
            ranks=ranks,
        )

    def _source(self, name: str) -> str:
        passage = self._passages.get(name)
        return " › ".join([passage.source, *passage.headings]) if passage else ""

    def _priority(self, pair: Pair, doubts: Mapping[str, tuple[float, float]]) -> tuple[float, ...]:
        if pair.split == "train":
            return 0, *doubts.get(pair.id, (np.inf, np.inf))
        return 1, -(pair.rank or 0), 0


def _candidates(run: Path) -> dict[str, np.ndarray]:
    """Columns of the chosen candidates, a pair's next to one another; numbers are float, NaN where there is none."""
    import polars as pl

    decisions, scores = run / "7-decisions.parquet", run / "6-scores.parquet"
    names = ("pair_id", "candidate_id", "decision", "reason", "probability")
    if not decisions.is_file() or not scores.is_file():
        return {n: np.zeros(0, object) for n in names} | {n: np.zeros(0) for n in ("probability", "closeness")}
    ranks = [f"{s}_rank" for s in SOURCES if f"{s}_rank" in pq.ParquetFile(scores).schema_arrow.names]
    span = (pl.col("positive_score") - pl.col("chance_score")).clip(lower_bound=1e-6)
    near = ((pl.col("score") - pl.col("chance_score")) / span).alias("closeness")
    keys = ["pair_id", "candidate_id"]
    wanted = (
        pl.scan_parquet(decisions).filter(pl.col("decision").is_in(["negative", "promoted"])).select(names).collect()
    )
    found = pl.scan_parquet(scores).select(*keys, near, *ranks).join(wanted.lazy(), on=keys, how="semi")
    table = wanted.join(found.collect(engine="streaming"), on=keys, how="left", maintain_order="left")
    columns: dict[str, np.ndarray] = {n: table[n].to_numpy().astype(object) for n in names[:4]}
    numbers = ("probability", "closeness", *ranks)
    return columns | {n: table[n].cast(pl.Float64).fill_null(np.nan).to_numpy() for n in numbers}


def _doubts(columns: Mapping[str, np.ndarray], config: ChooseConfig) -> dict[str, tuple[float, float]]:
    """For each pair (distance to the threshold in log-odds, minus the closeness), the least of its candidates."""
    at_stake = np.where(columns["decision"] == "promoted", config.promote_at, config.reject_at).astype(float)
    distance = np.abs(_log_odds(columns["probability"]) - _log_odds(at_stake))
    rows = zip(columns["pair_id"], np.nan_to_num(distance, nan=np.inf), -columns["closeness"], strict=True)
    found: dict[str, tuple[float, float]] = {}
    for pair, far, near in rows:
        before = found.get(pair, (np.inf, np.inf))
        found[pair] = (min(before[0], far), min(before[1], np.inf if np.isnan(near) else near))
    return found


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 0.001, 0.999)
    return np.asarray(np.log(p / (1 - p)))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _choose_config(run: Path) -> ChooseConfig:
    """The run's thresholds; the usual ones where run.json does not tell."""
    try:
        known = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]["choose"]
        return ChooseConfig(reject_at=known["reject_at"], promote_at=known["promote_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return ChooseConfig()
