"""Stages 5 to 8, from kept questions to training rows: mine, score, judge, choose, export. With one model's candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.config import Config
from factory.evalset import SET_FILES
from factory.export import TRAIN, export_stage, held_out_sets
from factory.judge import judge_identity
from factory.models import Encoder, model_fingerprint
from factory.negatives import CANDIDATES, DECISIONS, EVIDENCE, JUDGEMENTS, MODEL, SCORES, Negatives, judges
from factory.questions import Question
from factory.records import Pair, Passage
from factory.review import Review
from factory.workspace import Workspace


@dataclass(frozen=True)
class Asked:
    """What stages 1 to 4 and people made.

    Attributes:
        files: of passages and kept pairs, from the workspace in which rows are made.
        tests: the user's own held-out questions, and their file's SHA-256.
        review: what experts decided on pairs and candidates.
    """

    files: tuple[str, str]
    passages: Sequence[Passage]
    kept: Sequence[Pair]
    tests: Sequence[Question]
    tests_digest: str | None
    review: Review


class Rows:
    """Training rows in one workspace.

    Args:
        encoder: the model that finds candidates; asked for when a stage first needs it.
        model: names that model.
        held_out: whether eval/ and dev/ are written, too.
    """

    def __init__(
        self,
        config: Config,
        ws: Workspace,
        asked: Asked,
        encoder: Callable[[], Encoder],
        model: Any,
        say: Callable[[str], None],
        *,
        held_out: bool = True,
    ):
        self.config, self.ws, self.asked, self.model = config, ws, asked, model
        self.negatives = Negatives(config, ws, list(asked.passages), list(asked.kept), encoder, say)
        self.sets = held_out_sets(asked.kept, asked.tests) if held_out else []

    def run(self) -> None:
        c, stage, files, negatives, review = (
            self.config,
            self.ws.stage,
            self.asked.files,
            self.negatives,
            self.asked.review,
        )
        preset = c.choose.preset == "window"  # which is over an index of its own
        depth = [c.depth] if c.depth > c.mine.top_k else []
        stage("mine", negatives.mine, inputs=files, outputs=[CANDIDATES], rests_on=[c.mine, self.model, preset, *depth])
        reranker = [c.score, c.choose.near_copy, self._reranker_identity()]
        stage(
            "score",
            negatives.score,
            inputs=[*files, CANDIDATES],
            outputs=[SCORES, EVIDENCE],
            rests_on=[reranker, self.model],
        )
        inputs = [*files, SCORES, EVIDENCE]
        if judges(c):
            drawn_from = [c.choose.near_copy, c.choose.depth, c.choose.reject_at]
            stage(
                "judge",
                negatives.judge,
                inputs=inputs,
                outputs=[JUDGEMENTS, MODEL],
                rests_on=[c.judge, judge_identity(c), c.seed, drawn_from],
            )
            inputs = [*inputs, JUDGEMENTS, MODEL]
        else:
            self.ws.forget("judge")
        stage(
            "choose",
            lambda: negatives.choose(review),
            inputs=inputs,
            outputs=[DECISIONS],
            rests_on=[c.choose, c.seed, *review.promoting()],
        )
        sets = [f"{name}/{file}" for name in self.sets for file in SET_FILES]
        stage(
            "export",
            lambda: export_stage(
                c, self.ws, negatives, self.asked.passages, self.asked.kept, self.asked.tests, review, self.sets
            ),
            inputs=[*files, SCORES, DECISIONS],
            outputs=[TRAIN, *sets],
            rests_on=[self.asked.tests_digest, c.choose.too_few, c.choose.negatives, *review.all()],
        )

    def _reranker_identity(self) -> Any:
        reranker = self.config.score.reranker
        if reranker == "llm":
            return judge_identity(self.config)
        return model_fingerprint(Path(reranker)) if reranker and Path(reranker).exists() else reranker
