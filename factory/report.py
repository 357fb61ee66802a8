"""One HTML file that tells a run's story; it loads nothing, so it can be mailed or opened from a shared disk."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from factory.diversity import QUESTIONS
from factory.evaluation import read_evaluation, stale_set
from factory.languages import language as text_language
from factory.modelfiles import read_json
from factory.records import InputError, read_lines
from factory.report_charts import BLUE, histogram, reliability
from factory.report_evaluation import evaluation_view
from factory.report_questions import questions_section
from factory.report_reviews import reviews_view
from factory.report_rounds import rounds_section
from factory.report_scores import scores_view
from factory.report_story import result_flow, story
from factory.report_summary import done, subtitle, verdicts
from factory.report_training import Training, training_view
from factory.report_words import Text, duration, known, metric_name, percent, said, say
from factory.workspace import atomic_text

SAMPLES = 20  # training rows shown
EXAMPLES = 3  # texts shown for a drop reason
PASSAGES = 5_000  # that say which language the run is in
FEATURES = 12  # of the model of false negatives, shown
CLIP = 600  # characters of a passage that are shown

# The page's parts that the line under the summary leads to, as far as they are there.
PARTS = ("story", "questions", "negatives", "training", "rounds", "result", "review", "dropped", "rows", "made")
Language = Literal["zh", "en", "auto"]


def write_report(run_folder: Path, language: Language = "auto") -> Path:
    """Write `report.html` in a run's folder from what lies there; a part that is missing is named in the page.

    The page is in Chinese and English, with a switch. It reads run.json, questions.json, dropped/*.jsonl, train.jsonl,
    the Parquet files of scores and decisions, evaluation.json, wins-and-losses.jsonl, review.jsonl, the tuned model's
    TensorBoard files, and what was learnt of false negatives. The same files give the same bytes.

    Args:
        language: what the page is in when it is opened; auto: the language of most of the run's passages.

    Raises:
        InputError: no such folder, or one of these files is damaged.
    """
    import jinja2
    import yaml

    if not run_folder.is_dir():
        raise InputError("no such run folder", where=run_folder, fix="give the --out of a `bge-factory build`")
    run, first = _json(run_folder / "run.json"), read_evaluation(run_folder / "evaluation.json")
    if stale := stale_set(first, run):
        first = {}
    described = _json(run_folder / QUESTIONS)
    samples, lengths = _training_rows(run_folder / "train.jsonl", _types(run_folder / "4-kept.jsonl"))
    stages: dict[str, Any] = run.get("stages", {})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": "{:,}".format,
        "percent": percent,
        "clip": _clip,
        "duration": duration,
        "metric": metric_name,
    }
    environment.tests["existing"] = lambda name: (run_folder / name).is_file()
    views: dict[str, Any] = {
        "story": story(run, described),
        "verdicts": verdicts(first, run),
        "questions": questions_section(described),
        "scores": scores_view(run_folder, run),
        "evidence": _odds(_json(run_folder / "evidence-model.json")),
        "false_negatives": _false_negatives(_json(run_folder / "false-negative-model.json"))
        if "judge" in stages
        else None,
        "training": training_view(run_folder, first, run),
        "rounds": rounds_section(run_folder, run.get("config", {})),
        "evaluation": evaluation_view(run_folder, first),
        "reviews": reviews_view(run_folder),
        "dropped": _dropped(run_folder / "dropped", stages),
    }
    negatives = views["scores"] or views["evidence"] or views["false_negatives"]
    page = environment.get_template("report.html.j2").render(
        **views,
        t=say,
        said=said,
        language=_language(run_folder, language),
        name=run_folder.resolve().name,
        parts=[p for p in PARTS if (views[p] if p in ("questions", "rounds") else p != "negatives" or negatives)],
        subtitle=subtitle(run.get("config", {})),
        done=done(run, first),
        stale=stale,
        result_flow=result_flow(views["verdicts"][0].verdict if views["verdicts"] else ""),
        samples=samples,
        lengths=_lengths(lengths),
        config_yaml=yaml.safe_dump(run["config"], allow_unicode=True, sort_keys=False) if "config" in run else "",
        versions={k: v for k, v in {"bge-factory": run.get("bge_factory"), **run.get("versions", {})}.items() if v},
        fingerprints=_fingerprints(stages, first),
        seconds=_seconds(stages, views["training"], first),
    )
    path = run_folder / "report.html"
    with atomic_text(path) as f:
        f.write(page)
    return path


def _seconds(
    stages: Mapping[str, Any], training: Sequence[Training], evaluation: Mapping[str, Any]
) -> list[tuple[Text, float]]:
    """What each step took, in order; of the trainings and the evaluation, too."""
    found = [(known("stage", name), stage.get("seconds", 0)) for name, stage in stages.items()]
    if trained := sum(t.seconds for t in training):
        found.append((say("made.training"), trained))
    if measured := sum(evaluation.get("seconds", {}).values()):
        found.append((say("made.evaluation"), measured))
    return found


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _language(run_folder: Path, wanted: Language) -> str:
    """`wanted`, or the language of most passages; of training questions where there are none."""
    if wanted != "auto":
        return wanted
    for name, key in (("2-passages.jsonl", "text"), ("train.jsonl", "query")):
        if (run_folder / name).is_file():
            rows = islice(read_lines(run_folder / name), PASSAGES)
            seen = Counter(text_language(str(row.get(key, ""))) for _, row in rows)
            if seen:
                return "zh" if seen["zh"] > seen["en"] else "en"
    return "en"


def _fingerprints(stages: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(file or model, SHA-256): what each stage wrote, as run.json says, and the models that were evaluated."""
    files = [(name, sha) for stage in stages.values() for name, sha in stage.get("outputs", {}).items()]
    models = [(name, about.get("fingerprint", "")) for name, about in evaluation.get("models", {}).items()]
    return [(name, sha) for name, sha in [*sorted(files), *models] if sha]


def _dropped(folder: Path, stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each stage that dropped something: its reasons, most frequent first, each with some of its rows."""
    found = []
    order = {name: i for i, name in enumerate(stages)}
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: (order.get(p.stem, len(order)), p.stem)):
        counts: Counter[str] = Counter()
        examples: dict[str, list[dict[str, Any]]] = {}
        for _, row in read_lines(path):
            reason = str(row.get("reason", "no reason given"))
            counts[reason] += 1
            shown = examples.setdefault(reason, [])
            if len(shown) < EXAMPLES:
                detail = str(row.get("detail") or "")
                shown.append(
                    {"detail": said(_clip(detail)) if detail else ""} | {k: row.get(k) or "" for k in ("id", "text")}
                )
        most = max(counts.values(), default=1)
        reasons = [
            {
                "reason": reason,
                "name": known("reason", reason),
                "count": count,
                "width": 100 * count / most,
                "examples": examples[reason],
            }
            for reason, count in counts.most_common()
        ]
        if reasons:
            found.append(
                {"stage": path.stem, "name": known("stage", path.stem), "count": counts.total(), "reasons": reasons}
            )
    return found


def _types(path: Path) -> dict[str, str]:
    """What kind of question each one is. (train.jsonl does not say: `type` means something else to the trainer.)"""
    return {str(row.get("id")): str(row.get("type", "")) for _, row in (read_lines(path) if path.is_file() else ())}


def _training_rows(path: Path, types: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows drawn evenly over the file, in its order, and the length of each query in characters."""
    drawn: dict[int, dict[str, Any]] = {}
    lengths: list[int] = []
    rng = random.Random(42)
    places: list[int] = []
    for i, (_, row) in enumerate(read_lines(path) if path.is_file() else ()):
        lengths.append(len(str(row.get("query", ""))))
        place = i if i < SAMPLES else rng.randrange(i + 1)  # a reservoir: the file may be larger than memory
        if place < SAMPLES:
            if i >= SAMPLES:
                del drawn[places[place]]
            places[place : place + 1] = [i]
            drawn[i] = row
    return [_sample(drawn[i], types.get(str(drawn[i].get("id")), "")) for i in sorted(drawn)], lengths


def _sample(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A training row with each text beside its score, None where there is none."""
    texts = {}
    for name in ("pos", "neg"):
        passages = row.get(name) or []
        texts[name] = list(zip(passages, row.get(f"{name}_scores") or [None] * len(passages), strict=False))
    return {"query": row.get("query", ""), "type": known("type", kind) if kind else "", **texts}


def _lengths(lengths: list[int]) -> dict[str, Any] | None:
    """At most 24 bins of equal, whole width."""
    if not lengths:
        return None
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // 24))
    counts = np.bincount([(n - low) // width for n in lengths])
    edges = low + width * np.arange(len(counts) + 1)
    chart = histogram(edges, [(say("questions"), BLUE, counts)], across=say("axis.characters"))
    return {"chart": chart, "median": int(np.median(lengths)), "number": len(lengths)}


def _odds(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """A learnt model as the page shows it: the heaviest features with what a standard deviation does to the odds."""
    if not model or "missing" in model:
        return dict(model) or None
    heavy = sorted(model["coefficients"], key=lambda c: -abs(c["weight"]))[:FEATURES]
    most = max((abs(c["weight"]) for c in heavy), default=0) or 1
    shown = [
        {"feature": c["feature"], "odds": float(np.exp(c["weight"])), "width": 100 * abs(c["weight"]) / most}
        for c in heavy
        if abs(c["weight"]) >= 0.01
    ]
    return dict(model) | {"contributions": shown, "missing": ""}


def _false_negatives(model: Mapping[str, Any]) -> dict[str, Any] | None:
    shown = _odds(model)
    if not shown or shown["missing"]:
        return shown
    bins = [(b["predicted"], b["observed"], b["count"]) for b in model["reliability"]]
    tips = [say("fn.reliability-tip", predicted=p, observed=o, n=n) for p, o, n in bins]
    return shown | {"curve": reliability([(p, o) for p, o, _ in bins], tips)}


def _clip(text: Any, length: int = CLIP) -> str:
    text = str(text)
    return text if len(text) <= length else text[:length].rstrip() + " …"
