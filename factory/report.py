"""One HTML file that tells a run's story; it loads nothing, so it can be mailed or opened from a shared disk."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from factory.diversity import QUESTIONS
from factory.modelfiles import read_json
from factory.records import InputError, read_lines
from factory.report_evaluation import evaluation_view
from factory.report_questions import questions_section
from factory.report_rounds import rounds_section
from factory.workspace import atomic_text

SAMPLES = 20  # training rows shown
EXAMPLES = 3  # texts shown for a drop reason
FEATURES = 12  # of the model of false negatives, shown
CLIP = 600  # characters of a passage that are shown

# What each step's rows are called, where its count lies in run.json (stage, key), and which stage loses rows after it.
STEPS = (
    ("documents", "load", "documents"),
    ("passages", "split", "passages"),
    ("questions", "generate", "pairs"),
    ("kept questions", "filter", "kept"),
    ("training rows", "export", "examples"),
)


def write_report(run_folder: Path) -> Path:
    """Write `report.html` in a run's folder from what lies there; a part that is missing is named in the page.

    It reads run.json, dropped/*.jsonl, questions.json, train.jsonl, evaluation.json, wins-and-losses.jsonl and what was
    learnt of false negatives. The same files give the same bytes.

    Raises:
        InputError: no such folder, or one of these files is not valid JSON.
    """
    import jinja2
    import yaml

    if not run_folder.is_dir():
        raise InputError("no such run folder", where=run_folder, fix="give the --out of a `bge-factory build`")
    run = _json(run_folder / "run.json")
    samples, lengths = _training_rows(run_folder / "train.jsonl", _types(run_folder / "4-kept.jsonl"))
    stages: dict[str, Any] = run.get("stages", {})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": "{:,}".format, "clip": _clip, "duration": _duration}
    page = environment.get_template("report.html.j2").render(
        name=run_folder.resolve().name,
        subtitle=_subtitle(run.get("config", {})),
        config_yaml=yaml.safe_dump(run["config"], allow_unicode=True, sort_keys=False) if "config" in run else "",
        versions={k: v for k, v in run.get("versions", {}).items() if v},
        funnel=_funnel(stages),
        chosen=_chosen(stages.get("choose", {}).get("counts", {})),
        dropped=_dropped(run_folder / "dropped", stages),
        questions=questions_section(_json(run_folder / QUESTIONS)),
        samples=samples,
        histogram=_histogram(lengths),
        evaluation=evaluation_view(run_folder),
        rounds=rounds_section(run_folder, run.get("config", {})),
        evidence=_odds(_json(run_folder / "evidence-model.json")),
        false_negatives=_false_negatives(_json(run_folder / "false-negative-model.json"))
        if "judge" in stages
        else None,
        seconds={name: stage.get("seconds", 0) for name, stage in stages.items()},
    )
    path = run_folder / "report.html"
    with atomic_text(path) as f:
        f.write(page)
    return path


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _funnel(stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each step that has run: its count, its share of the widest, and a remark."""
    rows = []
    for label, stage, key in STEPS:
        counts = stages.get(stage, {}).get("counts", {})
        if key in counts:
            rows.append({"label": label, "count": counts[key], "note": _note(label, counts)})
    widest = max((row["count"] for row in rows), default=0) or 1
    return [row | {"width": 100 * row["count"] / widest} for row in rows]


def _subtitle(config: Mapping[str, Any]) -> list[str]:
    """Which model, and who asked the questions: the folders' names, paths are in the configuration below."""
    parts = [
        ("model to train:", "model", "path"),
        ("questions by", "llm", "model"),
        ("reranker:", "score", "reranker"),
        ("negatives:", "choose", "preset"),
    ]
    return [f"{what} {Path(value).name}" for what, part, key in parts if (value := config.get(part, {}).get(key))]


def _chosen(counts: Mapping[str, int]) -> list[str]:
    """`choose`'s counts in words; the reasons of a rejection in brackets."""
    why = [f"{n:,} {what.removeprefix('rejected ')}" for what, n in counts.items() if what.startswith("rejected ")]
    said = {what: f"{n:,} {what}" for what, n in counts.items() if not what.startswith("rejected ")}
    if why and "rejected" in said:
        said["rejected"] += f" ({', '.join(why)})"
    return list(said.values())


def _note(label: str, counts: Mapping[str, int]) -> str:
    if label == "documents" and "characters" in counts:
        return f"{counts['characters']:,} characters"
    if label == "questions" and "passages asked" in counts:
        return f"from {counts['passages asked']:,} passages"
    if label == "training rows" and "negatives" in counts:
        return f"{counts['negatives']:,} negatives"
    held = [f"{counts[s]:,} {s}" for s in ("train", "dev", "eval") if counts.get(s)]
    return ", ".join(held)


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
                shown.append({k: row.get(k) or "" for k in ("id", "detail", "text")})
        most = max(counts.values(), default=1)
        reasons = [
            {"reason": reason, "count": count, "width": 100 * count / most, "examples": examples[reason]}
            for reason, count in counts.most_common()
        ]
        if reasons:
            found.append({"stage": path.stem, "count": counts.total(), "reasons": reasons})
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
    return {"query": row.get("query", ""), "type": kind, **texts}


def _histogram(lengths: list[int]) -> dict[str, Any] | None:
    """At most 24 bins of equal, whole width; bars in percent of the highest."""
    if not lengths:
        return None
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // 24))
    counts = np.bincount([(n - low) // width for n in lengths])
    bars = [
        {"from": low + i * width, "to": low + (i + 1) * width - 1, "count": int(n), "height": 100 * n / counts.max()}
        for i, n in enumerate(counts)
    ]
    return {"bars": bars, "low": low, "median": int(np.median(lengths)), "high": high, "count": len(lengths)}


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
    bins = [b | {"count_": b["count"]} for b in model["reliability"]]  # `count` is a method in a template
    return shown | {"reliability": bins}


def _clip(text: Any, length: int = CLIP) -> str:
    text = str(text)
    return text if len(text) <= length else text[:length].rstrip() + " …"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
