"""The report's section on the questions: `questions.json` with the places, widths and words that the page needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from factory.diversity import KEPT, ON_PURPOSE
from factory.question_types import EASY, MEDIUM
from factory.report_charts import BLUE, ORANGE, histogram
from factory.report_story import LEFT, VAIN
from factory.report_words import Text, join, known, same, say

LISTED = 50  # documents without a question that the page names
SHADES = {"easy": "#a9c4e6", "medium": BLUE, "hard": "#1d3a66", "not measured": "#dde2e8"}


def questions_section(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `questions.html.j2` draws; None where the run has no `questions.json` (yet).

    Args:
        found: `factory.diversity.describe`'s dictionary.
    """
    if not found:
        return None
    return {
        "coverage": _coverage(found["coverage"]),
        "kinds": [
            _kinds(title, found[part]) for title, part in (("type", "by_type"), ("asker", "by_asker")) if found[part]
        ],
        "tests": _tests(found.get("tests", [])),
        "judge": [error | {"task": known("task", task)} for task, error in found.get("judge", {}).items()],
        "difficulty": _difficulty(found["difficulty"]),
        "languages": [_language(name, lang) for name, lang in found["languages"].items()],
        "topics": _topics(found["topics"]),
        "real": found["real"] | {"widths": _nearness(found["real"].get("nearest"))},
    }


def _stack(parts: Sequence[tuple[Text, int, str]]) -> list[dict[str, Any]]:
    """The pieces of one bar, left to right, from (label, number, colour); empty ones are left out."""
    total = sum(n for _, n, _ in parts)
    pieces, at = [], 0
    for label, n, colour in parts:
        if n:
            pieces.append({"label": label, "n": n, "at": 100 * at / total, "width": 100 * n / total, "colour": colour})
        at += n
    return pieces


def _tests(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each test of the filter: how many questions it saw, and what share of them it dropped, by reason."""
    rows = []
    for t in tests:
        lost = sum(t["dropped"].values())
        dropped = sorted(t["dropped"].items(), key=lambda r: -r[1])
        told = [join([known("reason", reason), f"{n:,}"], " ", " ") for reason, n in dropped]
        if reworded := t.get("reworded"):
            told.append(say("questions.reworded", n=reworded))
        reasons = join(told) if told else ""
        row = {"test": known("test", t["test"]), "asked": t["asked"], "dropped": lost, "reasons": reasons}
        rows.append(row | {"width": 100 * (1 - lost / t["asked"]) if t["asked"] else 0})
    return rows


def _coverage(c: Mapping[str, Any]) -> dict[str, Any]:
    vain, left = list(VAIN), list(LEFT)
    parts = []
    for reason, n in c["classes"].items():
        shades = left if reason in ON_PURPOSE else vain
        colour = BLUE if reason == KEPT else shades.pop(0) if len(shades) > 1 else shades[0]
        parts.append((known("reason", reason), n, colour))
    listed = [d | {"reason": known("reason", d["reason"])} for d in c["documents_listed"][:LISTED]]
    without = c["documents"] - c["documents_covered"]
    return {
        "passages": c["passages"],
        "askable": c["passages"] - c["classes"].get("held-out-for-test", 0),
        "covered": c["classes"][KEPT],
        "asked": c["passages_asked"],
        "stack": _stack(parts),
        "documents": c["documents"],
        "documents_covered": c["documents_covered"],
        "documents_without": without,
        "why_without": [(known("reason", reason), n) for reason, n in c["documents_without"].items()],
        "listed": listed,
        "unlisted": without - len(listed),
    }


def _kinds(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "title": say(f"questions.{title}"),
        "rows": [dict(r) | {"name": _kind(title, r["name"]), "width": 100 * r["acceptance"]} for r in rows],
    }


def _kind(title: str, name: str) -> Text:
    """A type or asker; what stands for none, or for a user's own pairs, in both languages."""
    if name in ("", "no type"):
        return say(f"questions.no-{title}")
    return say("questions.given") if name == "given" else known("type", name)


def _difficulty(counts: Mapping[str, int]) -> dict[str, Any]:
    """`stack` is empty where no question was measured."""
    ranks = {"easy": str(EASY), "medium": f"{EASY + 1}–{MEDIUM}", "hard": str(MEDIUM + 1)}
    parts = [(say(f"difficulty.{name}", rank=ranks.get(name, "")), n, SHADES[name]) for name, n in counts.items()]
    return {"stack": _stack(parts) if any(counts[name] for name in ranks) else []}


def _language(name: str, lang: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": known("language", name),
        "tag": name,
        "questions": lang["questions"],
        "real": lang["real"],
        "lengths": _lengths(lang["lengths"]),
        "openings": _openings(lang["openings"]),
        "distance": lang["openings"]["distance"],
        "distinct": lang["distinct"],
        "units": "characters" if name == "zh" else "words",
    }


def _lengths(h: Mapping[str, Any]) -> dict[str, Any]:
    """Both histograms as shares of their own questions, on one scale: bars, and the real ones as a line of steps."""
    sides = {side: np.array(h[side]["bins"]) for side in ("generated", "real") if h[side] is not None}
    bins = len(next(iter(sides.values())))
    edges = h["from"] + h["width"] * np.arange(bins + 1)
    counts = [(say(_SIDES[side][0]), _SIDES[side][2], n) for side, n in sides.items()]
    tips = []
    for i in range(bins):
        start = h["from"] + i * h["width"]
        at = same(start if h["width"] == 1 else f"{start}–{start + h['width'] - 1}")
        shares = join(say(_SIDES[side][1], share=100 * n[i] / n.sum()) for side, n in sides.items())
        last = say("questions.lengths-or-more", n=start) if i == bins - 1 else at
        tips.append(say("questions.lengths-tip", at=last, shares=shares))
    chart = histogram(edges, counts, across=say("axis.characters"), tips=tips)
    return {"chart": chart, "generated": h["generated"], "real_ones": h["real"]}


_SIDES = {
    "generated": ("questions.side-kept", "questions.share-kept", BLUE),
    "real": ("questions.side-real", "questions.share-real", ORANGE),
}


def _openings(o: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One column for each side that has questions; bars and marks of all columns on one scale."""
    sides = [(say(_SIDES[side][0]), o[side]) for side in _SIDES if o[side]]
    most = max(max(t["share"], t["other_share"] or 0) for _, side in sides for t in side["top"])
    return [
        {
            "title": title,
            "distinct": side["distinct"],
            "top": [
                t
                | {
                    "opening": same(t["opening"]) if t["opening"] else say("questions.no-word"),
                    "width": 100 * t["share"] / most,
                    "mark": None if t["other_share"] is None else 100 * t["other_share"] / most,
                }
                for t in side["top"]
            ],
        }
        for title, side in sides
    ]


def _nearness(nearest: Mapping[str, float] | None) -> dict[str, float]:
    """Widths on a scale that begins at a random question and ends at the nearest."""
    if not nearest:
        return {}
    low = nearest["to_any"]
    reach = max(nearest["to_generated"], nearest["to_real"]) - low
    return {n: 100 * max(0.0, nearest[n] - low) / reach if reach > 0 else 0.0 for n in ("to_generated", "to_real")}


def _topics(found: Mapping[str, Any]) -> dict[str, Any]:
    if "missing" in found:
        return {"missing": found["missing"], "rows": []}
    most = max(t["questions_per_passage"] for t in found["topics"]) or 1
    rows = [dict(t) | {"width": 100 * t["questions_per_passage"] / most} for t in found["topics"]]
    return {"missing": "", "rows": rows}
