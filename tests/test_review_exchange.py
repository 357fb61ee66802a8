"""Reviews to and from Argilla and Label Studio; with the real libraries where they are installed (they need not be)."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import pytest

from factory.records import InputError
from factory.review import ReviewLog, read_log
from factory.review_exchange import SUBMITTED, exchange
from factory.review_items import Items
from factory.review_server import Session
from factory.workspace import write_jsonl
from tests.review_run import NEGATIVES, make_run

USER = "3fa85f64-5717-4562-b3fc-2c963f66afa6"


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run", 6)


@pytest.fixture
def files(run, tmp_path) -> tuple[Path, Path]:
    """What is exported: (Argilla, Label Studio). The first question is decided on already."""
    items = Items(run)
    with ReviewLog(run, pytest.fail) as log:
        first = items.item(items.order[0])
        Session(items, log, "Li", "run").decide(first.pair.id, "positive", [first.candidates[1].id])
    exchange(run, lambda _: None, None, tmp_path / "argilla.json", tmp_path / "tasks.json")
    return tmp_path / "argilla.json", tmp_path / "tasks.json"


def read(path: Path):
    return json.loads(path.read_text("utf-8"))


def annotated(task: dict, decision: str, *marked: str, **more) -> dict:
    """As Label Studio exports it."""
    values = {"decision": [decision], "answering_negatives": list(marked)}
    result = [
        {"id": name, "from_name": name, "to_name": "question", "type": "choices", "value": {"choices": chosen}}
        for name, chosen in values.items()
        if chosen
    ]
    known = {"id": 1, "result": result, "was_cancelled": False, "completed_by": 7, "updated_at": "2026-01-01"}
    return task | {"id": 1, "annotations": [*task.get("annotations", []), known | more]}


def answered(record: dict, decision: str, *marked: str) -> dict:
    """As Argilla exports it."""
    given = {"decision": [{"value": decision, "user_id": USER}]}
    marks = {"answering_negatives": [{"value": list(marked), "user_id": USER}]}
    return record | {"responses": given | marks, "status": "completed"}


def come_back(run: Path, rows: list[dict], path: Path) -> tuple[list[str], dict]:
    """What is said, and the decisions afterwards."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    said: list[str] = []
    exchange(run, said.append, path, None, None)
    history = read_log(run, pytest.fail).effective()
    return said, {pair: (d.decision, d.negatives, d.reviewer) for pair, d in history.items()}


@pytest.mark.parametrize("tool", [0, 1], ids=["argilla", "label-studio"])
def test_decisions_find_their_way_back(run, files, tmp_path, tool):
    rows, items = read(files[tool]), Items(run)
    order = items.order
    assert len(rows) == len(order) == 8
    mark, reviewer = (annotated, "7") if tool else (answered, USER)
    rows[1] = mark(rows[1], "positive", "1", "3")
    rows[2] = mark(rows[2], "drop")
    rows[3] = mark(rows[3], "positive")  # a slip: none is marked
    rows[7] = mark(rows[7], "not-answerable")
    named = [t.id for t in items.item(order[1]).candidates]
    said, found = come_back(run, rows, tmp_path / "back.json")
    assert found.pop(order[0])[0] == "positive"  # as before
    assert found == {
        order[1]: ("positive", (named[0], named[2]), reviewer),
        order[2]: ("drop", (), reviewer),
        order[7]: ("not-answerable", (), reviewer),
    }
    assert any("record 4" in s and "none is marked" in s for s in said)
    said, _ = come_back(run, rows, tmp_path / "back.json")
    assert said[0].startswith("3 decisions") and "0 of them new" in said[0]
    changed = json.loads(json.dumps(rows[1:2]).replace(order[1], "another"))
    said, after = come_back(run, changed, tmp_path / "back.json")
    assert any("1 decisions on questions that this run does not have" in s for s in said) and "another" not in after


@pytest.mark.parametrize("tool", [0, 1], ids=["argilla", "label-studio"])
@pytest.mark.parametrize("wrong", ["0", "4"])
def test_a_number_that_no_negative_has_costs_its_record_alone(run, files, tmp_path, tool, wrong):
    rows, order = read(files[tool]), Items(run).order
    mark = annotated if tool else answered
    rows[1], rows[2] = mark(rows[1], "good"), mark(rows[2], "positive", "1", wrong)
    rows[3] = mark(rows[3], "drop")
    said, found = come_back(run, rows, tmp_path / "back.json")
    assert set(found) == {order[0], order[1], order[3]}
    assert any("record 3" in s and f"1, {wrong}" in s and f"of {NEGATIVES}" in s for s in said)


def test_what_was_decided_after_an_import_outlives_importing_the_file_again(run, files, tmp_path):
    task, other = read(files[1])[1:3]
    rows = [annotated(annotated(task, "drop"), "not-answerable", completed_by=8), annotated(other, "drop")]
    pair, second = task["data"]["pair_id"], other["data"]["pair_id"]
    come_back(run, rows, tmp_path / "back.json")
    items = Items(run)
    with ReviewLog(run, pytest.fail) as log:
        Session(items, log, "Li", "run").decide(pair, "good", [])
    before = (run / "review.jsonl").read_bytes()
    said, found = come_back(run, rows, tmp_path / "back.json")
    assert "0 of them new" in said[0] and found[pair] == ("good", (), "Li")
    assert (run / "review.jsonl").read_bytes() == before
    rows[1] = annotated(other, "good")  # changed over there
    said, found = come_back(run, rows, tmp_path / "back.json")
    assert "1 of them new" in said[0] and found[second] == ("good", (), "7") and found[pair] == ("good", (), "Li")


def test_argillas_drafts_and_discarded_answers_are_no_decisions(run, files, tmp_path):
    rows, order = read(files[0]), Items(run).order
    rows[1] = answered(rows[1], "drop") | {"status": "pending"}  # a draft, or discarded: the file does not tell which
    for row, status in ((2, "draft"), (3, "discarded"), (4, "submitted")):
        rows[row] = answered(rows[row], "drop")
        rows[row]["responses"]["decision"][0]["status"] = status
    said, found = come_back(run, rows, tmp_path / "back.json")
    assert set(found) == {order[0], order[4]}
    assert [n for n in range(1, 6) if any(f"record {n}:" in s and "not submitted" in s for s in said)] == [2, 3, 4]
    exchange(run, said.append, None, tmp_path / "again.json", None)
    assert "argilla.Query(filter=('response.status', '==', 'submitted'))" in said[-1]


def test_no_file_is_written_over_another_one(run, files, tmp_path):
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    tasks, argilla = tmp_path / "tasks.xml", tmp_path / "argilla.json"
    for import_, one, other in (
        (None, None, tasks),  # its config would be named so
        (None, tasks, tmp_path / "tasks.json"),
        (None, argilla, tmp_path / "run" / ".." / "argilla.json"),
        (argilla, argilla, None),
    ):
        with pytest.raises(InputError, match=r"(?s)one file, and two things.*fix: "):
            exchange(run, pytest.fail, import_, one, other)
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_a_decision_on_a_text_that_changed_is_not_suggested(run, files, tmp_path):
    passages = run / "2-passages.jsonl"
    first = Items(run).order[0]
    assert read(files[0])[0]["suggestions"] and "predictions" in read(files[1])[0]
    named = read_log(run, pytest.fail).of(first).negatives[0]
    changed = [json.loads(line) for line in passages.read_text("utf-8").splitlines()]
    write_jsonl(passages, [row | ({"text": "another text"} if row["id"] == named else {}) for row in changed])
    exchange(run, lambda _: None, None, tmp_path / "argilla.json", tmp_path / "tasks.json")
    assert not any(r["suggestions"] for r in read(files[0])) and not any("predictions" in t for t in read(files[1]))


def test_of_several_annotations_the_last_counts_and_cancelled_ones_do_not(run, files, tmp_path):
    task = annotated(read(files[1])[2], "drop", updated_at="2026-02-02", completed_by={"id": 3, "email": "a@b.c"})
    task = annotated(task, "good 没问题")  # older, and by the text instead of its alias
    task = annotated(task, "drop", was_cancelled=True, updated_at="2026-03-03")
    said, found = come_back(run, [task], tmp_path / "back.json")
    assert "2 decisions" in said[0]
    assert found[task["data"]["pair_id"]] == ("drop", (), "a@b.c")


def test_a_text_that_changed_after_the_export_is_not_decided_on(run, files, tmp_path):
    from factory.review import Review

    record = answered(read(files[0])[1], "positive", "2")
    come_back(run, [record], tmp_path / "back.json")
    items, pair = Items(run), record["id"]
    text = {t.id: t.text for t in items.item(pair).candidates}
    review = Review.read(run, pytest.fail)
    chosen = record["metadata"]["negative_ids"][1]
    assert review.holding([items.pairs[pair]], text)[pair].negatives == (chosen,)
    assert pair not in review.holding([items.pairs[pair]], text | {chosen: "another text"})
    assert pair not in review.holding([items.pairs[pair].model_copy(update={"query": "another"})], text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ('[{"question": "…", "decision": "good"}]', "not JSON-MIN"),
        ('[{"data": {}, "annotations": [{"result": 1}]}]', "record 1"),
        (
            '[{"fields": {}, "metadata": {}, "responses": {"decision": [{"value": "good", "user_id": "x"}]}}]',
            "record 1",
        ),
    ],
)
def test_a_file_that_is_not_ours_is_refused_by_name(run, tmp_path, text, said):
    (tmp_path / "back.json").write_text(text)
    with pytest.raises(InputError, match=said):
        exchange(run, pytest.fail, tmp_path / "back.json", None, None)
    with pytest.raises(InputError, match="no such file"):
        exchange(run, pytest.fail, tmp_path / "nothing.json", None, None)


def test_label_studios_config_names_what_every_task_has(files):
    config = ElementTree.parse(files[1].with_suffix(".xml")).getroot()
    wanted = {e.get("value").removeprefix("$") for e in config.iter("Text")}
    assert len(wanted) == 2 + NEGATIVES
    tasks = read(files[1])
    assert all(wanted <= set(task["data"]) for task in tasks)
    marked = tasks[0]["predictions"][0]["result"][1]
    assert marked["from_name"] == "answering_negatives" and marked["value"] == {"choices": ["2"]}
    aliases = [e.get("alias") for e in config.iter("Choice") if e.get("alias")]
    assert aliases == ["good", "not-answerable", "positive", "drop", "skip"]


def test_label_studios_own_library_reads_config_tasks_and_suggestions(files):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    config = interface.LabelInterface(files[1].with_suffix(".xml").read_text("utf-8"))
    config.validate()
    tasks = read(files[1])
    assert config.validate_prediction(tasks[0]["predictions"][0], return_errors=True) == []
    done = annotated(tasks[1], "positive", "1")["annotations"][0]
    assert config.validate_annotation({"result": done["result"]})
    wrong = annotated(tasks[1], "maybe")["annotations"][0]
    assert not config.validate_annotation({"result": wrong["result"]})


def test_argillas_own_library_reads_settings_and_records_and_writes_what_we_read(run, files, tmp_path):
    argilla = pytest.importorskip("argilla", reason="argilla is not installed")
    from argilla.records._io import JsonIO

    class Me(BaseHTTPRequestHandler):
        """Who asks: all that the client wants of a server to begin with."""

        def do_GET(self):
            times = {"inserted_at": "2026-01-01T00:00:00", "updated_at": "2026-01-01T00:00:00"}
            body = json.dumps({"id": USER, "username": "li", "first_name": "Li", "role": "owner"} | times).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Me) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        argilla.Argilla(api_url=f"http://127.0.0.1:{server.server_port}", api_key="x")
        settings = argilla.Settings.from_json(files[0].with_suffix(".settings.json"))
        server.shutdown()
    settings.validate()
    records = JsonIO._records_from_json(files[0])
    assert set(records[0].fields) == {f.name for f in settings.fields}
    assert records[0].suggestions["answering_negatives"].value == ["2"]
    for name, value in (("decision", "positive"), ("answering_negatives", ["1"])):
        records[1].responses.add(argilla.Response(name, value, user_id=USER, status="submitted"))
    records[2].responses.add(argilla.Response("decision", "drop", user_id=USER, status="draft"))
    records[1]._model.status = "completed"  # as the server says once an answer is submitted
    JsonIO.to_json(records, tmp_path / "written.json")
    _, found = come_back(run, read(tmp_path / "written.json"), tmp_path / "back.json")
    assert found[records[1].id] == ("positive", (records[1].metadata["negative_ids"][0],), USER)
    assert records[2].id not in found
    (asked,) = argilla.Query(filter=SUBMITTED).api_model().filters.and_
    assert asked.values == ["submitted"] and (asked.scope.entity, asked.scope.property) == ("response", "status")
