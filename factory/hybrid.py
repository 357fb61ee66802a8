"""Stage 6, score: one row of features for each candidate.

For a question q with its positive a, and a candidate ta with its own question tq, four pairs are compared:
(q, tq), (a, tq), (q, ta), (a, ta), each by cosine, LCS, edit distance and Jaccard: `COLUMNS`. Definitions and
ranges of the last three are in lexical.py; the cosine is of the base model's dense vectors, −1 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from factory.indexes import cosines
from factory.languages import HAN, squeeze
from factory.lexical import edit_dist, lcs_score, token_jaccard
from factory.progress import bar
from factory.records import Pair
from factory.retrieve import Target

SIDES = {
    "query_tgt_query": ("query", "target_query"),
    "answer_tgt_query": ("answer", "target_query"),
    "query_tgt_answer": ("query", "target_answer"),
    "answer_tgt_answer": ("answer", "target_answer"),
}
LEXICAL = {"lcs_score": lcs_score, "edit_dist": edit_dist, "jaccard": token_jaccard}
MEASURES = ("bge_cos", *LEXICAL)
SHORTEST_ANSWER = 5  # characters; a Chinese one counts as three
COLUMNS = (
    "query",
    "answer",
    "target_query",
    "target_answer",
    "rerank_score",
    *(f"{side}_{measure}" for side in SIDES for measure in MEASURES),
)


class Scorer:
    """Texts and vectors of a build, from which `table` makes the features of a block of candidates.

    Args:
        queries: (pairs, d), answers: (targets, d), both float32 with rows of length 1.
    """

    def __init__(self, pairs: Sequence[Pair], targets: Sequence[Target], queries: np.ndarray, answers: np.ndarray):
        self.queries, self.answers = queries, answers
        self.query_texts, self.target_texts = [p.query for p in pairs], [t.text for t in targets]
        self._pair_at = {p.id: i for i, p in enumerate(pairs)}
        self._target_at = {t.id: i for i, t in enumerate(targets)}
        self._own = np.array([self._target_at[p.target_id] for p in pairs], np.int64)
        self._question_of = np.full(len(targets), -1, np.int64)  # a target's own question: the first pair on it
        for i in range(len(pairs) - 1, -1, -1):
            self._question_of[self._own[i]] = i
        self._groups = [t.duplicate_group for t in targets]
        self._positive = {"score": cosines(queries, np.arange(len(pairs)), answers, self._own)}
        own_texts = [self.target_texts[i] for i in self._own]
        self._positive |= {name: measure(self.query_texts, own_texts) for name, measure in LEXICAL.items()}
        self._chance = chance_score(queries, answers)
        self._answers = [said_in_full(p.answer) for p in pairs]
        self._squeezed = [squeeze(t) for t in self.target_texts] if any(self._answers) else []

    def table(self, block: pa.Table) -> pa.Table:
        """The block's columns, then `COLUMNS` and what the choice needs beside them.

        Those are the candidate's `duplicate_group`; of the question and its own positive `positive_score` (cosine),
        `positive_lcs_score`, `positive_edit_dist`, `positive_jaccard` and `positive_rerank_score`; `chance_score`, the
        mean cosine of a question and an unrelated target; and `answer_found`, 1 where the candidate holds the answer that
        was written with the question, to the letter (0 if not, null if there is none to look for). Features that need the candidate's own question are null
        where it has none. The two reranker columns are null here; see `rerank.add_scores`.
        """
        q = np.array([self._pair_at[i] for i in block["pair_id"].to_pylist()], np.int64)
        ta = np.array([self._target_at[i] for i in block["candidate_id"].to_pylist()], np.int64)
        rows = {"query": q, "answer": self._own[q], "target_query": self._question_of[ta], "target_answer": ta}
        columns: dict[str, Any] = {name: block[name] for name in block.column_names}
        columns |= {name: self._texts(name, at) for name, at in rows.items()}
        columns["rerank_score"] = columns["positive_rerank_score"] = pa.nulls(len(q), pa.float32())
        columns["duplicate_group"] = pa.array([self._groups[i] for i in ta], pa.string())
        columns |= {f"positive_{name}": pa.array(values[q], pa.float32()) for name, values in self._positive.items()}
        columns["chance_score"] = pa.array(np.full(len(q), self._chance, np.float32))
        found = [float(a in self._squeezed[t]) if (a := self._answers[i]) else None for i, t in zip(q, ta, strict=True)]
        columns["answer_found"] = pa.array(found, pa.float32())
        for side, (left, right) in SIDES.items():
            there = rows[right] >= 0
            for measure, values in self._measures(left, rows[left][there], right, rows[right][there]).items():
                full = np.zeros(len(q), np.float32)
                full[there] = values
                columns[f"{side}_{measure}"] = pa.array(full, mask=~there)
        beside = ["duplicate_group", *(f"positive_{name}" for name in self._positive)]
        order = [*block.column_names, *COLUMNS, *beside, "positive_rerank_score", "chance_score", "answer_found"]
        return pa.table({name: columns[name] for name in order})

    def _measures(self, left: str, li: np.ndarray, right: str, ri: np.ndarray) -> dict[str, np.ndarray]:
        """The four measures; each distinct pair of texts of the block is compared once, whichever comes first."""
        (lv, lt), (rv, rt) = self._of(left), self._of(right)
        if left.endswith("query") == right.endswith("query"):  # texts of one kind: (a, b) is (b, a)
            li, ri = np.minimum(li, ri), np.maximum(li, ri)
        keys, back = np.unique(li * (len(rt) + 1) + ri, return_inverse=True)
        li, ri = keys // (len(rt) + 1), keys % (len(rt) + 1)
        lefts, rights = [lt[i] for i in li], [rt[i] for i in ri]
        found = {"bge_cos": cosines(lv, li, rv, ri)}
        found |= {name: measure(lefts, rights) for name, measure in LEXICAL.items()}
        return {name: values[back] for name, values in found.items()}

    def _of(self, name: str) -> tuple[np.ndarray, list[str]]:
        is_query = name.endswith("query")
        return (self.queries, self.query_texts) if is_query else (self.answers, self.target_texts)

    def _texts(self, name: str, rows: np.ndarray) -> pa.Array:
        """The rows' texts, each distinct one stored once."""
        texts = self._of(name)[1]
        distinct, codes = np.unique(rows, return_inverse=True)
        indices = pa.array(codes.astype(np.int32) - (distinct[:1] < 0).sum(), mask=rows < 0)
        return pa.DictionaryArray.from_arrays(indices, pa.array([texts[i] for i in distinct if i >= 0], pa.string()))


def score(blocks: Iterable[pa.Table], scorer: Scorer, total: int) -> Iterator[pa.Table]:
    """`Scorer.table` of each block, with a bar over `total` candidates."""
    with bar("score", "candidate", total) as shown:
        for block in blocks:
            yield scorer.table(block)
            shown.update(len(block))


def said_in_full(answer: str) -> str:
    """The answer as it is looked for: squeezed; empty if it is too short to mean anything (是, "12")."""
    plain = squeeze(answer)
    return plain if len(plain) + 2 * len(HAN.findall(plain)) >= SHORTEST_ANSWER else ""


def chance_score(queries: np.ndarray, answers: np.ndarray) -> float:
    """Mean cosine of a question and any target: the product of the two mean vectors. Encoders such as
    e5 put it near 0.8, so that a share of a raw cosine means nothing; counted from here it does."""
    return float(queries.mean(axis=0) @ answers.mean(axis=0)) if len(queries) and len(answers) else 0.0
