"""Reviews in other tools: records for Argilla 2, tasks for Label Studio, and the decisions back from either.

The formats are what `Record.to_dict` and `Settings.serialize` of argilla 2.8 give, and Label Studio's task JSON with its
labelling config. Each record holds its pair's id, its candidates' ids and `digest`s of the texts, so that decisions find
their way back, and hold only for texts that have not changed since.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from factory.records import InputError
from factory.review import Decision, ReviewLog, now
from factory.review_items import Item, Items
from factory.workspace import atomic_text, write_json

CHOICES = {
    "good": "good 没问题",
    "not-answerable": "the positive does not answer it 正例答不了",
    "positive": "some negatives answer it, too (mark them below) 有负例也能回答（在下面标出）",
    "drop": "drop the question 删除此问题",
    "skip": "skip 跳过",
}
QUESTION, DECISION, MARKED = "question", "decision", "answering_negatives"
SUBMITTED = ("response.status", "==", "submitted")
GUIDELINES = (
    "Does the positive answer the question? Does one of the negatives answer it, too? "
    "正例能回答这个问题吗？负例里有没有也能回答的？"
)


def exchange(
    run: Path, say: Callable[[str], None], import_: Path | None, argilla: Path | None, label_studio: Path | None
) -> None:
    """Import first, if asked, then export, with the decisions that there are as suggestions.

    What stands in the log already is not imported again: what has been decided since would no longer count.

    Raises:
        InputError: the file to import is not one of ours; two of the files are the same.
    """
    settings = argilla and argilla.with_suffix(".settings.json")
    config = label_studio and label_studio.with_suffix(".xml")
    files = [file.resolve() for file in (import_, argilla, settings, label_studio, config) if file]
    if twice := next((file for file in files if files.count(file) > 1), None):
        fix = "Label Studio's tasks end in .json, its labelling config beside them in .xml; give each export a name of its own"
        raise InputError("one file, and two things to be written or read there", where=twice, fix=fix)
    items = Items(run)
    with ReviewLog(run, say) as log:
        if import_:
            decisions, problems = read_decisions(import_)
            known = [d for d in decisions if d.id in items.pairs]
            missing = [d for d in known if not log.history.stands(d)]
            new = sum(log.add(decision) for decision in missing)
            say(f"{len(known):,} decisions from {import_}, {new:,} of them new: {log.path}")
            for problem in problems:
                say(f"left out: {problem}")
            if unknown := len(decisions) - len(known):
                say(f"left out: {unknown:,} decisions on questions that this run does not have")
        shown = [(items.item(i, d), d) for i in items.order for d in [items.holding(log.history.of(i))]]
    size = max((len(item.candidates) for item, _ in shown), default=0)
    if argilla and settings:
        write_json(argilla, [argilla_record(item, d) for item, d in shown])
        write_json(settings, argilla_settings(size))
        say(
            f"{len(shown):,} records: {argilla}\nsettings: {settings}\n"
            f"next, in Python: d = argilla.Dataset(name=…, settings=argilla.Settings.from_json({str(settings)!r})); d.create(); "
            f"d.records.from_json({str(argilla)!r})\nafterwards, without drafts and discarded answers: "
            f"d.records(argilla.Query(filter={SUBMITTED!r})).to_json(FILE), then bge-factory review {run} --import FILE"
        )
    if label_studio and config:
        write_json(label_studio, [label_studio_task(item, d, size) for item, d in shown])
        with atomic_text(config) as f:
            f.write(label_studio_config(size))
        say(
            f"{len(shown):,} tasks: {label_studio}\nlabelling config: {config}\nnext: a new project, Labeling Setup > Custom "
            f"template: paste the config; then Import the tasks\nafterwards: Export > JSON, then bge-factory review {run} --import FILE"
        )


def argilla_settings(size: int) -> dict[str, Any]:
    """argilla.Settings.from_json reads it."""
    fields = [(QUESTION, True), ("positive", True), *((f"negative_{n}", False) for n in range(1, size + 1))]
    return {
        "guidelines": GUIDELINES,
        "allow_extra_metadata": True,
        "fields": [
            {
                "name": name,
                "title": name.replace("_", " ").capitalize(),
                "required": required,
                "settings": {"type": "text", "use_markdown": False},
            }
            for name, required in fields
        ],
        "questions": [
            {
                "name": DECISION,
                "title": "Decision 决定",
                "required": True,
                "settings": {
                    "type": "label_selection",
                    "options": [{"value": value, "text": text, "description": None} for value, text in CHOICES.items()],
                },
            },
            {
                "name": MARKED,
                "title": "Negatives that answer the question, too 也能回答的负例",
                "required": False,
                "settings": {
                    "type": "multi_label_selection",
                    "options": [
                        {"value": str(n), "text": str(n), "description": None} for n in range(1, max(size, 2) + 1)
                    ],
                },
            },
        ],
        "vectors": [],
        "metadata": [],
    }


def argilla_record(item: Item, decision: Decision | None) -> dict[str, Any]:
    """argilla's Record.from_dict reads it."""
    fields = {QUESTION: item.pair.query, "positive": "\n\n".join(t.text for t in item.positives)}
    suggested: dict[str, Any] = {}
    if decision:
        suggested[DECISION] = {"value": decision.decision, "agent": decision.reviewer or None}
        if marked := _numbers(item, decision):
            suggested[MARKED] = {"value": [str(n) for n in marked], "agent": decision.reviewer or None}
    return {
        "id": item.pair.id,
        "fields": fields | {f"negative_{n}": t.text for n, t in enumerate(item.candidates, 1)},
        "metadata": _keys(item),
        "suggestions": suggested,
        "responses": {},
        "vectors": {},
    }


def label_studio_config(size: int) -> str:
    """The labelling config: the texts, one choice of the decision, and one of the negatives that answer, too."""
    negatives = [
        f'  <Header value="Negative {n}"/>\n  <Text name="negative_{n}" value="$negative_{n}"/>'
        for n in range(1, size + 1)
    ]
    decisions = [f"    <Choice value={quoteattr(text)} alias={quoteattr(value)}/>" for value, text in CHOICES.items()]
    marks = [f'    <Choice value="{n}"/>' for n in range(1, size + 1)] or ['    <Choice value="1"/>']
    lines = [
        "<View>",
        f'  <Header value={quoteattr(GUIDELINES)} size="5"/>',
        '  <Header value="Question"/>',
        f'  <Text name="{QUESTION}" value="${QUESTION}"/>',
        '  <Header value="Positive"/>',
        '  <Text name="positive" value="$positive"/>',
        *negatives,
        f'  <Choices name="{DECISION}" toName="{QUESTION}" choice="single" required="true">',
        *decisions,
        "  </Choices>",
        '  <Header value="Negatives that answer the question, too 也能回答的负例" size="5"/>',
        f'  <Choices name="{MARKED}" toName="{QUESTION}" choice="multiple" showInline="true">',
        *marks,
        "  </Choices>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def label_studio_task(item: Item, decision: Decision | None, size: int) -> dict[str, Any]:
    """A task; every one has the same keys, since the config names them all."""
    texts = [t.text for t in item.candidates]
    data = {QUESTION: item.pair.query, "positive": "\n\n".join(t.text for t in item.positives)}
    data |= {f"negative_{n}": texts[n - 1] if n <= len(texts) else "" for n in range(1, size + 1)}
    task: dict[str, Any] = {"data": data | _keys(item)}
    if decision:
        values = {DECISION: [decision.decision], MARKED: [str(n) for n in _numbers(item, decision)]}
        result = [
            {"from_name": name, "to_name": QUESTION, "type": "choices", "value": {"choices": chosen}}
            for name, chosen in values.items()
            if chosen
        ]
        task["predictions"] = [{"model_version": decision.reviewer or "review", "result": result}]
    return task


def _keys(item: Item) -> dict[str, Any]:
    """What a decision needs to find its way back."""
    ids = [t.id for t in item.candidates]
    return {"pair_id": item.pair.id, "negative_ids": ids, "digests": [item.texts[i] for i in (item.pair.id, *ids)]}


def _numbers(item: Item, decision: Decision) -> list[int]:
    return [n for n, t in enumerate(item.candidates, 1) if t.id in decision.negatives]


def read_decisions(path: Path) -> tuple[list[Decision], list[str]]:
    """What Argilla (records as JSON) or Label Studio (export as JSON) wrote: decisions in its order, and slips in words.

    Of several annotations of a record the last one counts, as everywhere.

    Raises:
        InputError: it is neither, or a record is not one of ours.
    """
    fix = "Argilla: records.to_json; Label Studio: Export > JSON, not JSON-MIN"
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as e:
        raise InputError("no such file", where=path) from e
    except ValueError as e:
        raise InputError(f"not valid JSON: {e}", where=path, fix=fix) from e
    if not isinstance(rows, list) or not all(isinstance(r, dict) and ("fields" in r or "data" in r) for r in rows):
        what = "neither Argilla's records (`fields`) nor Label Studio's tasks (`data`)"
        raise InputError(what, where=path, fix=fix)
    found, problems = [], []
    for number, row in enumerate(rows, 1):
        where = f"{path}: record {number}"
        try:
            keys, given = (row["metadata"], _argilla(row)) if "fields" in row else (row["data"], _label_studio(row))
            for verdict, marked, reviewer in given:
                size = len(keys["negative_ids"])
                if not verdict:
                    problems.append(f"{where}: answered by {reviewer}, but not submitted, or the record not completed")
                elif verdict == "positive" and not marked:
                    problems.append(f"{where}: negatives answer it, too, and none is marked")
                elif verdict == "positive" and not all(1 <= int(n) <= size for n in marked):
                    problems.append(f"{where}: marked negatives {', '.join(map(str, marked))}, of {size}")
                else:
                    found.append(_decision(keys, verdict, marked, reviewer))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as e:
            fix = "import what this run's `bge-factory review --export-…` wrote, with its metadata and data"
            raise InputError(f"not a record of ours: {type(e).__name__} {e}", where=where, fix=fix) from e
    return found, problems


Annotation = tuple[str, list[str], str]  # decision ("": not submitted), numbers of negatives, reviewer


def _argilla(row: Mapping[str, Any]) -> list[Annotation]:
    """What argilla writes tells of the record alone whether it is completed: whether enough answers were submitted."""
    marked = {r["user_id"]: r["value"] for r in row["responses"].get(MARKED, [])}
    answers = row["responses"].get(DECISION, [])
    whole = "submitted" if row.get("status", "completed") == "completed" else "draft"
    return [
        (r["value"] if r.get("status", whole) == "submitted" else "", marked.get(r["user_id"]) or [], str(r["user_id"]))
        for r in answers
    ]


def _label_studio(row: Mapping[str, Any]) -> list[Annotation]:
    found: list[Annotation] = []
    annotations: Iterable[Mapping[str, Any]] = row.get("annotations", [])
    for a in sorted(annotations, key=lambda a: a.get("updated_at") or ""):
        if a.get("was_cancelled"):
            continue
        chosen = {r["from_name"]: r["value"]["choices"] for r in a["result"] if r.get("type") == "choices"}
        if DECISION in chosen:
            who = a.get("completed_by", "")
            who = who.get("email", who.get("id", "")) if isinstance(who, dict) else who
            said = chosen[DECISION][0]  # the alias, or without one the text
            verdict = next((value for value, text in CHOICES.items() if said == text), said)
            found.append((verdict, chosen.get(MARKED, []), str(who)))
    return found


def _decision(keys: Mapping[str, Any], verdict: str, marked: list[str], reviewer: str) -> Decision:
    ids = [keys["negative_ids"][int(n) - 1] for n in marked] if verdict == "positive" else []
    digests = dict(zip([keys["pair_id"], *keys["negative_ids"]], keys["digests"], strict=True))
    return Decision.model_validate(
        {
            "time": now(), "id": keys["pair_id"], "decision": verdict, "negatives": ids, "reviewer": reviewer,
            "texts": {key: digests[key] for key in (keys["pair_id"], *ids)},
        }
    )  # fmt: skip
