"""Rounds after the build: train the base model, mine again with the tuned one, train the base on that, compare, stop.

RUN/train.jsonl     round 1's rows, mined with the base model, as without rounds
RUN/dev/            generated questions on documents held out for this comparison; RUN/eval/ is not looked at
RUN/rounds/1/       launch.yaml, tuned/, evaluation.json (base and tuned on dev/), run.json
RUN/rounds/2/       candidates, scores, decisions and train.jsonl of round 1's model; then as above
RUN/rounds.json     every round with its numbers, the decision and the reason; which one won
RUN/best            a link to the winner's folder
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from factory.config import Config
from factory.evaluate import Options, evaluate_sets, write_evaluation
from factory.export import TRAIN
from factory.launch_file import LaunchFile, agree, read_launch_file, settings_of
from factory.modelfiles import read_json
from factory.models import CachedEncoder, Encoder, load_encoder
from factory.records import InputError, Passage, read_lines
from factory.rounds_result import METRIC, Base, Board, Development, Round, Rounds, change, decide, score
from factory.rows import Asked, Rows
from factory.settings import ModelConfig
from factory.training import LAUNCH, RECORD, TUNED, check_launch_file, train
from factory.workspace import Outcome, Workspace

FOLDER, DEV = "rounds", "dev"
SET = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
MEASURED = ("evaluation.json", "evaluation-queries.jsonl", "wins-and-losses.jsonl")
DOCUMENTS, QUESTIONS = 2, 10  # in dev/, at least: one document is no sample, and fewer questions tell no interval


def check_training(config: Config, run: Path) -> LaunchFile:
    """See before anything is built that rounds can be trained.

    Raises:
        InputError: launch.yaml is missing or wrong, or does not go with factory.yaml; names file:line.
    """
    file = read_launch_file(Path(config.rounds.launch))
    agree(file, config.model)
    check_launch_file(file, _settings(file, run, 1), run / FOLDER / LAUNCH)
    return file


def check_development(passages: Sequence[Passage], config: Config) -> None:
    """See before any question is written that dev/ will have several documents.

    Raises:
        InputError: it would not; says which share would do.
    """
    groups = {p.document_group: p.split for p in passages}
    held = sum(split == "dev" for split in groups.values())
    if held < DOCUMENTS:
        share = math.ceil(20 * DOCUMENTS / len(groups)) / 20
        raise InputError(
            f"of {len(groups)} documents (near-copies counted once) {held} is held out for dev/, a share of "
            f"{config.dev_share:g}; rounds are compared there, which takes {DOCUMENTS} or more",
            where="split.dev",
            fix=f"split.dev: {share:g}, or more documents" if share < 0.5 else "add documents, or leave rounds out",
        )


def run_rounds(
    config: Config, ws: Workspace, file: LaunchFile, asked: Asked, base: str, say: Callable[[str], None]
) -> Rounds:
    """Train, measure, decide, and mine again, until the gate or `rounds.count` says stop. What is done is not done again.

    Args:
        ws: the run's, in which round 1's rows are.
        asked: `files` as they are named from a round's workspace.
        base: the base model's fingerprint.

    Raises:
        InputError: a training failed, or dev/ has too few questions.
    """
    run, rule = ws.root, config.rounds
    board = Board(run, _development(run / DEV, asked))
    rounds: list[Round] = []
    before: list[float] = []  # the best one's nDCG@10 of each question
    for number in range(1, rule.count + 1):
        folder, miner = (rounds[-1].tuned, rounds[-1].fingerprint) if rounds else (config.model.path, base)
        model = config.model.model_copy(update={"path": str(run / folder)})
        mining = config.model_copy(update={"model": model})
        told = partial(_told, say, number)
        with Workspace(run / FOLDER / str(number), mining.model_dump(mode="json"), told, ws.cache) as place:
            if number > 1:
                _mine_again(mining, place, asked, miner, told)
            train(place, _settings(file, run, number), told, board.go_back)
            trained = read_json(place.path(RECORD))
            measured = _measure(config.model, base, trained["fingerprint"], place)
        to_before = change(measured["tuned"], before or measured["base"])
        verdict = decide(number, to_before, rule)
        rows = _rows_of(run / _train_file(number))
        rounds.append(
            Round(
                round=number,
                mined_with=folder,
                mined_with_fingerprint=miner,
                train=_train_file(number),
                rows=len(rows),
                negatives=sum(map(len, rows.values())),
                new_negatives=_new(rows, _rows_of(run / _train_file(number - 1))) if number > 1 else None,
                launch=f"{FOLDER}/{number}/{LAUNCH}",
                tuned=f"{FOLDER}/{number}/{TUNED}",
                score=score(measured["tuned"]),
                to_base=change(measured["tuned"], measured["base"]),
                to_before=to_before,
                kept=verdict.kept,
                verdict=verdict.why,
                reason=verdict.reason,
                **{k: trained[k] for k in ("fingerprint", "updates", "seconds", "loss")},
            )
        )
        told(f"nDCG@10 on dev/ {100 * rounds[-1].score.value:.1f}; {verdict.reason}")
        base_model = Base(folder=config.model.path, fingerprint=base, score=score(measured["base"]))
        board.put(base_model, rounds, finished=not verdict.go_on)
        if not verdict.go_on:
            break
        before = measured["tuned"]
    assert board.result is not None
    return board.result


def _told(say: Callable[[str], None], number: int, message: str) -> None:
    say(f"round {number}: {message}")


def _train_file(number: int) -> str:
    return TRAIN if number == 1 else f"{FOLDER}/{number}/{TRAIN}"


def _settings(file: LaunchFile, run: Path, number: int) -> dict[str, Any]:
    run = run.resolve()
    return settings_of(file, run / TRAIN, run / _train_file(number), run / FOLDER / str(number) / TUNED)


def _development(folder: Path, asked: Asked) -> Development:
    group = {p.id: p.document_group for p in asked.passages}
    queries = folder / "queries.jsonl"
    ids = {str(row["_id"]) for _, row in read_lines(queries)} if queries.is_file() else set()
    if len(ids) < QUESTIONS:
        raise InputError(
            f"{len(ids)} questions are left in dev/, on which rounds are compared; that takes {QUESTIONS} or more",
            where=folder,
            fix="raise split.dev; dropped/filter.jsonl says what became of the others",
        )
    documents = {group[p.passage_id] for p in asked.kept if p.id in ids}
    passages = sum(1 for _ in read_lines(folder / "corpus.jsonl"))
    return Development(folder=DEV, questions=len(ids), documents=len(documents), passages=passages)


def _mine_again(config: Config, place: Workspace, asked: Asked, miner: str, say: Callable[[str], None]) -> None:
    """Stages 5 to 8 with the tuned model's vectors."""
    loaded: list[Encoder] = []

    def encoder() -> Encoder:
        if not loaded:
            loaded.append(CachedEncoder(load_encoder(config.model), place.cache))
        return loaded[0]

    identity = [config.model.model_copy(update={"path": ""}), miner]  # the run's folder may move
    Rows(config, place, asked, encoder, identity, say, held_out=False).run()
    loaded.clear()
    release()


def _measure(model: ModelConfig, base: str, fingerprint: str, place: Workspace) -> dict[str, list[float]]:
    """nDCG@10 of each question of dev/, for `base` and `tuned` (their fingerprints: `base`, `fingerprint`); the stage `measure` in a round's workspace."""
    folder = place.path(f"../../{DEV}")

    def work() -> Outcome:
        models = [("base", model), ("tuned", model.model_copy(update={"path": str(place.path(TUNED))}))]
        done, results = evaluate_sets([(DEV, folder)], models, Options(modes=("dense",)), cache=place.cache)
        write_evaluation(place.root, done, results)
        release()
        return Outcome(done[0].queries, done[0].queries, [], {"questions of dev": done[0].queries})

    rests_on = [model.model_copy(update={"path": ""}), base, fingerprint]
    place.stage("measure", work, inputs=[f"../../{DEV}/{f}" for f in SET], outputs=MEASURED, rests_on=rests_on)
    rows = [row for _, row in read_lines(place.path("evaluation-queries.jsonl"))]
    return {name: [row[f"{name} dense"][METRIC] for row in rows] for name in ("base", "tuned")}


def _rows_of(path: Path) -> dict[str, set[str]]:
    """Each row's negatives, by its question's id."""
    return {str(row["id"]): set(row["neg"]) for _, row in read_lines(path)}


def _new(rows: dict[str, set[str]], before: dict[str, set[str]]) -> float | None:
    """Share of the negatives that the same questions had not before."""
    both = [(negatives, before[i]) for i, negatives in rows.items() if i in before]
    total = sum(len(now) for now, _ in both)
    return sum(len(now - then) for now, then in both) / total if total else None


def release() -> None:
    """Gives a GPU's memory back, which the training needs, once nothing holds a model any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
