"""Between score and choose: the LLM judges controls, a sample, and what the model learnt from it is least sure of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.config import Config
from factory.evidence import Evidence, with_evidence
from factory.false_negatives import FalseNegativeModel, JudgeError, fit, judge_error
from factory.models import Reranker
from factory.presets import Columns, closeness, columns_of
from factory.records import Pair
from factory.retrieve import Target
from factory.tables import row_groups, take

CLOSENESS_BINS = (-np.inf, 0.3, 0.5, 0.65, 0.8, 0.9, 1.0, np.inf)
LIKENESS_BINS = (-np.inf, 0.05, 0.15, np.inf)  # Jaccard of positive and candidate
BAND = (0.05, 0.95)  # probabilities between which a further judgement can change a decision


@dataclass(frozen=True)
class Judged:
    """Judgements: row numbers in 6-scores.parquet, logits, and what each was asked for."""

    rows: np.ndarray
    logits: np.ndarray
    purpose: list[str]


@dataclass(frozen=True)
class Outcome:
    """`model` is the learnt one, or in words why there is none; `error` the judge's on the controls."""

    judged: Judged
    error: JudgeError
    model: FalseNegativeModel | str

    def table(self, scores: Path) -> pa.Table:
        """pair_id, candidate_id, logit, yes, purpose of each judged candidate."""
        ids = take(scores, self.judged.rows, ["pair_id", "candidate_id"])
        yes = self.judged.logits >= self.error.threshold
        more = {"logit": pa.array(self.judged.logits, pa.float32()), "yes": yes, "purpose": self.judged.purpose}
        return pa.table({name: ids[name] for name in ids.column_names} | more)


def judge_candidates(
    scores: Path,
    pairs: Sequence[Pair],
    targets: Sequence[Target],
    config: Config,
    judge: Reranker,
    say: Callable[[str], None],
    evidence: Evidence | None = None,
) -> Outcome:
    """Judge controls, then a stratified sample, fit the model, then spend `judge.band` where it is least sure.

    A judge that does not tell a question's own passage from the controls' wrong ones gets no further than these.
    """
    query, text = {p.id: p.query for p in pairs}, {t.id: t.text for t in targets}

    def ask(rows: np.ndarray) -> np.ndarray:
        ids = take(scores, rows, ["pair_id", "candidate_id"])
        both = zip(ids["pair_id"].to_pylist(), ids["candidate_id"].to_pylist(), strict=True)
        return judge.score([(query[p], text[c]) for p, c in both])

    c = config.judge
    near, jaccard, rows = eligible(scores, config)
    wrong = unlikely(scores, rows, evidence, config.seed) if evidence else {}
    error = judge_error(*controls(pairs, targets, c.controls, config.seed, judge, wrong))
    say(
        f"the judge on {error.controls} controls: right on {100 * error.sensitivity:.0f} % of the answering and "
        f"{100 * error.specificity:.0f} % of the other passages"
    )
    nothing = Judged(np.zeros(0, np.int64), np.zeros(0, np.float32), [])
    if not error.usable:
        return Outcome(nothing, error, "the judge is wrong too often on the controls to learn from it")
    if not len(rows):
        return Outcome(nothing, error, "no candidate could be drawn, so none was judged")
    sample, weights = stratified(near, jaccard, c.labels, config.seed)
    logits = ask(rows[sample])
    judged = Judged(rows[sample], logits, ["sample"] * len(sample))
    columns = with_evidence(columns_of(take(scores, rows[sample])), evidence)
    questions = take(scores, rows[sample], ["pair_id"])["pair_id"].to_pylist()
    model = fit(columns, logits >= error.threshold, weights, questions, error)
    if isinstance(model, str):
        return Outcome(judged, error, model)
    band = unsure(scores, np.setdiff1d(rows, rows[sample]), model, config.choose.reject_at, evidence)[: c.band]
    if len(band):
        judged = Judged(np.r_[judged.rows, band], np.r_[logits, ask(band)], judged.purpose + ["least sure"] * len(band))
    return Outcome(judged, error, model)


def controls(
    pairs: Sequence[Pair], targets: Sequence[Target], n: int, seed: int, judge: Reranker, wrong: dict[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of n questions with their own passage, and with one that does not answer: the candidate that `wrong` names,
    else a passage of another document (another group, if there is only one document)."""
    draw = random.Random(f"{seed}:controls")
    drawn = draw.sample(list(pairs), min(n, len(pairs)))
    document = {t.id: t.document_id for t in targets}
    text = {t.id: t.text for t in targets}
    strangers = []
    for pair in drawn:
        if pair.id in wrong:
            strangers.append((pair.query, text[wrong[pair.id]]))
            continue
        others = [
            t for t in draw.sample(list(targets), min(50, len(targets))) if t.duplicate_group != pair.duplicate_group
        ]
        elsewhere = [t for t in others if t.document_id != document[pair.target_id]]
        strangers += [(pair.query, t.text) for t in (elsewhere or others)[:1]]
    logits = judge.score([*((p.query, p.target_text) for p in drawn), *strangers])
    return logits[: len(drawn)], logits[len(drawn) :]


def eligible(scores: Path, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(closeness, Jaccard with the positive, row number) of what could be drawn: no near-copies, and of each question
    the first 2 × `choose.depth` of its hardest, since rejections let deeper ones move up."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    wanted = ["rank", "score", "positive_score", "chance_score", "answer_tgt_answer_jaccard"]
    ranks = [n for n in ("dense_rank", "sparse_rank") if n in pq.ParquetFile(scores).schema_arrow.names]
    at = 0
    for block in row_groups(scores, [*wanted, *ranks]):
        columns = columns_of(block)
        jaccard = columns["answer_tgt_answer_jaccard"]
        rank = np.fmin.reduce([columns[n] for n in ranks or ["rank"]])
        good = (jaccard < config.choose.near_copy) & (rank <= 2 * config.choose.depth)
        found.append((closeness(columns)[good], jaccard[good], at + np.flatnonzero(good)))
        at += len(block)
    near, jaccard, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return near, jaccard, rows


def unlikely(scores: Path, rows: np.ndarray, evidence: Evidence, seed: int) -> dict[str, str]:
    """For each question one of its eligible candidates, from the half of them that looks least like an answer.

    A small LLM tells a question's own passage from any other subject, and yet affirms whatever is of the same subject:
    only candidates show its error on candidates.
    """
    found: dict[str, str] = {}
    at = 0
    for block in row_groups(scores):
        here = block.take(pa.array(rows[(rows >= at) & (rows < at + len(block))] - at))
        at += len(block)
        looks = evidence.evidence(columns_of(here))
        pair_ids, candidates = here["pair_id"].to_numpy(zero_copy_only=False), here["candidate_id"].to_pylist()
        for pair in dict.fromkeys(pair_ids.tolist()):
            own = np.flatnonzero(pair_ids == pair)
            least = own[np.argsort(looks[own], kind="stable")][: max(1, len(own) // 2)]
            found[pair] = candidates[random.Random(f"{seed}:unlikely:{pair}").choice(least.tolist())]
    return found


def stratified(near: np.ndarray, jaccard: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(drawn places, weights): equally many of each stratum of closeness and likeness, as far as it has them, and how
    many candidates each drawn one stands for."""
    rng = np.random.default_rng(seed)
    stratum = np.digitize(near, CLOSENESS_BINS) * 100 + np.digitize(jaccard, LIKENESS_BINS)
    members = [rng.permutation(np.flatnonzero(stratum == s)) for s in np.unique(stratum)]
    members.sort(key=len)
    drawn, weights, left = [], [], min(n, len(near))
    for i, group in enumerate(members):
        share = min(len(group), left // (len(members) - i))
        drawn.append(group[:share])
        weights.append(np.full(share, len(group) / max(share, 1)))
        left -= share
    return np.concatenate(drawn), np.concatenate(weights)


def unsure(
    scores: Path, rows: np.ndarray, model: FalseNegativeModel, threshold: float, evidence: Evidence | None
) -> np.ndarray:
    """The row numbers, those first whose probability is nearest to the threshold (in log-odds)."""
    found = []
    at = 0
    for block in row_groups(scores):
        here = rows[(rows >= at) & (rows < at + len(block))]
        columns = with_evidence(columns_of(block.take(pa.array(here - at))), evidence)
        found.append((here, model.probability(columns)))
        at += len(block)
    places, p = (np.concatenate(parts) for parts in zip(*found, strict=True))
    at_stake = min(max(threshold, 0.001), 0.999)  # 0 and 1 have no odds
    inside = (p > BAND[0]) & (p < BAND[1])
    distance = np.abs(np.log(p[inside] / (1 - p[inside])) - np.log(at_stake / (1 - at_stake)))
    return np.asarray(places[inside][np.argsort(distance, kind="stable")])


class Probabilities:
    """For `Chooser`: each candidate's probability of answering, with the judge's word taken in where it gave one."""

    def __init__(self, model: FalseNegativeModel, judgements: pa.Table, evidence: Evidence | None = None):
        self.model, self.evidence = model, evidence
        names = ("pair_id", "candidate_id", "yes")
        self._said = {(p, c): yes for p, c, yes in zip(*(judgements[n].to_pylist() for n in names), strict=True)}

    def __call__(self, scores: pa.Table, columns: Columns) -> Columns:
        p = self.model.probability(with_evidence(columns, self.evidence))
        keys = zip(scores["pair_id"].to_pylist(), scores["candidate_id"].to_pylist(), strict=True)
        said = np.array([self._said.get(key, -1) for key in keys], np.float64)
        judged = said >= 0
        p[judged] = self.model.after_judging(p[judged], said[judged] > 0)
        return {"probability": p, "judged": judged.astype(np.float64)}
