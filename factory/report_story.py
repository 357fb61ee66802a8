"""The run as one picture: documents → passages → questions → kept → rows → result, with what went at each step, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factory.diversity import KEPT, NONE_KEPT, ON_PURPOSE
from factory.report_charts import BLUE, GREEN, RED, Flow, flow
from factory.report_words import Text, join, known, say

# Red to yellow: tried in vain. Grey: left out on purpose.
VAIN, LEFT = ("#b3322c", "#dc7a3c", "#ecb254", "#f5d9a0"), ("#7b8794", "#a3adb8", "#c5ccd4", "#dde2e8")
UNSURE = "#4a5461"  # as in report.css; no grey of what was left out
DELIBERATE = {*ON_PURPOSE, "held-out", "given-with-its-question", "over-given-share"}
OF_PASSAGES = {
    *ON_PURPOSE,
    "given-with-its-question",
    "no-answer",
    "unparsable",
}  # generate's other reasons: of questions
NOT_ROWS = {"no-passage"}  # export's: of the user's test questions, which are no part of the story's last step
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """What of a step goes on, or goes: `share` in percent of the step."""

    name: Text
    count: int
    share: float
    colour: str


@dataclass(frozen=True)
class Step:
    """`total` of them came in; `goes_on` is the first part. `note` says what else is known."""

    name: Text
    total: int
    parts: tuple[Part, ...]
    flow: Flow
    note: Text | None = None


def story(run: Mapping[str, Any], questions: Mapping[str, Any]) -> list[Step]:
    """The steps that have run, from run.json and, for what became of passages, questions.json."""
    stages = run.get("stages", {})
    steps = [
        _documents(_of(stages, "load")),
        _passages(_of(stages, "split"), _of(stages, "generate"), questions.get("coverage")),
        _questions(_of(stages, "generate"), _of(stages, "filter")),
        _kept(_of(stages, "filter"), {n: _of(stages, n) for n in ("mine", "choose", "export")}),
        _rows(_of(stages, "export"), _of(stages, "choose")),
    ]
    return [step for step in steps if step]


def _of(stages: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return stages.get(name, {"counts": {}, "dropped": {}})


def _documents(load: Mapping[str, Any]) -> Step | None:
    counts = load["counts"]
    if "documents" not in counts:
        return None
    note = say("story.characters", n=counts["characters"]) if "characters" in counts else None
    return _step("documents", counts["documents"], "read", load["dropped"], note)


def _passages(split: Mapping[str, Any], generate: Mapping[str, Any], coverage: Mapping[str, Any] | None) -> Step | None:
    counts, went = split["counts"], generate["dropped"]
    if "passages" not in counts:
        return None
    asked = counts["passages"]
    if coverage:
        classes = dict(coverage["classes"])
        asked = classes.pop(KEPT, 0) + classes.pop(NONE_KEPT, 0)
        went = classes
    elif "passages asked" in generate["counts"]:
        went = {reason: n for reason, n in went.items() if reason in OF_PASSAGES}
        asked -= sum(went.values())
    else:
        went = {}
    splits = [say(f"split.{s}", n=counts[s]) for s in ("train", "dev", "eval") if counts.get(s)]
    note = join(splits) if len(splits) > 1 else None
    if note and split["dropped"]:
        note = say("story.split", n=counts["passages"], splits=note)
    return _step("passages", asked, "asked", {**split["dropped"], **went}, note)


def _questions(generate: Mapping[str, Any], filtered: Mapping[str, Any]) -> Step | None:
    if "kept" not in filtered["counts"]:
        return None
    lost = {reason: n for reason, n in generate["dropped"].items() if reason not in OF_PASSAGES}
    return _step("questions", filtered["counts"]["kept"], "kept", {**lost, **filtered["dropped"]})


def _kept(filtered: Mapping[str, Any], later: Mapping[str, Mapping[str, Any]]) -> Step | None:
    rows = later["export"]["counts"].get("examples")
    if rows is None or "kept" not in filtered["counts"]:
        return None
    lost = {r: n for stage in later.values() for r, n in stage["dropped"].items() if r not in NOT_ROWS}
    held = filtered["counts"]["kept"] - rows - sum(lost.values())  # an expert may have dropped held-out ones, too
    if held > 0:
        lost |= {"held-out": held}
    return _step("kept", rows, "became-rows", lost)


def _rows(export: Mapping[str, Any], choose: Mapping[str, Any]) -> Step | None:
    counts = export["counts"]
    if "examples" not in counts:
        return None
    return _step("rows", counts["examples"], "", {}, say("story.negatives", n=counts.get("negatives", 0)))


def _step(name: str, on: int, goes_on: str, lost: Counts, note: Text | None = None) -> Step:
    lost = dict(
        sorted(((reason, n) for reason, n in lost.items() if n), key=lambda r: (r[0] in DELIBERATE, -r[1], r[0]))
    )
    total = on + sum(lost.values())
    vain, left = list(VAIN), list(LEFT)
    parts = [Part(known("story.part", goes_on), on, _percent(on, total), BLUE)] if goes_on else []
    for reason, n in lost.items():
        shades = left if reason in DELIBERATE else vain
        shade = shades.pop(0) if len(shades) > 1 else shades[0]
        parts.append(Part(known("reason", reason), n, _percent(n, total), shade))
    drawn = flow(on / total if total else 0, BLUE, [(p.share / 100, p.colour) for p in parts[1:]])
    return Step(known("story.step", name), total, tuple(parts), drawn, note)


def result_flow(verdict: str) -> Flow:
    """The story's end: a bar in the colour of the verdict."""
    colour = {"better": GREEN, "worse": RED}.get(verdict, UNSURE)
    ends = flow(1, colour, [])
    return Flow(ends.wide[1:], ends.narrow[1:])


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
