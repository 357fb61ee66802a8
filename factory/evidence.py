"""What the pairs themselves teach, without any judge: how a question's own passage looks beside its candidates.

Each question names one passage that answers it, and says nothing of the others. A logistic model that tells the one
from the others therefore learns which look, of cosine, ranks and shared words together, an answer has; and the
others that have it are likely answers that nobody labelled. With s = labelled, y = answers, and the labelled ones drawn
from the answering ones whatever their look, p(s | x) = c · p(y | x), and c is the mean of p(s | x) over labelled ones
(Elkan and Noto, KDD 2008). Where looks do not tell answers from others, that c is too low and every probability too
high, which errs on the safe side. Where an LLM wrote the question while it read the passage, that passage shares more
words with it than others that answer it, and theirs is too low: the judge's word, if there is one, goes first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.linear import Linear, Standard, sigmoid
from factory.presets import Columns, columns_of
from factory.retrieve import RANKED, SOURCES
from factory.tables import row_groups

LEAST = 50  # questions to learn from
MOST = 2_000  # questions: 400,000 rows, seconds
FOLDS = 5
STRENGTH = 1.0  # C of the regression; with so few features against so many rows it decides nothing
MEASURES = ("lcs_score", "edit_dist", "jaccard")


class Evidence(Linear):
    """P(candidate answers the question), learnt from the pairs.

    Attributes:
        labelled: c above, in (0, 1].
        auc: cross-validated, how often the own passage is given more than a candidate.
    """

    labelled: float
    questions: int
    auc: float

    def evidence(self, columns: Columns) -> np.ndarray:
        """Log-odds of being the labelled one, (rows,): right in order, and what other models build on."""
        return self.logits(looks(columns))

    def probability(self, columns: Columns) -> np.ndarray:
        """Of answering, (rows,), in [0, 1]."""
        return np.minimum(sigmoid(self.evidence(columns)) / self.labelled, 1.0)

    def __call__(self, scores: pa.Table, columns: Columns) -> Columns:
        """For `Chooser`: what a block's candidates are given."""
        return {"probability": self.probability(columns)}


def with_evidence(columns: Columns, evidence: Evidence | None) -> Columns:
    """The columns and, where the pairs taught something, `evidence`."""
    return columns | {"evidence": evidence.evidence(columns)} if evidence else columns


def looks(columns: Columns, *, own: bool = False) -> Columns:
    """The features of each row's candidate or, with `own`, of its question's own passage.

    Cosine, LCS, edit distance and Jaccard with the question, and log2 of the rank that each search gave; a rank deeper
    than `RANKED` is the next one.
    """
    found = {"cosine": columns["positive_score" if own else "score"]}
    found |= {m: columns[f"positive_{m}" if own else f"query_tgt_answer_{m}"] for m in MEASURES}
    for source in SOURCES:
        if f"{source}_deep_rank" in columns:
            rank = columns[f"positive_{source}_rank" if own else f"{source}_deep_rank"]
            found[f"{source}_rank"] = np.log2(np.fmin(rank, RANKED + 1))  # fmin: a missing rank is the deepest
    return found


def learn(scores: Path, questions: int) -> Evidence | str:
    """The model, or in words why there is none.

    Args:
        scores: 6-scores.parquet. questions: how many it is about; of more than `MOST` every n-th is taken.
    """
    if questions < LEAST:
        return f"{questions} questions are too few to learn from; {LEAST} are needed"
    step, seen = -(-questions // MOST), 0
    parts: list[tuple[Columns, np.ndarray, np.ndarray]] = []  # looks, whether labelled, question
    for block in row_groups(scores, _needed(scores)):
        columns = columns_of(block)
        first = columns["rank"] == 1
        question = seen + np.cumsum(first) - 1
        seen += int(first.sum())
        for own, rows in ((True, first & (question % step == 0)), (False, question % step == 0)):
            some = {name: values[rows] for name, values in columns.items()}
            parts.append((looks(some, own=own), np.full(rows.sum(), own), question[rows]))
    found = {name: np.concatenate([look[name] for look, _, _ in parts]) for name in parts[0][0]} if parts else {}
    if not found or seen < LEAST:
        return f"{seen} questions with candidates are too few to learn from; {LEAST} are needed"
    labelled, question = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    return _fit(found, labelled, question)


def _needed(scores: Path) -> list[str]:
    measures = [f"{side}_{m}" for m in MEASURES for side in ("query_tgt_answer", "positive")]
    ranks = [
        n
        for n in pq.ParquetFile(scores).schema_arrow.names
        if n.endswith("_deep_rank") or (n.startswith("positive_") and n.endswith("_rank"))
    ]
    return ["rank", "score", "positive_score", *measures, *ranks]


def _fit(found: Columns, labelled: np.ndarray, question: np.ndarray) -> Evidence:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    standard = Standard(found)
    held_out = np.zeros(len(labelled))
    for train, test in GroupKFold(FOLDS).split(standard.x, labelled, question):
        model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(standard.x[train], labelled[train])
        held_out[test] = model.decision_function(standard.x[test])
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(standard.x, labelled)
    return Evidence(
        coefficients=standard.coefficients(model.coef_[0]),
        intercept=float(model.intercept_[0]),
        labelled=float(np.mean(sigmoid(held_out[labelled]))),
        questions=len(np.unique(question)),
        auc=float(roc_auc_score(labelled, held_out)),
    )
