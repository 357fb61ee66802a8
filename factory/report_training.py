"""The report's section on training: the curves in the tuned models' TensorBoard files, and what they were trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.modelfiles import read_json
from factory.report_charts import Chart, curve
from factory.report_words import Text, duration, join, say

CURVES = ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss")
POINTS = 400  # of a curve, at most: more than a screen shows
SETTINGS = {  # of launch.json's arguments
    "epochs": "num_train_epochs",
    "rate": "learning_rate",
    "temperature": "temperature",
    "query": "query_max_len",
    "passage": "passage_max_len",
}
RECORD = "launch.json"  # what bge-launch writes beside a model


@dataclass(frozen=True)
class Curve:
    title: Text
    chart: Chart
    caption: Text


@dataclass(frozen=True)
class Training:
    """One model's training.

    `shape` tells how much was trained, None where launch.json does not; `seconds` are 0 then. `remarks` name what is missing, broken
    or does not fit. `files`: where its numbers come from, relative to the run's folder where they lie in it, `record` the
    launch.json among them ("": there is none).
    """

    model: str
    curves: list[Curve]
    shape: Text | None
    seconds: float
    remarks: list[Text]
    files: list[str]
    record: str


def training_view(run_folder: Path, evaluation: Mapping[str, Any], run: Mapping[str, Any]) -> list[Training]:
    """For each later model of the evaluation, or the run's `tuned/`, what is known of its training.

    Args:
        evaluation: evaluation.json, run: run.json; either may be empty.
    """
    models = list(evaluation.get("models", {}).items())[1:]
    folders = [(name, _folder(run_folder, Path(about.get("path", name)))) for name, about in models]
    if not folders and (run_folder / "tuned").is_dir():
        folders = [("tuned", run_folder / "tuned")]
    return [_training(run_folder, name, folder, run) for name, folder in folders]


def _folder(run_folder: Path, path: Path) -> Path:
    """Of the model that was evaluated; where it is no longer there, what has its name in the run's folder, which may have moved."""
    return run_folder / path.name if not path.is_dir() and (run_folder / path.name).is_dir() else path


def _training(run_folder: Path, name: str, folder: Path, run: Mapping[str, Any]) -> Training:
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda p: (p.name, str(p))) if folder.is_dir() else []
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    values: dict[str, dict[int, float]] = {}
    remarks = []
    for file in files:
        found = _read(file)
        if not found:
            remarks.append(say("training.unreadable", file=_shown(file, run_folder)))
        for tag, points in found.items():
            # of a training that was resumed: its own steps replace those of the earlier file
            kept = {step: v for step, v in values.get(tag, {}).items() if step < min(points)}
            values[tag] = kept | points
    if not files:
        remarks.append(say("training.none", folder=_shown(folder, run_folder)))
    remarks += _against_record(values.get("train/loss", {}), record, run)
    curves = [_curve(tag, values[tag], remarks) for tag in CURVES if values.get(tag)]
    used = [*files, *([folder / RECORD] if record else [])]
    return Training(
        name,
        [c for c in curves if c],
        _shape(record),
        record.get("seconds") or 0,
        remarks,
        [_shown(f, run_folder) for f in used],
        _shown(folder / RECORD, run_folder) if record else "",
    )


def _read(file: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value of the scalars; what stands before a damaged place, nothing of a file that is none."""
    found: dict[str, dict[int, float]] = {}
    for step, tag, value in _scalars(file):
        if tag in CURVES:
            found.setdefault(tag, {})[step] = value
    return found


def _scalars(file: Path) -> Iterator[tuple[int, str, float]]:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    try:
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    yield event.step, value.tag, float(make_ndarray(value.tensor).item())
    except Exception:  # its errors have no common class; what was read before it counts
        return


def _curve(tag: str, values: Mapping[int, float], remarks: list[Text]) -> Curve | None:
    steps = sorted(step for step, v in values.items() if math.isfinite(v))
    name = tag.replace("/", "-")
    if lost := len(values) - len(steps):
        remarks.append(say("training.not-finite", curve=say(f"training.{name}"), n=lost))
    if not steps:
        return None
    ys = [values[s] for s in steps]
    every = -(-len(steps) // POINTS)
    shown = sorted({*range(0, len(steps), every), len(steps) - 1})
    chart = curve([steps[i] for i in shown], [ys[i] for i in shown], say("axis.steps"))
    caption = say("training.caption", first=f"{ys[0]:.3g}", last=f"{ys[-1]:.3g}", n=len(steps), step=steps[-1])
    if tag.endswith("/loss") and (tenth := len(steps) // 10) > 1:  # of single steps one is noise
        first, last = sum(ys[:tenth]) / tenth, sum(ys[-tenth:]) / tenth
        caption = join([caption, say("training.tenths", first=f"{first:.3g}", last=f"{last:.3g}", n=tenth)], " ", "")
    return Curve(say(f"training.{name}"), chart, caption)


def _against_record(loss: Mapping[int, float], record: Mapping[str, Any], run: Mapping[str, Any]) -> list[Text]:
    """Whether it came to its end, and was trained on this very train.jsonl."""
    remarks = []
    updates = record.get("batch", {}).get("updates")
    if loss and updates and max(loss) < updates:
        remarks.append(say("training.short", step=max(loss), of=updates))
    if record.get("exit_code"):
        remarks.append(say("training.failed", code=record["exit_code"]))
    ours = run.get("stages", {}).get("export", {}).get("outputs", {}).get("train.jsonl")
    theirs = [d["sha256"] for d in record.get("data", [])]
    if ours and theirs:
        remarks.append(say("training.same-data" if ours in theirs else "training.other-data", sha=ours[:12]))
    return remarks


def _shape(record: Mapping[str, Any]) -> Text | None:
    batch, updates = record.get("batch", {}), record.get("updates")
    told = {name: batch.get(name) for name in ("rows", "queries_per_step", "hard_negatives", "in_batch_negatives")}
    if not updates or None in told.values():
        return None
    shape = [say("training.shape", updates=updates, seconds=duration(record.get("seconds") or 0), **told)]
    if batch.get("dropped"):
        shape.append(say("training.left-over", dropped=batch["dropped"]))
    given = {word: record.get("arguments", {}).get(name, [None])[0] for word, name in SETTINGS.items()}
    if None not in given.values():
        shape.append(say("training.settings", **{word: _plain(value) for word, value in given.items()}))
    return join(shape, " ", "")


def _plain(number: str) -> str:
    """4.0 as 4, as a person writes it."""
    try:
        return f"{float(number):g}"
    except ValueError:
        return number


def _shown(path: Path, run_folder: Path) -> str:
    file, folder = path.resolve(), run_folder.resolve()  # one of them may be given from where the command was run
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)
