"""What rounds.json holds, and the gate that ends the rounds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from factory import metrics
from factory.evaluation import SEED, Change
from factory.modelfiles import read_json
from factory.settings import Part, RoundsConfig
from factory.workspace import write_json

RESULT, LINK = "rounds.json", "best"

METRIC = "ndcg@10"
BASE = "the base model"
Why = Literal["better", "not-above", "little", "chance"]


class Score(Part):
    """A model's mean nDCG@10 on dev/ in [0, 1], with its 95 % interval over the questions."""

    value: float
    low: float
    high: float


class Development(Part):
    """The set on which rounds are compared; its questions were generated, and none of them is in any train.jsonl."""

    folder: str
    questions: int
    documents: int
    passages: int


class Base(Part):
    """The model that every round begins with."""

    folder: str
    fingerprint: str
    score: Score


class Round(Part):
    """One round. Folders are relative to the run's, but for the base model's.

    Attributes:
        mined_with: the folder of the model whose candidates the rows are from; `mined_with_fingerprint` of its files.
        new_negatives: share of the negatives that the same question had not in the round before; None in the first.
        to_before: against the best before it: the round before, or the base model.
        kept: whether the gate let it pass, `verdict` and in words `reason`: why.
    """

    round: int
    mined_with: str
    mined_with_fingerprint: str
    train: str
    rows: int
    negatives: int
    new_negatives: float | None
    launch: str
    tuned: str
    fingerprint: str
    updates: int
    seconds: float | None
    loss: dict[str, float | None] | None
    score: Score
    to_base: Change
    to_before: Change
    kept: bool
    verdict: Why
    reason: str


class Best(Part):
    """The winner: `round` 0 and no `train` stand for the base model. `link` is a symbolic link to `folder`, if there is one."""

    round: int
    folder: str
    train: str | None
    link: str | None


class Rounds(Part):
    """rounds.json. `finished` is false while a further round is to come."""

    metric: str = METRIC
    mode: str = "dense"
    development: Development
    base: Base
    rounds: tuple[Round, ...]
    finished: bool
    best: Best


class Board:
    """rounds.json and the link to the best model in a run's folder, true at every moment."""

    def __init__(self, run: Path, development: Development):
        self.run, self.development = run, development
        self.result: Rounds | None = None

    def put(self, base: Base, rounds: Sequence[Round], *, finished: bool) -> None:
        """These rounds stand. A file that begins with them and tells of more stays as it is until that is known to hold."""
        self.result = Rounds(
            development=self.development, base=base, rounds=tuple(rounds), finished=finished, best=_best(base, rounds)
        )
        if finished or not self._known(self.result):
            self._write(self.result)

    def go_back(self) -> None:
        """The next round is trained anew: what the file told of it no longer holds."""
        if self.result is None:
            forget(self.run)
        else:
            self._write(self.result)

    def _known(self, now: Rounds) -> bool:
        there = read_rounds(self.run)
        if there is None or (there.development, there.base) != (now.development, now.base):
            return False
        return there.finished and there.rounds[: len(now.rounds)] == now.rounds

    def _write(self, result: Rounds) -> None:
        link = LINK if self._link(result.best.folder) else None
        self.result = result.model_copy(update={"best": result.best.model_copy(update={"link": link})})
        write_json(self.run / RESULT, self.result.model_dump(mode="json"))

    def _link(self, folder: str) -> bool:
        """Whether RUN/best now leads to the folder; not where the file system has no links, or something else has the name."""
        link, temporary = self.run / LINK, self.run / f".{LINK}.{os.getpid()}.tmp"
        if link.exists() and not link.is_symlink():
            return False
        try:
            temporary.symlink_to(folder, target_is_directory=True)
            os.replace(temporary, link)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True


def forget(run: Path) -> None:
    """Nothing is known of rounds: none was trained yet, or the configuration has none any more. Trained models stay."""
    (run / RESULT).unlink(missing_ok=True)
    if (run / LINK).is_symlink():
        (run / LINK).unlink()


def _best(base: Base, rounds: Sequence[Round]) -> Best:
    kept = [r for r in rounds if r.kept]
    if not kept:
        return Best(round=0, folder=base.folder, train=None, link=None)
    return Best(round=kept[-1].round, folder=kept[-1].tuned, train=kept[-1].train, link=None)


def read_rounds(run: Path) -> Rounds | None:
    """rounds.json; None if there is none, or of another version."""
    if not (run / RESULT).is_file():
        return None
    try:
        return Rounds.model_validate(read_json(run / RESULT))
    except ValidationError:
        return None


def in_words(result: Rounds, run: Path) -> list[str]:
    """What a person is told at the end: which model won, where it lies, and how it is proved."""
    best, base = result.best, result.base
    name = f"round {best.round}" if best.round else BASE
    figure = result.rounds[best.round - 1].score if best.round else base.score
    said = f"best of {len(result.rounds)} round(s): {name}, nDCG@10 {100 * figure.value:.1f} on dev/"
    said += f" (base {100 * base.score.value:.1f})" if best.round else ""
    folder = run / (best.link or best.folder)
    lines = [f"{said}; {result.rounds[-1].reason}", f"best model:    {folder}"]
    if best.round and (run / "eval").is_dir():
        lines.append(f"its proof:     bge-factory evaluate {run / 'eval'} -m base={base.folder} -m tuned={folder}")
    return lines


class Verdict(Part):
    """Of one round: is it the best so far, is another one to follow, and why."""

    kept: bool
    go_on: bool
    why: Why
    reason: str


def decide(number: int, to_before: Change, rule: RoundsConfig) -> Verdict:
    """The gate. A round is kept if it is above the best before it by more than `gain` and, where `sure` is asked for, the
    whole 95 % interval of the difference lies above zero. The first that is not kept, and the one number `count`, is the last.

    Args:
        number: of the round, from 1.
        to_before: its nDCG@10 less the best one's before it.
    """
    before = BASE if number == 1 else f"round {number - 1}"
    said = f"{points(to_before)} against {before}"
    why: Why = "better"
    words = ""
    if to_before.value <= 0:
        why, words = "not-above", "not above it"
    elif to_before.value <= rule.gain:
        why, words = "little", f"not more than the {100 * rule.gain:g} that rounds.gain asks for"
    elif rule.sure and to_before.low <= 0:
        why, words = "chance", "could be chance, since the interval reaches zero"
    if why != "better":
        words = f"{said}: {words}; {before} stays the best, and no round follows"
        return Verdict(kept=False, go_on=False, why=why, reason=words)
    go_on = number < rule.count
    words = "so the next round mines with it" if go_on else "and it is the last that rounds.count allows"
    return Verdict(kept=True, go_on=go_on, why=why, reason=f"{said}: better, {words}")


def points(c: Change | Score) -> str:
    """A difference in points with its interval."""
    return f"{100 * c.value:+.1f} points [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"


def score(values: Sequence[float]) -> Score:
    """Of each question's value."""
    low, high = metrics.bootstrap(np.array(values)[:, None], seed=SEED)[0]
    return Score(value=float(np.mean(values)), low=float(low), high=float(high))


def change(values: Sequence[float], others: Sequence[float]) -> Change:
    """The mean difference over the same questions in the same order, as factory.evaluate has it."""
    differences: Any = (np.array(values) - np.array(others))[:, None]
    intervals, p = metrics.compare(differences, seed=SEED)
    low, high = intervals[0].tolist()
    return Change(value=float(differences.mean()), low=low, high=high, p=float(p[0]))
