"""The report's section on the questions: `questions.json` with the places, widths and words that the page needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory.diversity import KEPT, NO_PAIR, NONE_KEPT, NOT_GIVEN, ON_PURPOSE
from factory.question_types import EASY, MEDIUM

LISTED = 50  # documents without a question that the page names
LANGUAGES = {"zh": "Chinese", "en": "English"}
WORDS = {
    NO_PAIR: "answered without a usable question",
    NOT_GIVEN: "no pair was given for it",
    "held-out-for-test": "held out for the given test",
    "copy-of-another-passage": "copy of another passage",
    "copies-a-held-out-passage": "copy of a held-out passage",
    "over-max_passages": "beyond generate.max_passages",
    "no-answer": "no answer from the LLM",
    "unparsable": "its answer could not be read",
}
# Blue: has a question. Red to yellow: tried in vain. Grey: left out on purpose.
BLUE, VAIN, LEFT = "#3d6fb6", ("#b3322c", "#dc7a3c", "#ecb254", "#f5d9a0"), ("#7b8794", "#a3adb8", "#c5ccd4", "#dde2e8")
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
        "judge": [error | {"task": task} for task, error in found.get("judge", {}).items()],
        "difficulty": _difficulty(found["difficulty"]),
        "languages": [_language(name, lang) for name, lang in found["languages"].items()],
        "topics": _topics(found["topics"]),
        "real": found["real"] | {"widths": _nearness(found["real"].get("nearest"))},
    }


def _stack(parts: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
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
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(t["dropped"].items(), key=lambda r: -r[1]))
        row = {"test": t["test"], "asked": t["asked"], "dropped": lost, "reasons": reasons}
        rows.append(row | {"width": 100 * (1 - lost / t["asked"]) if t["asked"] else 0})
    return rows


def _coverage(c: Mapping[str, Any]) -> dict[str, Any]:
    vain, left = list(VAIN), list(LEFT)
    parts = []
    for reason, n in c["classes"].items():
        shades = left if reason in ON_PURPOSE else vain
        colour = BLUE if reason == KEPT else shades.pop(0) if len(shades) > 1 else shades[0]
        parts.append((_words(reason), n, colour))
    listed = [d | {"reason": _words(d["reason"])} for d in c["documents_listed"][:LISTED]]
    without = c["documents"] - c["documents_covered"]
    return {
        "passages": c["passages"],
        "covered": c["classes"][KEPT],
        "asked": c["passages_asked"],
        "stack": _stack(parts),
        "documents": c["documents"],
        "documents_covered": c["documents_covered"],
        "documents_without": without,
        "why_without": [(_words(reason), n) for reason, n in c["documents_without"].items()],
        "listed": listed,
        "unlisted": without - len(listed),
    }


def _words(reason: str) -> str:
    return reason if reason in (KEPT, NONE_KEPT) else WORDS.get(reason, reason.replace("-", " "))


def _kinds(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "title": title,
        "rows": [dict(r) | {"name": r["name"] or "no " + title, "width": 100 * r["acceptance"]} for r in rows],
    }


def _difficulty(counts: Mapping[str, int]) -> dict[str, Any]:
    """`stack` is empty where no question was measured."""
    ranks = {"easy": f"rank {EASY}", "medium": f"rank {EASY + 1} to {MEDIUM}", "hard": f"rank {MEDIUM + 1} or deeper"}
    parts = [(f"{name} ({ranks[name]})" if name in ranks else name, n, SHADES[name]) for name, n in counts.items()]
    return {"stack": _stack(parts) if any(counts[name] for name in ranks) else []}


def _language(name: str, lang: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": LANGUAGES.get(name, name),
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
    shares = {
        side: [n / sum(h[side]["bins"]) for n in h[side]["bins"]]
        for side in ("generated", "real")
        if h[side] is not None
    }
    most = max(max(values) for values in shares.values())
    bins = len(next(iter(shares.values())))
    bars, steps = [], []
    for i in range(bins):
        start = h["from"] + i * h["width"]
        label = str(start) if h["width"] == 1 else f"{start}–{start + h['width'] - 1}"
        said = [f"{100 * shares[side][i]:.1f} % of the {words}" for side, words in _SIDES if side in shares]
        label = f"{start} or more" if i == bins - 1 else label
        height = 100 * shares["generated"][i] / most if "generated" in shares else 0
        bars.append({"height": height, "title": f"{label} characters: {', '.join(said)}"})
        if "real" in shares:
            steps += [
                (10 * i, 100 - 100 * shares["real"][i] / most),
                (10 * i + 10, 100 - 100 * shares["real"][i] / most),
            ]
    return {
        "bars": bars,
        "steps": steps,
        "from": h["from"],
        "last": h["from"] + (bins - 1) * h["width"],
        "generated": h["generated"],
        "real_ones": h["real"],
    }


_SIDES = (("generated", "kept questions"), ("real", "real ones"))


def _openings(o: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One column for each side that has questions; bars and marks of all columns on one scale."""
    sides = [
        (title, o[side])
        for side, title in (("generated", "kept questions"), ("real", "your users' questions"))
        if o[side]
    ]
    most = max(max(t["share"], t["other_share"] or 0) for _, side in sides for t in side["top"])
    return [
        {
            "title": title,
            "distinct": side["distinct"],
            "top": [
                t
                | {
                    "opening": t["opening"] or "(no word)",
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
