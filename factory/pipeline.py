"""The stages in order: this page is the product's description."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory import choose, documents, export, generate, hybrid, passages, prompting, quality, retrieve
from factory.config import Config
from factory.models import CachedEncoder, Encoder, load_encoder, load_reranker, model_fingerprint
from factory.questions import read_questions
from factory.records import Document, Dropped, InputError, Pair, Passage, read_records
from factory.workspace import Outcome, Workspace, atomic, sha256_file, write_jsonl

DOCUMENTS, PASSAGES, PAIRS, KEPT = "1-documents.jsonl", "2-passages.jsonl", "3-pairs.jsonl", "4-kept.jsonl"
CANDIDATES, SCORES, DECISIONS, TRAIN = "5-candidates.parquet", "6-scores.parquet", "7-decisions.parquet", "train.jsonl"


def build(config: Config, out: Path, say: Callable[[str], None]) -> Path:
    """Documents → train.jsonl, eval/ and report.html in `out`; returns the report's path.

    Each stage reads the files of those before it and writes its own; it is skipped when neither they,
    nor its part of the configuration, nor its models have changed.

    Raises:
        InputError: the user's input or configuration is at fault.
    """
    with Workspace(out, config.model_dump(mode="json"), say) as ws:
        Build(config, ws, say).run()
        from factory.report import write_report

        return write_report(out)


class Build:
    """One build in one workspace: the models it needs are loaded when a stage first asks for them."""

    def __init__(self, config: Config, ws: Workspace, say: Callable[[str], None]):
        self.config, self.ws, self.say = config, ws, say
        self.model = model_fingerprint(Path(config.model.path)) if Path(config.model.path).exists() else ""
        if not self.model:
            raise InputError(
                "no such model folder",
                where=config.model.path,
                fix="model.path: the local folder of the model to train",
            )
        tests = Path(config.test.questions) if config.test.questions else None
        self.tests = read_questions(tests) if tests else []
        self.tests_digest = sha256_file(tests) if tests else None

    def run(self) -> None:
        c, stage = self.config, self.ws.stage
        encoder = [c.model, self.model]
        given = c.input.kind == "pairs"
        sources = list(documents.sources(c.input))
        asked = (
            sources if given else [c.llm.serve, generate.llm_identity(c), c.llm.seed, c.llm.context, self._prompts()]
        )
        stage("load", self.load, outputs=[DOCUMENTS], rests_on=[c.input, sources])
        stage(
            "split",
            self.split,
            inputs=[DOCUMENTS],
            outputs=[PASSAGES],
            rests_on=[c.passages, c.split, c.test.hold_out, c.seed, self.model, self.tests_digest],
        )
        stage(
            "generate",
            self.generate,
            inputs=[PASSAGES],
            outputs=[PAIRS],
            rests_on=[c.generate, asked, c.seed, bool(self.tests)],
        )
        stage(
            "filter",
            self.filter,
            inputs=[PASSAGES, PAIRS],
            outputs=[KEPT],
            rests_on=[c.quality, encoder, self.tests_digest],
        )
        stage("mine", self.mine, inputs=[PASSAGES, KEPT], outputs=[CANDIDATES], rests_on=[c.mine, encoder])
        stage("score", self.score, inputs=[PASSAGES, KEPT, CANDIDATES], outputs=[SCORES], rests_on=[c.score, encoder])
        stage("choose", self.choose, inputs=[PASSAGES, KEPT, SCORES], outputs=[DECISIONS], rests_on=[c.choose, c.seed])
        sets = [
            f"{name}/{file}"
            for name in self._held_out_sets()
            for file in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
        ]
        stage(
            "export",
            self.export,
            inputs=[PASSAGES, KEPT, SCORES, DECISIONS],
            outputs=[TRAIN, *sets],
            rests_on=self.tests_digest,
        )

    def load(self) -> Outcome:
        rows, dropped, taken = documents.load_documents(self.config.input)
        write_jsonl(self.ws.path(DOCUMENTS), rows)
        counts = {"documents": len(rows), "characters": sum(len(d.text) for d in rows)}
        return Outcome(taken, len(rows), dropped, counts)

    def split(self) -> Outcome:
        rows = read_records(self.ws.path(DOCUMENTS), Document)
        pieces, dropped = passages.make_passages(rows, self.config, self.tests)
        write_jsonl(self.ws.path(PASSAGES), pieces)
        counts = {"passages": len(pieces)} | {s: sum(p.split == s for p in pieces) for s in ("train", "dev", "eval")}
        counts["copies"] = len(pieces) - len({p.duplicate_group for p in pieces})
        limit = self.config.model.passage_max_length
        if long := sum(p.tokens > limit for p in pieces):
            counts[f"longer than model.passage_max_length {limit}, cut when encoded"] = long
        return Outcome(len(pieces) + len(dropped), len(pieces), dropped, counts)

    def generate(self) -> Outcome:
        pieces = self._passages
        if self.config.input.kind == "pairs":
            pairs, dropped = generate.given_pairs(pieces, self.config)
            counts = {"pairs": len(pairs)}
        else:
            log = self.ws.path("logs/llm-server.log")
            pairs, dropped, usage = generate.generate(pieces, self.config, self.ws.path("cache"), log, self.say)
            asked = len({p.passage_id for p in pairs})
            counts = {
                "pairs": len(pairs),
                "passages asked": asked,
                "answers from disk": usage.from_disk,
                "answers sent for": usage.sent,
            }
        if not pairs:
            reasons = sorted({d.reason for d in dropped})
            raise InputError(
                f"no question was made; reasons: {', '.join(reasons)}",
                fix="try a larger LLM, or read logs/llm-server.log",
            )
        write_jsonl(self.ws.path(PAIRS), pairs)
        return Outcome(len(pairs) + len(dropped), len(pairs), dropped, counts)

    def filter(self) -> Outcome:
        pairs = read_records(self.ws.path(PAIRS), Pair)
        kept, dropped = quality.filter_pairs(pairs, self._passages, self.tests, self.config.quality, self.encoder)
        if not any(p.split == "train" for p in kept):
            reasons = ", ".join(sorted({d.reason for d in dropped})) or "no pair is in the train split"
            raise InputError(
                f"no training question is left after the filters ({reasons})",
                fix="read dropped/filter.jsonl, loosen quality:",
            )
        write_jsonl(self.ws.path(KEPT), kept)
        counts = {"kept": len(kept)} | {s: sum(p.split == s for p in kept) for s in ("train", "dev", "eval")}
        return Outcome(len(pairs), len(kept), dropped, counts)

    def mine(self) -> Outcome:
        pairs, targets = self._to_train()
        columns = retrieve.mine(pairs, targets, *self._vectors(pairs, targets), self.config.mine.top_k)
        self._write_table(CANDIDATES, pa.table(columns))
        used = {p.id for p in pairs}
        leaking = [p for p in self._kept if p.split == "train" and p.id not in used]
        dropped = [Dropped(stage="mine", id=p.id, reason="copies-a-held-out-target", text=p.query) for p in leaking]
        counts = {"questions": len(pairs), "candidates": len(columns["pair_id"])}
        return Outcome(len(pairs) + len(dropped), len(pairs), dropped, counts)

    def score(self) -> Outcome:
        pairs, targets = self._to_train()
        c = self.config.score
        reranker = load_reranker(c.reranker, c.batch_size, self.config.model.device) if c.reranker else None
        candidates = pq.read_table(self.ws.path(CANDIDATES)).to_pydict()
        table = hybrid.score(candidates, pairs, targets, *self._vectors(pairs, targets), reranker)
        self._write_table(SCORES, table)
        return Outcome(len(table), len(table), [], {"candidates": len(table), "features": len(hybrid.COLUMNS) - 4})

    def choose(self) -> Outcome:
        pairs, targets = self._to_train()
        scores = pq.read_table(self.ws.path(SCORES))
        columns = choose.choose(scores, pairs, targets, self.config.choose, self.config.seed)
        self._write_table(DECISIONS, pa.table(columns))
        rows = len(columns["decision"])
        counts = {kind: columns["decision"].count(kind) for kind in ("negative", "rejected", "unused")}
        return Outcome(rows, rows, [], counts | {f"rejected {r}": n for r, n in _rejections(columns).items()})

    def export(self) -> Outcome:
        pairs, trained = self._to_train()
        scores = pq.read_table(self.ws.path(SCORES), columns=["pair_id", "positive_rerank_score"]).to_pylist()
        positive = {r["pair_id"]: r["positive_rerank_score"] for r in scores if r["positive_rerank_score"] is not None}
        decisions = pq.read_table(self.ws.path(DECISIONS)).to_pylist()
        examples, dropped = export.training_rows(pairs, trained, decisions, positive)
        if not examples:
            raise InputError("no training row has a negative", fix="add passages, or raise choose.ceiling")
        everything = retrieve.targets_of(self._passages, self._kept)
        if not self.tests or self.config.test.hold_out:
            export.assert_no_leak(examples, everything)
        write_jsonl(self.ws.path(TRAIN), (e.to_json() for e in examples))
        counts = {"examples": len(examples), "negatives": sum(len(e.neg) for e in examples)}
        for name in self._held_out_sets():
            if name == "eval" and self.tests:
                queries, relevant, lost = export.test_questions(self.tests, self._passages)
                dropped += lost
            else:
                queries, relevant = export.held_out(self._kept, everything, "eval" if name == "eval" else "dev")
            export.write_eval_set(self.ws.path(name), everything, queries, relevant)
            counts[f"{name} questions"] = len(queries)
        return Outcome(len(examples) + len(dropped), len(examples), dropped, counts)

    @cached_property
    def encoder(self) -> Encoder:
        return CachedEncoder(load_encoder(self.config.model), self.ws.path("cache"))

    @property
    def _passages(self) -> list[Passage]:
        return read_records(self.ws.path(PASSAGES), Passage)

    @property
    def _kept(self) -> list[Pair]:
        return read_records(self.ws.path(KEPT), Pair)

    def _to_train(self) -> tuple[list[Pair], list[retrieve.Target]]:
        """Training pairs, and the targets that may be trained on: neither held out nor a copy of one that is."""
        targets = retrieve.targets_of(self._passages, self._kept)
        held = {t.duplicate_group for t in targets if t.split != "train"}
        usable = [t for t in targets if t.split == "train" and t.duplicate_group not in held]
        known = {t.duplicate_group for t in usable}
        by_text = {t.text: t.id for t in usable}
        pairs = [p for p in self._kept if p.split == "train" and p.duplicate_group in known]
        return [p.model_copy(update={"target_id": by_text.get(p.target_text, p.target_id)}) for p in pairs], usable

    def _vectors(self, pairs: list[Pair], targets: list[retrieve.Target]) -> tuple[np.ndarray, np.ndarray]:
        """Dense vectors of the pairs' queries and of the targets. All targets are encoded, as the round trip
        did, and the wanted ones taken from them: so each text is encoded once in a build."""
        everything = retrieve.targets_of(self._passages, self._kept)
        row = {t.id: i for i, t in enumerate(everything)}
        vectors = self.encoder.encode([t.text for t in everything], "passage").dense
        return self.encoder.encode([p.query for p in pairs], "query").dense, vectors[[row[t.id] for t in targets]]

    def _held_out_sets(self) -> list[str]:
        """`eval` and `dev`, as far as there are questions for them."""
        splits = {p.split for p in self._kept}
        return [name for name in ("eval", "dev") if name in splits or (name == "eval" and self.tests)]

    def _prompts(self) -> Any:
        return [
            sha256_file(p)
            for p in (prompting.prompt_file(self.config.generate, lang) for lang in ("zh", "en"))
            if p.is_file()
        ]

    def _write_table(self, name: str, table: pa.Table) -> None:
        with atomic(self.ws.path(name)) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _rejections(columns: dict[str, list[Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for decision, reason in zip(columns["decision"], columns["reason"], strict=True):
        if decision == "rejected":
            counts[reason] = counts.get(reason, 0) + 1
    return counts
