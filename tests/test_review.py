"""Reviews: the log that loses nothing, the order, the server that only this machine can ask, and what a build makes of it."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.pipeline import DECISIONS
from factory.records import InputError
from factory.report_reviews import reviews_view
from factory.review import Decision, ReviewLog, read_log
from factory.review_items import Items
from factory.review_server import Server, Session, loopback, review
from factory.shared_words import pieces
from factory.workspace import write_jsonl
from tests.review_run import NEGATIVES, make_run

ROOT = Path(__file__).parents[1]


def quiet(message: str) -> None:
    pass


def decision(pair_id: str, what: str, *negatives: str, reviewer: str = "", **more) -> Decision:
    return Decision(time="2026-01-01", id=pair_id, decision=what, negatives=negatives, reviewer=reviewer, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("review") / "run", 12)


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


# the log


def test_the_last_decision_counts_a_skip_says_nothing_and_an_undo_takes_one_back(tmp_path):
    with ReviewLog(tmp_path, quiet) as log:
        for d in (decision("a", "good"), decision("a", "drop"), decision("a", "skip"), decision("b", "skip")):
            assert log.add(d)
        assert log.history.of("a").decision == "drop" and log.history.of("b").decision == "skip"
        assert log.undo("") == decision("b", "skip") and log.history.of("b") is None
        log.undo("")
        log.undo("")
        assert log.history.of("a").decision == "good"
        assert log.undo("somebody else") is None
        log.add(decision("a", "good", reviewer="somebody else"))
        assert log.undo("") is None  # what another has decided over is not taken back from below
        assert not log.add(decision("a", "good", reviewer="somebody else", texts={}))  # sent twice is one
    assert {k: d.decision for k, d in read_log(tmp_path, quiet).effective().items()} == {"a": "good"}
    assert len((tmp_path / "review.jsonl").read_text().splitlines()) == 8


def test_a_last_line_that_was_cut_short_is_said_and_nothing_else_is_lost(tmp_path):
    with ReviewLog(tmp_path, quiet) as log:
        log.add(decision("一", "good"))
        log.add(decision("b", "drop"))
    path = tmp_path / "review.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1])):  # wherever it was cut
        path.write_bytes(whole[:-cut])
        said = []
        kept = read_log(tmp_path, said.append).effective()
        assert set(kept) == ({"一", "b"} if cut == 1 else {"一"}) and len(said) == (cut > 1)
    said = []
    with ReviewLog(tmp_path, said.append) as log:
        log.add(decision("c", "good"))
    assert "cut short" in said[0] and set(read_log(tmp_path, pytest.fail).effective()) == {"一", "c"}
    path.write_bytes(path.read_bytes()[:-1])
    with ReviewLog(tmp_path, pytest.fail) as log:  # whole but for its line end
        log.add(decision("d", "good"))
    assert set(read_log(tmp_path, pytest.fail).effective()) == {"一", "c", "d"}


def test_a_broken_line_in_the_middle_is_the_users_to_mend(tmp_path):
    good = decision("a", "good").model_dump_json()
    for bad in ("{", "[]", '{"time": "", "id": "a", "decision": "maybe"}'):
        (tmp_path / "review.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
        with pytest.raises(InputError, match=r"review\.jsonl:2"):
            read_log(tmp_path, quiet)
        with pytest.raises(InputError, match=r"review\.jsonl:2"):
            ReviewLog(tmp_path, quiet)
    (tmp_path / "review.jsonl").write_text(good + "\n")
    ReviewLog(tmp_path, quiet).__exit__()  # the lock was let go of


def test_one_run_is_reviewed_by_one_program_at_a_time(tmp_path):
    with ReviewLog(tmp_path, quiet), pytest.raises(InputError, match="being reviewed already"):
        ReviewLog(tmp_path, quiet)
    ReviewLog(tmp_path, quiet).__exit__()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_on_a_full_disk_nothing_half_written_stays_and_it_goes_on_afterwards(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with ReviewLog(tmp_path, quiet) as log:
            log.add(decision("a", "good"))
            (tmp_path / "filler").write_bytes(b"x" * (64 << 10 >> 1))
            with pytest.raises(InputError, match="disk is full"):
                for i in range(1000):
                    log.add(decision("b" * 3000, "good", reviewer=str(i)))
            size = log.path.stat().st_size
            assert log.path.read_bytes().endswith(b"\n") and log.history.of("a")
            (tmp_path / "filler").unlink()
            log.add(decision("c", "drop"))
            assert log.path.stat().st_size > size
        assert {"a", "c"} <= set(read_log(tmp_path, pytest.fail).effective())
    finally:
        subprocess.run(["umount", tmp_path], check=False)


# what is shown


@pytest.mark.parametrize(
    ("text", "other", "shared"),
    [
        ("焊条应在350℃烘干两小时", "焊条的烘干温度是350℃吗", "焊条 350 烘干"),
        ("The pump's valves: PUMP and valve.", "What does the pump valve do?", "pump PUMP valve"),
        ("更换E4303焊条", "Ｅ４３０３的焊条", "E4303焊条"),
        ("一二三", "三二一", ""),
        ("", "焊条", ""),
    ],
)
def test_shared_words_are_marked_in_chinese_and_english(text, other, shared):
    found = pieces(text, other)
    assert "".join(piece for piece, _ in found) == text
    assert [piece for piece, both in found if both] == shared.split()


def test_the_doubtful_ones_come_first(run):
    items = Items(run)
    assert [items.pairs[i].split for i in items.order] == ["train"] * 12 + ["eval"] * 2
    assert items.order[12:] == ["q13", "q12"]  # the base model found its passage deeper
    nearest = [max(t.closeness for t in items.item(i).candidates) for i in items.order[:12]]
    assert nearest == sorted(nearest, reverse=True) and len(set(nearest)) > 6
    table = pq.read_table(run / DECISIONS)
    chance = {"q7": 0.09, "q3": 0.05}  # of a threshold of 0.1
    p = [chance.get(i, 0.001) for i in table["pair_id"].to_pylist()]
    at = table.column_names.index("probability")
    pq.write_table(table.set_column(at, "probability", pa.array(p, pa.float32())), run / DECISIONS)
    assert Items(run).order[:2] == ["q7", "q3"]


# the server


@contextmanager
def serving(run: Path, reviewer: str = "王芳"):
    with ReviewLog(run, quiet) as log, Server(Session(Items(run), log, reviewer, run.name)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            yield client, server
        server.shutdown()


def test_only_who_knows_the_token_and_asks_this_machine_by_its_name_gets_an_answer(run):
    with serving(run) as (client, server):
        assert client.get("").status_code == 200
        port = server.server_address[1]
        origin = {"Origin": f"http://127.0.0.1:{port}"}
        good = {"id": "q1", "decision": "good", "negatives": []}
        for path in ("/", "/state", f"/{server.token[:-1]}/state", "/x/state", "//", f"/{server.token}x/"):
            assert client.get(f"http://127.0.0.1:{port}{path}").status_code == 403
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"):
            assert client.get("state", headers={"Host": host}).status_code == 403
        for host in (f"localhost:{port}", "127.0.0.1:9999", "[::1]:80"):  # the last ones: through a tunnel
            assert client.get("state", headers={"Host": host}).status_code == 200
        for foreign in ("http://evil.example", "null", f"https://127.0.0.1:{port}"):
            assert client.post("decide", json=good, headers={"Origin": foreign}).status_code == 403
        assert not (run / "review.jsonl").read_bytes()
        assert client.post("decide", json=good, headers=origin).status_code == 200
        page = client.get("")
        assert "script-src 'nonce-" in page.headers["Content-Security-Policy"] and "NONCE" not in page.text
        assert "http://" not in page.text and "https://" not in page.text  # it loads nothing
        assert client.get("nothing").status_code == client.post("nothing", json={}).status_code == 404


def test_a_request_line_that_is_no_address_is_refused_quietly(run, capfd):
    with serving(run) as (_, server), socket.create_connection(server.server_address) as asked:
        asked.sendall(b"GET http://[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert asked.makefile("rb").readline().split()[1] == b"400"
    assert capfd.readouterr() == ("", "")


def test_a_decision_is_in_the_file_before_the_answer_and_an_undo_as_well(run):
    with serving(run) as (client, _):
        rows = client.get("state").json()["rows"]
        first = client.get("item", params={"id": rows[0][0]}).json()
        assert len(rows) == 14 and len(first["candidates"]) == NEGATIVES and first["decision"] is None
        assert "".join(piece for piece, _ in first["positives"][0]["pieces"]).startswith("第")
        two = [c["id"] for c in first["candidates"]][:2]
        answer = client.post("decide", json={"id": first["id"], "decision": "positive", "negatives": two})
        assert answer.json() == {"id": first["id"], "decision": "positive"}
        (line,) = (run / "review.jsonl").read_text("utf-8").splitlines()
        kept = json.loads(line)
        assert (kept["id"], kept["decision"], kept["negatives"], kept["reviewer"]) == (
            first["id"], "positive", two, "王芳",
        )  # fmt: skip
        assert client.post("undo", json={}).json() == {"id": first["id"], "decision": ""}
        assert len((run / "review.jsonl").read_text("utf-8").splitlines()) == 2
        assert client.post("undo", json={}).json() == {"id": None, "decision": None}
        for bad in (
            {"id": "q1", "decision": "maybe"},
            {"id": "q1", "decision": "positive"},
            {"id": "q1", "decision": "positive", "negatives": ["t999"]},
            {"id": "q1", "decision": "good", "negatives": two},
            {"id": "q1", "decision": "good", "negatives": "t1"},
        ):
            assert client.post("decide", json=bad).status_code == 400
        assert client.post("decide", content=b"[]").status_code == 400
        assert client.post("decide", json={"id": "?", "decision": "good"}).status_code == 404
        assert len((run / "review.jsonl").read_text("utf-8").splitlines()) == 2
        client.post("decide", json={"id": "q1", "decision": "drop"})
        table = client.get("decisions.csv").content.decode("utf-8-sig").splitlines()
        assert [row["decision"] for row in csv.DictReader(table)] == ["drop"]


def test_an_undo_takes_back_what_the_page_shows_and_nothing_else(run):
    with ReviewLog(run, quiet) as log:
        session = Session(Items(run), log, "Li", "run")
        session.decide("q1", "good", [])
        session.decide("q2", "drop", [])
        log.add(decision("of-an-earlier-build", "drop", reviewer="Li"))
        log.add(decision("q3", "drop", reviewer="Li", texts={"q3": "another text's"}))
        assert [session.undo()["id"] for _ in range(3)] == ["q2", "q1", None]
        assert set(log.history.effective()) == {"of-an-earlier-build", "q3"}


def test_what_was_decided_on_another_text_is_to_decide_again_on_the_page_and_not_counted_in_the_report(run):
    passages, kept = run / "2-passages.jsonl", run / "4-kept.jsonl"
    with ReviewLog(run, quiet) as log:
        session = Session(Items(run), log, "Li", "run")
        two, one = [t.id for t in session.items.item("q1").candidates][:2], session.items.item("q2").candidates[0].id
        for pair, what, *negatives in (
            ("q1", "positive", *two),
            ("q2", "positive", one),
            ("q5", "good"),
            ("q6", "good"),
        ):
            session.decide(pair, what, negatives)
    found = reviews_view(run)
    assert found and (found.reviewed, found.stale, found.false_negatives) == (4, 0, 3)

    rows = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
    write_jsonl(kept, [row | ({"query": "another?"} if row["id"] == "q5" else {}) for row in rows])
    rows = [json.loads(line) for line in passages.read_text("utf-8").splitlines()]
    write_jsonl(passages, [row | ({"text": "another text"} if row["id"] in (one, two[1]) else {}) for row in rows])
    with serving(run) as (client, _):
        assert {i: what for i, _, what in client.get("state").json()["rows"] if what} == {
            "q1": "positive",
            "q6": "good",
        }
        shown = [client.get("item", params={"id": pair}).json()["decision"] for pair in ("q1", "q2", "q5", "q6")]
        assert [d and d["negatives"] for d in shown] == [[two[0]], None, None, []]
    found = reviews_view(run)
    assert found and (found.reviewed, found.stale, found.false_negatives) == (2, 2, 1)


def start(run: Path, *more: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "factory.cli", "review", str(run), "--no-browser", *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    return process, process.stderr.readline().split()[-1]


def test_the_command_survives_a_kill_refuses_a_second_one_and_ends_on_ctrl_c(run):
    process, url = start(run, "--reviewer", "Li")
    refused = subprocess.run(
        [sys.executable, "-m", "factory.cli", "review", str(run)], capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode == 2 and "being reviewed already" in refused.stderr
    for i in range(5):
        httpx.post(f"{url}decide", json={"id": f"q{i}", "decision": "good"}, trust_env=False).raise_for_status()
    process.kill()
    process.wait()
    process, again = start(run)
    assert again != url
    rows = httpx.get(f"{again}state", trust_env=False).json()["rows"]
    assert sorted(i for i, _, what in rows if what == "good") == [f"q{i}" for i in range(5)]
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "5 decisions" in rest and "Traceback" not in rest and "GET" not in rest


def test_a_host_that_others_can_reach_is_refused(run):
    for host in ("0.0.0.0", "192.168.1.1", "::", "example.com", ""):
        with pytest.raises(InputError, match=r"(?s)is not this machine alone.*ssh -L"):
            review(run, "", quiet, host, browser=False)
    assert [loopback(host) for host in ("localhost", "127.0.0.9", "::1")] == ["127.0.0.1", "127.0.0.9", "::1"]


def test_a_folder_without_questions_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="no questions to review"):
        Items(tmp_path)
