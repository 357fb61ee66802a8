"""What a team lead reads first: what was done, base against tuned, a verdict, and what to do. It rests on intervals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.evaluation import BM25, FUSED, is_variant, label
from factory.metrics import ALPHA
from factory.report_words import Text, join, metric_name, same, say

FEW = 100  # held-out questions; with fewer an interval is wide, and their choice decides much


@dataclass(frozen=True)
class Verdict:
    """On one tuned model, in percent and points of the headline metric.

    Attributes:
        verdict: better, unsure (no difference is shown) or worse.
        deploy: yes, beside (only together with BM25, whose value alone is higher) or no.
        reasons: sentences behind `deploy`.
    """

    model: str
    base: str
    mode: str
    metric: str
    base_value: float
    value: float
    change: float
    low: float
    high: float
    verdict: str
    deploy: str
    reasons: list[Text]
    bm25: float | None


def verdicts(evaluation: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> list[Verdict]:
    """One for each later model of evaluation.json, in its first mode that is compared with the base; empty without any.

    Args:
        run: run.json, of which a verdict that is unsure tells what held the training small.
    """
    if not evaluation:
        return []
    found = {}
    for d in evaluation["differences"]:
        if d["model"] not in found and not is_variant(d["mode"]) and not d["mode"].endswith(FUSED):
            found[d["model"]] = _verdict(evaluation, d, run or {})
    return list(found.values())


def _verdict(e: Mapping[str, Any], d: Mapping[str, Any], run: Mapping[str, Any]) -> Verdict:
    metric = headline(e)
    value = {(r["model"], r["mode"]): 100 * r["metrics"][metric] for r in e["rows"]}
    change = {end: 100 * d["metrics"][metric][end] for end in ("value", "low", "high")}
    kind = sure(d["metrics"][metric])
    words, tuned = value.get((BM25, "")), value[d["model"], d["mode"]]
    failed = [g for g in e.get("gates", []) if g["model"] == d["model"] and not g["passed"]]
    forgot = _forgotten(e, d)
    reasons = [say(f"summary.{kind}-because", low=change["low"], high=change["high"])]
    if kind == "unsure":
        reasons.append(say("summary.unsure-do", n=e["queries"], half=(change["high"] - change["low"]) / 2))
        reasons += [*_asked_few(run), *_others(d["metrics"], metric)]
    reasons += _joined(e, d, metric)
    for gate in failed:
        reasons.append(
            say("summary.gate", metric=metric_name(gate["metric"]), set=gate["eval_set"], got=100 * gate["got"])
        )
    reasons += forgot
    fused = value.get((d["model"], d["mode"] + FUSED))
    beaten = words is not None and words > tuned
    in_vain = beaten and fused is not None and fused <= words
    if beaten:
        reasons.append(_beside_bm25(e, d, value, fused))
    best = max((s for s in value if not is_variant(s[1])), key=lambda s: value[s])
    if best[0] not in (d["model"], BM25):
        reasons.append(_best(e, d, best, value[best], kind))
    if e["queries"] < FEW and kind != "unsure":
        reasons.append(say("summary.few", n=e["queries"]))
    stops = kind != "better" or failed or forgot or in_vain
    return Verdict(
        d["model"], d["base"], d["mode"], metric, value[d["base"], d["mode"]], tuned, change["value"], change["low"],
        change["high"], kind, "no" if stops else "beside" if beaten else "yes", reasons, words,
    )  # fmt: skip


def _asked_few(run: Mapping[str, Any]) -> list[Text]:
    """That a limit of the configuration kept passages from being asked about."""
    stages = run.get("stages", {})
    asked = stages.get("generate", {}).get("counts", {}).get("passages asked")
    passages = stages.get("split", {}).get("counts", {}).get("train")
    limited = run.get("config", {}).get("generate", {}).get("max_passages")
    return [say("summary.asked-few", n=asked, of=passages)] if limited and asked and passages > asked else []


def _others(metrics: Mapping[str, Mapping[str, float]], metric: str) -> list[Text]:
    """What the metrics show that do not decide, where they show anything, and how far they lie apart."""
    others = {name: change for name, change in metrics.items() if name != metric}
    kinds = [sure(change) for change in others.values()]
    better, worse = kinds.count("better"), kinds.count("worse")
    if not better and not worse:
        return []
    least, most = (f(others, key=lambda name: others[name]["value"]) for f in (min, max))
    ends = {"low": 100 * others[least]["value"], "high": 100 * others[most]["value"]}
    names = {"metric": metric_name(metric), "least": metric_name(least), "most": metric_name(most)}
    return [say("summary.others", n=len(kinds), better=better, worse=worse, **names, **ends)]


def _joined(e: Mapping[str, Any], d: Mapping[str, Any], metric: str) -> list[Text]:
    """The same comparison with both models joined with BM25, where that was measured."""
    at = (d["model"], d["base"], d["mode"] + FUSED)
    found = [x["metrics"][metric] for x in e["differences"] if (x["model"], x["base"], x["mode"]) == at]
    return [say("summary.joined", **{end: 100 * x[end] for end in ("value", "low", "high")}) for x in found]


def _best(e: Mapping[str, Any], d: Mapping[str, Any], best: tuple[str, str], value: float, kind: str) -> Text:
    """Which system has the highest value, and whether its lead over that model's plain search is shown."""
    told = say(f"summary.best{'' if kind == 'better' else '-meanwhile'}", system=label(*best), value=value)
    at = (*best, d["mode"])
    changes = [
        x["metrics"][headline(e)] for x in e.get("within_model", []) if (x["model"], x["mode"], x["base_mode"]) == at
    ]
    if not changes or sure(changes[0]) == "better":
        return told
    ends = {end: 100 * changes[0][end] for end in ("value", "low", "high")}
    return join([told, say("summary.best-unsure", other=label(best[0], d["mode"]), **ends)], " ", "")


def headline(e: Mapping[str, Any]) -> str:
    """The headline metric's name; older files do not tell it."""
    return e.get("metric") or f"ndcg@{max(e['cutoffs'])}"


def sure(change: Mapping[str, Any]) -> str:
    """What a difference shows: better, worse, or unsure where its interval holds zero, or, in files of before
    `metrics.compare`, where the randomisation test calls it chance."""
    if (change.get("p") or 0) >= ALPHA:
        return "unsure"
    return "better" if change["low"] > 0 else "worse" if change["high"] < 0 else "unsure"


def _forgotten(e: Mapping[str, Any], d: Mapping[str, Any]) -> list[Text]:
    """Further eval sets on which the model is surely worse."""
    found = []
    for other in e.get("further_sets", []):
        for x in other["differences"]:
            change = x["metrics"][headline(other)]
            if (x["model"], x["mode"]) == (d["model"], d["mode"]) and sure(change) == "worse":
                ends = {end: 100 * change[end] for end in ("value", "low", "high")}
                found.append(say("summary.forgot", set=other.get("name", ""), **ends))
    return found


def _beside_bm25(
    e: Mapping[str, Any], d: Mapping[str, Any], value: Mapping[tuple[str, str], float], fused: float | None
) -> Text:
    """BM25 finds more: surely, or by the value alone; and what both together reach, if that was measured."""
    at, words = (d["model"], d["mode"]), value[BM25, ""]
    changes = (x["metrics"][headline(e)] for x in e.get("against_bm25", []) if (x["model"], x["mode"]) == at)
    certain = any(sure(change) == "worse" for change in changes)
    told = say(f"summary.bm25-{'sure' if certain else 'higher'}", bm25=words, tuned=value[at])
    if fused is None:
        return told
    return join([told, say("summary.fused" if fused > words else "summary.fused-less", fused=fused)], " ", "")


def done(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Text | None:
    """What was done, in one sentence; None where run.json tells nothing."""
    stages, config = run.get("stages", {}), run.get("config", {})
    counts = {name: stage.get("counts", {}) for name, stage in stages.items()}
    made = [
        say(f"done.{key}", n=n)
        for key, n in (
            ("documents", counts.get("load", {}).get("documents")),
            ("passages", counts.get("split", {}).get("passages")),
            (
                "asked",
                _fewer(counts.get("generate", {}).get("passages asked"), counts.get("split", {}).get("passages")),
            ),
            ("questions", counts.get("generate", {}).get("pairs")),
            ("kept", counts.get("filter", {}).get("kept")),
            ("rows", counts.get("export", {}).get("examples")),
        )
        if n is not None
    ]
    if not made:
        return None
    parts = [join(made, " → ", " → ")]
    if (llm := config.get("llm", {}).get("model")) and config.get("input", {}).get("kind") != "pairs":
        parts.append(say("done.llm", llm=Path(llm).name))
    if evaluation:
        tested = "people" if config.get("test", {}).get("questions") else "held-out"
        parts.append(say(f"done.measured-{tested}", n=evaluation["queries"], passages=evaluation["passages"]))
    return join(parts, "; ", "；")


def _fewer(n: int | None, of: int | None) -> int | None:
    return n if n and of and n < of else None


def subtitle(config: Mapping[str, Any]) -> Text | None:
    """Which model, and who asked the questions: the folders' names, paths are in the configuration below."""
    parts = (
        ("model", "model", "path"),
        ("llm", "llm", "model"),
        ("reranker", "score", "reranker"),
        ("preset", "choose", "preset"),
    )
    found: Sequence[Text] = [
        say(f"subtitle.{word}", name=same(Path(value).name))
        for word, part, key in parts
        if (value := config.get(part, {}).get(key))
    ]
    return join(found, " · ", " · ") if found else None
