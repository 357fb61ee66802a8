"""Stages 5 to 7, from kept questions to decisions: mine, score, judge, choose. Each streams from file to file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory import choose, evidence, hybrid, retrieve
from factory.config import Config
from factory.indexes import BM25Index, DenseIndex, SparseIndex
from factory.models import Encoder, load_reranker
from factory.records import Dropped, InputError, Pair, Passage
from factory.rerank import CachedReranker, add_scores
from factory.review import Review
from factory.tables import count, everything, row_groups, write_blocks
from factory.workspace import Outcome, Workspace, write_json

CANDIDATES, SCORES, DECISIONS = "5-candidates.parquet", "6-scores.parquet", "7-decisions.parquet"
EVIDENCE, JUDGEMENTS, MODEL = "evidence-model.json", "6-judgements.parquet", "false-negative-model.json"


def sources_of(config: Config, encoder: Encoder) -> list[str]:
    """Where candidates come from: `mine.sources`, by default everything that the model can do.

    Raises:
        InputError: sparse is asked for, and the model has no sparse head; or the preset goes by the dense search,
            which is not asked for.
    """
    can = ["dense", "bm25", *(["sparse"] if "sparse" in encoder.modes else [])]
    for source in config.mine.sources or []:
        if source not in can:
            raise InputError(
                f"the model has no {source} vectors", where="mine.sources", fix=f"choose from {', '.join(can)}"
            )
    if "dense" not in (config.mine.sources or can) and config.choose.preset in ("topk", "range", "window"):
        raise InputError(
            f"choose.preset {config.choose.preset} goes by the dense search's ranks",
            where="mine.sources",
            fix="add dense",
        )
    return list(dict.fromkeys(config.mine.sources or can))


def judges(config: Config) -> bool:
    """Whether the LLM judges candidates."""
    local = config.llm.serve in ("vllm", "endpoint") and config.input.kind != "pairs"
    return config.judge.use == "on" or (config.judge.use == "auto" and config.choose.preset == "resolve" and local)


class Negatives:
    """One build's training pairs and the targets that may be trained on: neither held out nor a copy of one that is."""

    def __init__(
        self,
        config: Config,
        ws: Workspace,
        passages: list[Passage],
        kept: list[Pair],
        encoder: Callable[[], Encoder],
        say: Callable[[str], None],
    ):
        self.config, self.ws, self.say, self._encoder = config, ws, say, encoder
        self._kept = kept
        self.everything = retrieve.targets_of(passages, kept)
        held = {t.duplicate_group for t in self.everything if t.split != "train"}
        self.targets = [t for t in self.everything if t.split == "train" and t.duplicate_group not in held]
        known = {t.duplicate_group for t in self.targets}
        by_text = {t.text: t.id for t in self.targets}
        pairs = [p for p in kept if p.split == "train" and p.duplicate_group in known]
        ids = {t.id for t in self.targets}
        self.pairs = [
            p if p.target_id in ids else p.model_copy(update={"target_id": by_text.get(p.target_text, p.target_id)})
            for p in pairs
        ]

    def mine(self) -> Outcome:
        queries, answers = self._vectors
        blocks = retrieve.mine(self.pairs, self.targets, queries, answers, self._searches(), self.config.depth)
        rows = write_blocks(self.ws.path(CANDIDATES), blocks)
        used = {p.id for p in self.pairs}
        leaking = [p for p in self._kept if p.split == "train" and p.id not in used]
        dropped = [Dropped(stage="mine", id=p.id, reason="copies-a-held-out-target", text=p.query) for p in leaking]
        counts = {"questions": len(self.pairs), "candidates": rows} | self._found_by()
        return Outcome(len(self.pairs) + len(dropped), len(self.pairs), dropped, counts)

    def score(self) -> Outcome:
        path, total = self.ws.path(SCORES), count(self.ws.path(CANDIDATES))
        scorer = hybrid.Scorer(self.pairs, self.targets, *self._vectors)
        blocks = hybrid.score(everything(self.ws.path(CANDIDATES)), scorer, total)
        with self.reranker() as reranker:
            if reranker:
                blocks = add_scores(blocks, reranker, self.config.score, self.config.choose)
            rows = write_blocks(path, blocks)
        counts = {"candidates": rows, "features": len(hybrid.COLUMNS) - 4}
        if self.config.score.reranker:
            read = sum(len(b) - b["rerank_score"].null_count for b in row_groups(path, ["rerank_score"]))
            counts["read by the reranker"] = read
        learnt = evidence.learn(path, len(self.pairs))
        if isinstance(learnt, str):
            write_json(self.ws.path(EVIDENCE), {"missing": learnt})
        else:
            learnt.save(self.ws.path(EVIDENCE))
        return Outcome(rows, rows, [], counts)

    def judge(self) -> Outcome:
        from factory.judging import judge_candidates

        with self._llm("judge") as llm:
            from factory.judge import LLMJudge

            found = judge_candidates(
                self.ws.path(SCORES), self.pairs, self.targets, self.config, LLMJudge(llm), self.say, self._evidence
            )
        judgements = found.table(self.ws.path(SCORES))
        write_blocks(self.ws.path(JUDGEMENTS), [judgements])
        path = self.ws.path(MODEL)
        if isinstance(found.model, str):
            self.say(f"no model of false negatives: {found.model}; what the pairs themselves teach decides")
            write_json(path, {"missing": found.model, "judge": found.error.model_dump(mode="json")})
        else:
            found.model.save(path)
        counts = {"judged": len(judgements), "said yes": sum(judgements["yes"].to_pylist())}
        return Outcome(len(judgements), len(judgements), [], counts)

    def choose(self, review: Review) -> Outcome:
        c, held = self.config, review.holding(self.pairs, {t.id: t.text for t in self.targets})
        answering = {pair: decision.negatives for pair, decision in held.items()}
        chooser = choose.Chooser(self.pairs, self.targets, c.choose, c.seed, self._probabilities(), answering)
        path = self.ws.path(SCORES)
        blocks = choose.choose(self._rows_for_choosing(path), chooser, count(path))
        rows = write_blocks(self.ws.path(DECISIONS), blocks)
        seen: Counter[tuple[str, str]] = Counter()
        for block in row_groups(self.ws.path(DECISIONS), ["decision", "reason"]):
            seen.update(zip(block["decision"].to_pylist(), block["reason"].to_pylist(), strict=True))
        totals = Counter(decision for decision, _ in seen.elements())
        counts = {kind: totals[kind] for kind in ("negative", "promoted", "rejected", "unused") if totals[kind]}
        if 2 * seen["negative", choose.RANDOM] > totals["negative"]:
            self.say(
                "warning: most negatives are unrelated passages drawn at random, since so few candidates were allowed; loosen "
                "choose: (with resolve, raise choose.reject_at) or raise mine.top_k"
            )
        told = ("rejected", "negative")
        counts |= {f"{d} {r}": n for (d, r), n in sorted(seen.items()) if d in told and r != choose.DRAWN}
        return Outcome(rows, rows, [], counts)

    def _rows_for_choosing(self, path: Path) -> Iterator[pa.Table]:
        return everything(path) if self.config.choose.preset == "rules" else row_groups(path)

    def _probabilities(self) -> Any:
        if self.config.choose.preset != "resolve":
            return None
        if not judges(self.config):
            return self._evidence
        from factory.false_negatives import FalseNegativeModel
        from factory.judging import Probabilities

        model = FalseNegativeModel.load(self.ws.path(MODEL))
        if not model:
            return self._evidence
        return Probabilities(model, pq.read_table(self.ws.path(JUDGEMENTS)), self._evidence)

    @property
    def _evidence(self) -> evidence.Evidence | None:
        return evidence.Evidence.load(self.ws.path(EVIDENCE))

    def _searches(self) -> dict[str, retrieve.Search]:
        """For each source what answers the pairs [start, end) to a depth."""
        queries, answers = self._vectors
        texts, asked = [t.text for t in self.targets], [p.query for p in self.pairs]
        searches: dict[str, retrieve.Search] = {}
        for source in sources_of(self.config, self._encoder()):
            index: Any
            if source == "dense":
                kind = "hnsw" if self.config.choose.preset == "window" else self.config.mine.index
                index, given = DenseIndex(answers, kind), queries
            elif source == "bm25":
                index, given = BM25Index(texts, self.config.mine.segmenter), asked
            else:
                encode = self._encoder().encode
                rows = encode([t.text for t in self.everything], "passage", modes=("dense", "sparse")).sparse
                assert rows is not None
                index = SparseIndex(rows[self._places])
                given = encode(asked, "query", modes=("dense", "sparse")).sparse
            searches[source] = _slices(index, given)
        return searches

    def _found_by(self) -> dict[str, int]:
        path = self.ws.path(CANDIDATES)
        sources = [n for n in retrieve.SOURCES if f"{n}_rank" in pq.ParquetFile(path).schema_arrow.names]
        names = [f"{n}_rank" for n in sources]
        blocks = list(row_groups(path, names))
        return {f"by {n.removesuffix('_rank')}": sum(len(b) - b[n].null_count for b in blocks) for n in names}

    @cached_property
    def _places(self) -> list[int]:
        row = {t.id: i for i, t in enumerate(self.everything)}
        return [row[t.id] for t in self.targets]

    @cached_property
    def _vectors(self) -> Any:
        """Dense vectors of the pairs' queries and of the targets. All targets are encoded, as the round trip
        did, and the wanted ones taken from them: so each text is encoded once in a build."""
        encoder = self._encoder()
        vectors = encoder.encode([t.text for t in self.everything], "passage").dense
        return encoder.encode([p.query for p in self.pairs], "query").dense, vectors[self._places]

    @contextmanager
    def reranker(self) -> Iterator[CachedReranker | None]:
        """The configured reranker, whose scores are kept on disk."""
        c, store = self.config.score, self.ws.cache / "rerank.sqlite"
        if c.reranker == "llm":
            from factory.judge import LLMJudge

            with self._llm("rerank") as llm:
                yield CachedReranker(LLMJudge(llm), store)
        else:
            yield (
                CachedReranker(load_reranker(c.reranker, c.batch_size, self.config.model.device), store)
                if c.reranker
                else None
            )

    def _llm(self, what: str) -> Any:
        from factory.generate import llm_identity
        from factory.llm import LLM

        store, log = self.ws.cache / "llm.sqlite", self.ws.path(f"logs/llm-server-{what}.log")
        return LLM(self.config.llm, llm_identity(self.config), store, log, self.say)


def _slices(index: Any, queries: Any) -> retrieve.Search:
    def search(start: int, end: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = index.search(queries[start:end], k)
        return scores, rows

    return search
