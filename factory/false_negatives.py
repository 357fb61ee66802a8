"""A model of false negatives: from what the judge said of some candidates to a probability for every one.

A logistic regression (scikit-learn) over the hybrid features, with its coefficients in a JSON file that a person can
read. It is fitted on the judge's word, cross-validated over questions, its slope calibrated on the held-out folds, and
corrected for the judge's own error as the controls show it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from factory.hybrid import MEASURES, SIDES
from factory.linear import Linear, Standard, sigmoid
from factory.presets import Columns, closeness
from factory.retrieve import SOURCES
from factory.settings import Part

FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # C of the regression; the one with the best held-out log loss is taken
LEAST = 10  # judged yes and judged no, each at least so many, to learn from
BINS = 10  # of the reliability curve
PATTERN = 0.6  # AUC; below it the model says the same of every candidate, and would refuse all or none


class JudgeError(Part):
    """How often the judge is right on controls, whose answers are known: a question with its own passage (yes) and
    with one that does not answer it (no). Intervals are Wilson's, 95 %."""

    threshold: float  # logits from here on count as yes
    sensitivity: float
    specificity: float
    sensitivity_interval: tuple[float, float]
    specificity_interval: tuple[float, float]
    auc: float
    controls: int

    def corrected(self, share: np.ndarray | float) -> np.ndarray:
        """The true share behind a share of yes (Rogan and Gladen 1978), in [0, 1]."""
        span = max(self.sensitivity + self.specificity - 1, 0.05)
        return np.clip((np.asarray(share) + self.specificity - 1) / span, 0, 1)

    @property
    def usable(self) -> bool:
        """Better than a coin by so much that its word is worth something."""
        return self.auc >= 0.75 and self.sensitivity + self.specificity - 1 >= 0.4


class Bin(Part):
    """Of the reliability curve: candidates that were given about this probability, and how many the judge affirmed."""

    predicted: float
    observed: float
    count: int


class FalseNegativeModel(Linear):
    """What the judge would say of a candidate, as a probability, and what that is worth."""

    judge: JudgeError
    labels: int
    yes: int
    strength: float
    auc: float  # cross-validated, as all that follows
    log_loss: float
    brier: float
    reliability: tuple[Bin, ...]

    def says_yes(self, columns: Columns) -> np.ndarray:
        """Probability that the judge says yes, (rows,)."""
        return sigmoid(self.logits(features(columns)))

    def probability(self, columns: Columns) -> np.ndarray:
        """Probability that the candidate answers the question: `says_yes`, corrected for the judge's error."""
        return self.judge.corrected(self.says_yes(columns))

    def after_judging(self, prior: np.ndarray, yes: np.ndarray) -> np.ndarray:
        """The probability once the judge has read the candidate: Bayes' rule with its sensitivity and specificity."""
        s = np.where(yes, self.judge.sensitivity, 1 - self.judge.sensitivity)
        f = np.where(yes, 1 - self.judge.specificity, self.judge.specificity)
        prior = np.clip(prior, 0.001, 0.999)
        return np.asarray(prior * s / (prior * s + (1 - prior) * f))


def features(columns: Columns) -> Columns:
    """What the regression sees of each candidate; NaN, where there is no such value, becomes the mean.

    The sixteen hybrid features, `evidence` (the log-odds that the pairs alone give, see evidence.py), `closeness` (0 a
    chance pair's cosine, 1 the positive's), `likeness_gap` (words shared with the question, more than the positive's),
    `answer_found`, whether each search found it high (1 / rank, 0 if not found), and the reranker's logit minus the
    positive's.
    """
    found = {f"{side}_{measure}": columns[f"{side}_{measure}"] for side in SIDES for measure in MEASURES}
    found["closeness"] = np.clip(closeness(columns), -2, 3)
    found["likeness_gap"] = columns["query_tgt_answer_jaccard"] - columns["positive_jaccard"]
    found["answer_found"] = columns["answer_found"]
    for source in SOURCES:
        if f"{source}_rank" in columns:
            found[f"{source}_found"] = np.nan_to_num(1 / columns[f"{source}_rank"])
    if "evidence" in columns:
        found["evidence"] = columns["evidence"]
    found["rerank_gap"] = columns["rerank_score"] - columns["positive_rerank_score"]
    return found


def judge_error(own: np.ndarray, others: np.ndarray) -> JudgeError:
    """The judge's error and its best threshold, from its logits on known pairs (the largest sensitivity + specificity,
    halfway between neighbouring logits)."""
    if not len(own) or not len(others):  # nothing to measure it on: not usable
        none = (0.0, 1.0)
        return JudgeError(
            threshold=0, sensitivity=0, specificity=0, sensitivity_interval=none, specificity_interval=none, auc=0.5,
            controls=len(own) + len(others),
        )  # fmt: skip
    logits = np.unique(np.r_[own, others])
    cuts = np.r_[logits[0] - 1, (logits[1:] + logits[:-1]) / 2, logits[-1] + 1]
    best = max(cuts, key=lambda c: ((own >= c).mean() + (others < c).mean(), -abs(c)))
    right, wrong = int((own >= best).sum()), int((others < best).sum())
    wins = (own[:, None] > others).mean() + (own[:, None] == others).mean() / 2
    return JudgeError(
        threshold=float(best),
        sensitivity=right / len(own),
        specificity=wrong / len(others),
        sensitivity_interval=wilson(right, len(own)),
        specificity_interval=wilson(wrong, len(others)),
        auc=float(wins),
        controls=len(own) + len(others),
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not n:
        return 0.0, 1.0
    z = 1.959964
    p, d = hits / n, 1 + z * z / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(max(0, (p + z * z / (2 * n) - half) / d)), float(min(1, (p + z * z / (2 * n) + half) / d))


def fit(
    columns: Columns, yes: np.ndarray, weights: np.ndarray, questions: Sequence[str], judge: JudgeError
) -> FalseNegativeModel | str:
    """The model, or in words why there is none.

    Args:
        columns: the judged rows' numbers. yes: (rows,) bool, the judge's word. weights: how many candidates each row
            stands for. questions: each row's question; a question is never on both sides of a fold.
    """
    if yes.sum() < LEAST or (~yes).sum() < LEAST:
        return f"the judge affirmed {int(yes.sum())} of {len(yes)} candidates; at least {LEAST} of each kind are needed"
    if len(set(questions)) < 2:
        return "candidates of one question alone cannot be cross-validated"
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
    from sklearn.model_selection import GroupKFold

    standard = Standard(features(columns))
    x = standard.x
    weights = weights / weights.mean()
    folds = list(GroupKFold(min(FOLDS, len(set(questions)))).split(x, yes, questions))

    def held_out(strength: float) -> np.ndarray:
        logits = np.zeros(len(yes))
        for train, test in folds:
            if len(set(yes[train])) < 2:
                logits[test] = np.log((yes.mean() + 1e-3) / (1 - yes.mean() + 1e-3))
                continue
            model = LogisticRegression(C=strength, max_iter=2000).fit(x[train], yes[train], weights[train])
            logits[test] = model.decision_function(x[test])
        return logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = {c: held_out(c) for c in STRENGTHS}
        losses = {c: log_loss(yes, sigmoid(z), sample_weight=weights, labels=[False, True]) for c, z in tried.items()}
        strength = min(losses, key=losses.__getitem__)
        # Platt's scaling on the held-out logits: what the folds show to be over-confident is flattened
        platt = LogisticRegression(C=1e6, max_iter=2000).fit(tried[strength][:, None], yes, weights)
        slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
        slope = max(slope, 0.0)
        model = LogisticRegression(C=strength, max_iter=2000).fit(x, yes, weights)
    calibrated = sigmoid(slope * tried[strength] + shift)
    auc = float(roc_auc_score(yes, calibrated, sample_weight=weights))
    if auc < PATTERN:
        return f"its word follows none of the features (AUC {auc:.2f} in cross-validation, {PATTERN} is needed)"
    return FalseNegativeModel(
        coefficients=standard.coefficients(slope * model.coef_[0]),
        intercept=slope * float(model.intercept_[0]) + shift,
        judge=judge,
        labels=len(yes),
        yes=int(yes.sum()),
        strength=strength,
        auc=auc,
        log_loss=float(log_loss(yes, calibrated, sample_weight=weights, labels=[False, True])),
        brier=float(brier_score_loss(yes, calibrated, sample_weight=weights)),
        reliability=tuple(reliability(calibrated, yes, weights)),
    )


def reliability(predicted: np.ndarray, yes: np.ndarray, weights: np.ndarray) -> list[Bin]:
    """At most `BINS` bins of about as many rows, by predicted probability."""
    order = np.argsort(predicted, kind="stable")
    bins = []
    for rows in np.array_split(order, min(BINS, len(order))):
        w = weights[rows]
        p, o = np.average(predicted[rows], weights=w), np.average(yes[rows], weights=w)
        bins.append(Bin(predicted=float(p), observed=float(o), count=len(rows)))
    return bins
