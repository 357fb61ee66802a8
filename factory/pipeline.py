"""The stages in order: this page is the product's description."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from factory import documents, generate, given, passages, quality
from factory.config import Config
from factory.demonstrations import FILE as DEMONSTRATION
from factory.diversity import QUESTIONS, describe
from factory.judge import LLMJudge, judge_identity
from factory.llm import LLM
from factory.models import CachedEncoder, Encoder, load_encoder, load_reranker, model_fingerprint
from factory.negatives import CANDIDATES, DECISIONS, SCORES, sources_of
from factory.prompt_files import PROMPTS, read_prompt
from factory.prompting import VARIABLES, prompt_file
from factory.questions import read_questions, read_user_questions
from factory.records import Document, Dropped, InputError, Pair, Passage, read_records
from factory.review import Review
from factory.rows import Asked, Rows
from factory.rules import check_rules
from factory.serve import check_there
from factory.workspace import Outcome, Workspace, sha256_file, write_json, write_jsonl

__all__ = ["CANDIDATES", "DECISIONS", "DOCUMENTS", "KEPT", "PAIRS", "PASSAGES", "SCORES", "Build", "build"]

DOCUMENTS, PASSAGES, PAIRS, KEPT = "1-documents.jsonl", "2-passages.jsonl", "3-pairs.jsonl", "4-kept.jsonl"


def build(config: Config, out: Path, say: Callable[[str], None]) -> Path:
    """Documents → train.jsonl, eval/, README.md and report.html in `out`; returns the report's path. With rounds, models too.

    Each stage reads the files of those before it and writes its own; it is skipped when neither they,
    nor its part of the configuration, nor its models have changed.

    Raises:
        InputError: the user's input or configuration is at fault.
    """
    with Workspace(out, config.model_dump(mode="json"), say) as ws:
        made = Build(config, ws, say)
        made.run()
        from factory.card import materials, write_card
        from factory.report import write_report

        ws.manifest["materials"] = materials(config)
        ws.save()
        write_card(out)
        if config.rounds.count > 1:
            write_report(out)  # to be read while the training goes on
            made.rounds()
        else:
            from factory.rounds_result import forget

            forget(out)
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
        self.review = Review.read(ws.root, say)
        self._check()

    def run(self) -> None:
        if self.config.rounds.count > 1:
            from factory.rounds import check_training

            self.launch = check_training(self.config, self.ws.root)
        self.questions()
        self.rows()

    def _check(self) -> None:
        """See, before hours of work, that what the later stages need is there."""
        c = self.config
        sources = sources_of(c, self.encoder)
        if c.choose.preset == "rules":
            check_rules(c.choose.rules, sources)
        if c.score.reranker and c.score.reranker != "llm":
            load_reranker(c.score.reranker)
        if c.input.kind != "pairs" and "generate" not in self.ws.manifest["stages"]:
            check_there(c.llm)
            own = c.generate.prompt
            for file in own.values() if isinstance(own, dict) else [own] if own else []:
                read_prompt(Path(file), VARIABLES)

    def questions(self) -> None:
        """Stages 1 to 4: documents → kept questions."""
        c, stage = self.config, self.ws.stage
        encoder = [c.model, self.model]
        pairs_alone = c.input.kind == "pairs"
        sources = list(documents.sources(c.input.path))
        mixed = list(documents.sources(c.given.path)) if c.given.path else []
        split = c.split.model_copy(update={"dev": c.dev_share})
        llm = [c.llm.serve, generate.llm_identity(c), c.llm.seed, c.llm.context]
        asked = sources if pairs_alone else [llm, self._prompts(), self.real_questions, mixed]
        stage("load", self.load, outputs=[DOCUMENTS], rests_on=[c.input, sources, mixed])
        stage(
            "split",
            self.split,
            inputs=[DOCUMENTS],
            outputs=[PASSAGES],
            rests_on=[c.passages, split, c.test.hold_out, c.seed, self.model, self.tests_digest],
        )
        if c.rounds.count > 1:
            from factory.rounds import check_development

            check_development(self._passages, c)
        stage(
            "generate",
            self.generate,
            inputs=[PASSAGES],
            outputs=[PAIRS],
            rests_on=[c.generate, asked, c.seed, bool(self.tests)],
        )
        judge = judge_identity(c) if quality.needs_llm(c) else None
        stage(
            "filter",
            self.filter,
            inputs=[PASSAGES, PAIRS, "dropped/generate.jsonl"],
            outputs=[KEPT, QUESTIONS],
            rests_on=[c.quality, c.given.share, encoder, self.tests_digest, judge, c.seed, self.real_questions],
        )

    def rows(self) -> None:
        """Stages 5 to 8; see factory.rows."""
        c = self.config
        Rows(c, self.ws, self._asked(""), lambda: self.encoder, [c.model, self.model], self.say).run()

    def rounds(self) -> None:
        """Train, and make stages 5 to 8 again with what came out; see factory.rounds."""
        from factory.rounds import release, run_rounds

        self.__dict__.pop("encoder", None)  # the training needs its memory
        release()
        run_rounds(self.config, self.ws, self.launch, self._asked("../../"), self.model, self.say)

    def _asked(self, folder: str) -> Asked:
        """What the questions' stages made, whose files are in `folder` as seen from a workspace."""
        files = (f"{folder}{PASSAGES}", f"{folder}{KEPT}")
        return Asked(files, self._passages, self._kept, self.tests, self.tests_digest, self.review)

    def load(self) -> Outcome:
        rows, dropped, taken = documents.load_documents(self.config.input)
        if self.config.given.path:
            more = given.given_documents(self.config.given.path, rows)
            rows, taken = [*rows, *more], taken + len(more)
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
            pairs, dropped = given.given_pairs(pieces, self.config.input.path)
            counts = {"pairs": len(pairs)}
        else:
            with self._llm() as llm:
                made = generate.generate(pieces, self.config, llm, self.say, self.tests, self.real_questions)
            pairs, dropped, usage = made.pairs, made.dropped, made.usage
            if made.askers:
                write_json(self.ws.path("askers.json"), made.askers)
            asked = len({p.passage_id for p in pairs})
            counts = {
                "pairs": len(pairs),
                "passages asked": asked,
                "answers from disk": usage.from_disk,
                "answers sent for": usage.sent,
            }
        if not pairs:
            raise InputError(
                f"no question was made; reasons: {', '.join(sorted({d.reason for d in dropped}))}",
                where=self._why("generate", dropped),
                fix="try a larger LLM, or read logs/llm-server.log",
            )
        write_jsonl(self.ws.path(PAIRS), pairs)
        return Outcome(len(pairs) + len(dropped), len(pairs), dropped, counts)

    def filter(self) -> Outcome:
        pairs = read_records(self.ws.path(PAIRS), Pair)
        judge = LLMJudge(self._llm("-filter")) if quality.needs_llm(self.config) else None
        with judge.llm if judge else nullcontext():
            done = quality.filter_pairs(pairs, self._passages, self.tests, self.config, self.encoder, judge, self.say)
        kept, dropped = done.kept, done.dropped
        if not any(p.split == "train" for p in kept):
            reasons = ", ".join(sorted({d.reason for d in dropped})) or "no pair is in the train split"
            raise InputError(
                f"no training question is left after the filters ({reasons})",
                where=self._why("filter", dropped),
                fix="read what went and why, then loosen quality:",
            )
        write_jsonl(self.ws.path(KEPT), kept)
        not_asked = read_records(self.ws.path("dropped/generate.jsonl"), Dropped)
        passages_are_targets = self.config.generate.pairing == "question-document"  # whose vectors are on disk already
        encoder = self.encoder if passages_are_targets else None
        described = describe(self._passages, pairs, kept, not_asked, self.real_questions, encoder)
        write_json(self.ws.path(QUESTIONS), {"tests": done.tests, "judge": done.judge} | described)
        counts = {"kept": len(kept)} | {s: sum(p.split == s for p in kept) for s in ("train", "dev", "eval")}
        return Outcome(len(pairs), len(kept), dropped, counts)

    @cached_property
    def encoder(self) -> Encoder:
        return CachedEncoder(load_encoder(self.config.model), self.ws.cache)

    @property
    def _passages(self) -> list[Passage]:
        return read_records(self.ws.path(PASSAGES), Passage)

    @property
    def _kept(self) -> list[Pair]:
        return read_records(self.ws.path(KEPT), Pair)

    def _why(self, stage: str, dropped: list[Dropped]) -> Path:
        """Writes what a stage dropped that is about to fail, for the person who reads why."""
        path = self.ws.path(f"dropped/{stage}.jsonl")
        write_jsonl(path, dropped)
        return path

    @cached_property
    def real_questions(self) -> list[str]:
        """The user's own questions, shown to the LLM as examples, without those of the test."""
        path = self.config.generate.examples
        return read_user_questions(Path(path), self.tests, self.say) if path else []

    def _llm(self, what: str = "") -> LLM:
        cache, log = self.ws.cache / "llm.sqlite", self.ws.path(f"logs/llm-server{what}.log")
        return LLM(self.config.llm, generate.llm_identity(self.config), cache, log, self.say)

    def _prompts(self) -> Any:
        files = [DEMONSTRATION, *(prompt_file(self.config.generate, lang) for lang in ("zh", "en"))]
        if self.config.generate.propose_askers:
            files += sorted(PROMPTS.glob("askers.*.md"))
        return [sha256_file(p) for p in files if p.is_file()]
