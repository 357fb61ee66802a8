"""The reranker's part of stage 6: which candidates it reads, and the scores it gave before, kept on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from factory.models import Reranker
from factory.progress import bar
from factory.records import InputError
from factory.settings import ChooseConfig, ScoreConfig


class CachedReranker:
    """A reranker whose logits are kept in one SQLite file, keyed by the reranker and the two texts.

    Raises:
        InputError: the file is no database, or the disk is full. What was scored before is kept.
    """

    def __init__(self, reranker: Reranker, path: Path):
        self.reranker, self.path = reranker, path
        self.fingerprint = reranker.fingerprint
        path.parent.mkdir(parents=True, exist_ok=True)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as db:
                db.execute("CREATE TABLE IF NOT EXISTS logits (key BLOB PRIMARY KEY, logit REAL) WITHOUT ROWID")
                return self._score(db, pairs)
        except sqlite3.OperationalError as e:
            raise InputError(
                f"reranker scores could not be stored: {e}", where=self.path, fix="free some disk space and run again"
            ) from e
        except sqlite3.DatabaseError as e:
            raise InputError(f"not a usable SQLite file: {e}", where=self.path, fix="move it away") from e

    def _score(self, db: sqlite3.Connection, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        keys = [self._key(*pair) for pair in pairs]
        known: dict[bytes, float] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            known.update(db.execute(f"SELECT key, logit FROM logits WHERE key IN ({marks})", part))
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        if missing:
            logits = self.reranker.score(list(missing.values())).tolist()
            if not np.isfinite(logits).all():
                fix = "its weights are damaged, or too large for float16: model.device: cpu"
                raise InputError("the reranker gives NaN or infinity", where="score.reranker", fix=fix)
            new = dict(zip(missing, logits, strict=True))
            with db:
                db.executemany("INSERT OR REPLACE INTO logits VALUES (?, ?)", new.items())
            known |= new
        return np.array([known[key] for key in keys], np.float32)

    def _key(self, query: str, passage: str) -> bytes:
        sizes = f"{self.fingerprint}\0{len(query)}\0".encode()
        return hashlib.sha256(sizes + query.encode() + passage.encode()).digest()[:16]


def add_scores(
    blocks: Iterable[pa.Table], reranker: Reranker, score: ScoreConfig, choose: ChooseConfig
) -> Iterator[pa.Table]:
    """The blocks with `rerank_score` where the reranker read the candidate, and `positive_rerank_score` everywhere.

    It reads what can still be chosen: no near-copy of the positive, and of the rest the first
    `score.rerank_depth` of each question.
    """
    with bar("rerank", "pair", None) as shown:
        for block in blocks:
            queries, answers, texts = (block[n].to_pylist() for n in ("query", "answer", "target_answer"))
            reads = worth_reading(block, score.rerank_depth, choose.near_copy)
            read = [(queries[i], texts[i]) for i in np.flatnonzero(reads)]
            asked = list(dict.fromkeys([*read, *zip(queries, answers, strict=True)]))
            logits = dict(zip(asked, reranker.score(asked).tolist(), strict=True))
            found = [logits[q, t] if r else None for q, t, r in zip(queries, texts, reads, strict=True)]
            columns = {
                "rerank_score": pa.array(found, pa.float32()),
                "positive_rerank_score": pa.array(
                    [logits[pair] for pair in zip(queries, answers, strict=True)], pa.float32()
                ),
            }
            for name, column in columns.items():
                block = block.set_column(block.column_names.index(name), name, column)
            yield block
            shown.update(len(asked))


def worth_reading(block: pa.Table, depth: int, near_copy: float) -> np.ndarray:
    """Which candidates the reranker reads: the first `depth` of each pair among those that are no near-copies."""
    jaccard = pc.fill_null(block["answer_tgt_answer_jaccard"], 0.0).to_numpy()
    good = jaccard < near_copy
    pair = block["pair_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    begins = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]]) if len(pair) else np.zeros(0, np.int64)
    before = np.cumsum(good) - good
    place = before - np.repeat(before[begins], np.diff(np.r_[begins, len(pair)]))
    return np.asarray(good & (place < depth))
