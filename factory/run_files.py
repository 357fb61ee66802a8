"""TREC's run and qrels files, so that trec_eval, ir-measures or anybody else can check our numbers."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import numpy as np

from factory.evalset import EvalSet
from factory.evaluation import label
from factory.search import Found
from factory.workspace import atomic_text


def write_run(folder: Path, model: str, mode: str, data: EvalSet, found: Found) -> Path:
    """`<model>.<mode>.trec`: query id, Q0, passage id, rank, score, name.

    trec_eval sorts by score and, where scores are equal, by passage id. Ours that are equal are therefore written a
    float32 step apart, so that every reader has our order. White space in ids becomes %20.
    """
    system = label(model, mode)
    path = folder / (re.sub(r"[^\w.@+-]+", ".", system) + ".trec")
    passages = [_id(p) for p in data.passage_ids]
    scores = _descending(found.scores)
    with atomic_text(path) as f:
        for query, rows, values in zip(data.query_ids, found.rows, scores, strict=True):
            for rank, (row, value) in enumerate(zip(rows, values, strict=True), 1):
                if row >= 0:
                    f.write(f"{_id(query)} Q0 {passages[row]} {rank} {value!r} {system.replace(' ', '.')}\n")
    return path


def write_qrels(folder: Path, data: EvalSet) -> Path:
    """`qrels.trec`: query id, 0, passage id, grade, of the relevant passages."""
    path = folder / "qrels.trec"
    with atomic_text(path) as f:
        for query, relevant in zip(data.query_ids, data.relevant, strict=True):
            for passage, grade in relevant.items():
                f.write(f"{_id(query)} 0 {_id(data.passage_ids[passage])} {grade}\n")
    return path


def _descending(scores: np.ndarray) -> list[list[float]]:
    out = scores.astype(np.float32)
    for j in range(1, out.shape[1]):
        out[:, j] = np.minimum(out[:, j], np.nextafter(out[:, j - 1], np.float32(-np.inf)))
    return out.astype(np.float64).tolist()


def _id(key: str) -> str:
    return re.sub(r"\s", lambda m: quote(m.group()), key)
