"""What the report's section on evaluation shows, from evaluation.json and wins-and-losses.jsonl; older files, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.evaluation import FUSED, is_variant, label
from factory.groups import FEWEST
from factory.records import read_lines
from factory.report_summary import headline, sure
from factory.report_words import Text, known, said, same

KINDS = ("type", "origin", "document", "language", "length")
READ = ("dense", f"dense{FUSED}")  # modes whose wins and losses are shown to be read


def evaluation_view(run_folder: Path, first: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gates, and for each eval set its tables; None where nothing was measured.

    Args:
        first: evaluation.json.
    """
    if not first:
        return None
    file = run_folder / "wins-and-losses.jsonl"
    rows = [row for _, row in read_lines(file)] if file.is_file() else []
    file = run_folder / "evaluation-queries.jsonl"
    queries = [row for _, row in read_lines(file)] if file.is_file() else []
    sets = [_set(e, rows, queries) for e in (first, *first.get("further_sets", []))]
    return {"gates": [_gate(g) for g in first.get("gates", [])], "sets": sets, "seconds": first["seconds"]}


def _gate(g: Mapping[str, Any]) -> dict[str, Any]:
    return dict(g) | {end: 100 * g[end] for end in ("got", "low", "high")}


def _set(
    e: Mapping[str, Any], wins: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    k = max(e["cutoffs"])
    metric = headline(e)
    models = list(e["models"])
    changes = [c for d in [*e["differences"], *e.get("within_model", [])] for c in d["metrics"].values()]
    draw = _Axis(changes)
    against = {(d["model"], d["mode"]): d["metrics"] for d in e["differences"]}
    words = {(d["model"], d["mode"]): d["metrics"][metric] for d in e.get("against_bm25", [])}
    modes = list(dict.fromkeys(r["mode"] for r in e["rows"]))
    value = {(r["model"], r["mode"]): r["metrics"] for r in e["rows"]}
    plain = [m for m in modes if m and not is_variant(m)]
    shown = [m for m in value["BM25", ""] if m.endswith(f"@{k}")]
    overview = [
        {
            "mode": mode,
            "first": i == 0,
            "model": model,
            "values": [100 * metrics[m] for m in shown],
            "change": draw(against.get((model, mode), {}).get(metric)),
            "words": draw(words.get((model, mode))),
        }
        for mode in modes
        for i, (model, metrics) in enumerate((m, x) for (m, at), x in value.items() if at == mode)
    ]
    return {
        "name": e.get("name", ""),
        "metric": metric,
        "k": k,
        "beside_bm25": bool(words),
        "models": models,
        "columns": shown,
        "overview": overview,
        "headlines": [
            {k: d[k] for k in ("model", "base", "mode")}
            | {"change": draw(d["metrics"][metric]), "tally": tally(queries, e.get("name", ""), d, metric)}
            for d in e["differences"]
            if not is_variant(d["mode"])
        ],
        "details": [{"mode": mode, "rows": _details(value, against, models, mode, draw)} for mode in plain],
        "variants": [
            {k: d[k] for k in ("model", "mode", "base_mode")} | {"change": draw(d["metrics"][metric])}
            for d in e.get("within_model", [])
            if is_variant(d["mode"])
        ],
        "groups": _groups(e.get("groups", []), models),
        "wins": _wins([w for w in wins if w["set"] == e.get("name", "")]),
    } | {key: e[key] for key in ("queries", "queries_without_judgement", "passages")}


def tally(queries: Sequence[Mapping[str, Any]], name: str, d: Mapping[str, Any], metric: str) -> dict[str, int] | None:
    """How many questions of the set gained, lost or stayed the same; None where evaluation-queries.jsonl lacks them."""
    after, before = label(d["model"], d["mode"]), label(d["base"], d["mode"])
    both = [(q.get(after, {}).get(metric), q.get(before, {}).get(metric)) for q in queries if q.get("set", "") == name]
    changes = [new - old for new, old in both if new is not None and old is not None]
    if not changes:
        return None
    better, worse = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    return {"better": better, "worse": worse, "same": len(changes) - better - worse}


class _Axis:
    """Changes in points, each with where to draw it on one axis that is common to all of them, in percent of its width."""

    def __init__(self, changes: Sequence[Mapping[str, Any]]):
        self.reach = max((abs(c[end]) for c in changes for end in ("low", "high")), default=0) or 1

    def __call__(self, c: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if c is None:
            return None
        if c["low"] is None:
            return {"verdict": "unsure", "value": 100 * c["value"], "low": None, "high": None, "p": None, "at": None}
        ends = ("value", "low", "high")
        at = {end: 50 + 50 * max(-1, min(1, c[end] / self.reach)) for end in ends}
        return {"verdict": sure(c), "at": at, "p": c.get("p")} | {end: 100 * c[end] for end in ends}


def _details(value: Any, against: Any, models: Sequence[str], mode: str, draw: _Axis) -> list[dict[str, Any]]:
    """Every metric at every k of one mode: BM25, each model, and each later one's difference."""
    names = list(value["BM25", ""])
    return [
        {
            "metric": metric,
            "new": i > 0 and metric.split("@")[0] != names[i - 1].split("@")[0],
            "bm25": 100 * value["BM25", ""][metric],
            "values": [100 * value[m, mode][metric] if (m, mode) in value else None for m in models],
            "changes": [draw(against.get((m, mode), {}).get(metric)) for m in models[1:]],
        }
        for i, metric in enumerate(names)
    ]


def _groups(groups: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    """For each kind of group its rows: the dense models' values and each later one's change."""
    found = []
    draw = _Axis([c for g in groups for c in g["changes"] if c["low"] is not None])  # few questions: wide intervals
    for kind in KINDS:
        rows = []
        for g in groups:
            if g["by"] == kind:
                change = {c["model"]: c for c in g["changes"] if c["mode"] == "dense"}
                values = [100 * g["values"][name] for name in ("BM25", *(f"{m} dense" for m in models))]
                changes = [draw(change.get(m)) for m in models[1:]]
                rows.append(
                    {"name": _group_name(g["name"]), "queries": g["queries"], "values": values, "changes": changes}
                )
        if rows:
            bare = any(c and c["low"] is None for row in rows for c in row["changes"])
            found.append({"kind": kind, "rows": rows, "fewest": FEWEST if bare else None})
    return found


def _group_name(name: str) -> Text:
    text = known("group", name)
    if text == same(name):
        text = known("type", name)
    return said(name) if text == same(name) else text


def _wins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each mode of `READ` and each later model its wins and losses; a passage that was found is told from a relevant
    one that was not."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for w in rows:
        seen = {p["_id"] for p in (*w["base_top"], *w["top"])}
        missed = [p for p in w["relevant"] if p["_id"] not in seen]
        row = dict(w) | {"missed": missed, "difference": 100 * w["difference"]}
        found.setdefault((w["mode"], w["model"], w["base"]), []).append(row)
    return [
        {"mode": mode, "model": model, "base": base, "kind": kind, "rows": [w for w in ws if w["kind"] == kind]}
        for mode in READ
        for (at, model, base), ws in found.items()
        for kind in ("win", "loss")
        if at == mode
    ]
