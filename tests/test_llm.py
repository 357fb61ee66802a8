"""The client against real servers: the embedded one here, vLLM too in `make test-vllm`. A faulty server is a fake,
since a real one does not fail on command."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from factory.answers import AnswerStore
from factory.asking import strip_thinking
from factory.llm import LLM, Request
from factory.prompting import requests_for
from factory.records import InputError
from factory.serve import ServerDied, serve
from factory.settings import LLMConfig
from tests.test_generate import config as config_with
from tests.test_generate import passage

SCHEMA = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string", "maxLength": 40}}
    },
    "required": ["items"],
}


def ask(text: str, schema=None) -> Request:
    return Request((("user", text),), max_tokens=120, temperature=0.5, seed=7, schema=schema)


@pytest.fixture
def faulty():
    """A server that answers as `replies` says, one (status, body) after the other, the last for ever."""
    replies, seen, models = [], [], [{"id": "m"}]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, {"data": models})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((dict(self.headers), body))
            self.answer(*(replies.pop(0) if len(replies) > 1 else replies[0]))

        def answer(self, status, body):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.replies, server.seen, server.models = replies, seen, models
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()


def reply(text: str) -> tuple[int, dict]:
    return 200, {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    }


def run(requests, config, tmp_path, said=None):
    said = [] if said is None else said
    with LLM(config, "model-1", tmp_path / "llm.sqlite", tmp_path / "server.log", said.append) as llm:
        return llm.complete(requests)


def test_a_server_follows_a_schema_and_no_answer_is_paid_for_twice(tmp_path, server):
    requests = [ask(f"Name a colour. Number {i}.", SCHEMA) for i in range(5)]
    answers, usage = run([*requests, requests[0]], server(), tmp_path)
    assert (usage.sent, usage.from_disk) == (5, 0)
    assert answers[5] == answers[0]
    for answer in answers:
        assert isinstance(json.loads(answer.text)["items"][0], str)
        assert answer.completion_tokens > 0
    # a model that is no longer there shows that nothing is started or sent
    again, usage = run(requests, server(model="/nowhere"), tmp_path)
    assert (usage.sent, usage.from_disk) == (0, 5)
    assert again == answers[:5]


def test_one_request_at_a_time_gives_the_same_answers_in_any_order(tmp_path, server):
    requests = [ask(f"Write a sentence about welding, number {i}.") for i in range(3)]
    config = server(concurrency=1)
    first, _ = run(requests, config, tmp_path / "a")
    second, _ = run(requests[::-1], config, tmp_path / "b")
    assert [a.text for a in first] == [a.text for a in second[::-1]]


def test_each_question_comes_under_the_name_of_its_kind(tmp_path, server):
    types = ["keyword", "fact", "colloquial"]
    texts = ["Dry the electrodes at 350 C for two hours.", "焊条使用前在350℃烘干两小时。"]
    built = config_with(generate={"types": types, "max_tokens": 900})
    answers, _ = run(requests_for([passage(t, t) for t in texts], built), server(context=2048), tmp_path)
    for answer, names in zip(answers, (["keywords", "everyday_question"], ["关键词", "大白话提问"]), strict=True):
        asked = [names[0], "question", names[1]]
        assert [list(item) for item in json.loads(answer.text)["items"]] == [["answer", name] for name in asked]


def test_a_run_that_was_stopped_asks_only_for_what_is_missing(tmp_path, server):
    requests = [ask(f"Name a tool. Number {i}.", SCHEMA) for i in range(6)]
    before, _ = run(requests[:2], server(), tmp_path)
    answers, usage = run(requests, server(), tmp_path)
    assert (usage.from_disk, usage.sent) == (2, 4)
    assert answers[:2] == before


def test_an_answer_cut_off_by_its_limit_says_so(tmp_path, server):
    request = Request((("user", "Count from one to a hundred in words."),), max_tokens=5, temperature=0, seed=1)
    (answer,), _ = run([request], server(), tmp_path)
    assert (answer.finish, answer.completion_tokens) == ("length", 5)


def test_a_prompt_longer_than_the_context_is_accounted_for_in_the_servers_words(tmp_path, server):
    answers, usage = run([ask("weld " * 3000), ask("Name a colour.")], server(), tmp_path)
    assert "refused: HTTP 400" in answers[0].failure and answers[1].text
    assert (usage.sent, usage.failed) == (2, 1)


def test_the_server_is_gone_when_the_work_is_done_or_fails(tmp_path, server):
    import httpx

    with pytest.raises(ZeroDivisionError), serve(server(), tmp_path / "log", print) as (endpoint,):
        assert httpx.get(f"{endpoint.url}/models", trust_env=False).status_code == 200
        1 / 0  # noqa: B018
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{endpoint.url}/models", trust_env=False)


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path, server):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"this is not a model")
    with pytest.raises(ServerDied, match=r"(?s)ended with code.*server\.log.*bad\.gguf"):
        run([ask("x")], server(model=str(bad)), tmp_path)


def test_what_a_server_died_of_is_shown_though_much_follows_in_its_log(tmp_path):
    """As vLLM does: its engine's error comes first, then the trace of the process that waited for it."""
    script = tmp_path / "server.py"
    script.write_text(
        "import sys\nprint('(EngineCore pid=7) ERROR 11-21 [core.py:9] ValueError: No such dtype')\n"
        "print('a line\\n' * 40 + 'RuntimeError: Engine core failed. See root cause above.')\nsys.exit(3)"
    )
    config = LLMConfig(serve="vllm", model=str(tmp_path), executable=[sys.executable, str(script)])
    with pytest.raises(ServerDied, match=r"(?s)code 3.*ValueError: No such dtype\n.*See root cause above"):
        run([ask("x")], config, tmp_path)


def test_a_server_of_ours_that_is_killed_is_started_again_and_loses_nothing(tmp_path, server):
    import psutil

    requests = [ask(f"Name an animal. Number {i}.", SCHEMA) for i in range(8)]
    said, killed = [], []

    def say(text):
        said.append(text)

    def kill_after_the_second_answer():
        while not killed:
            with suppress(sqlite3.Error), sqlite3.connect(tmp_path / "llm.sqlite") as db:
                if db.execute("SELECT count(*) FROM answers").fetchone()[0] >= 2:
                    (supervisor,) = psutil.Process().children()
                    killed.extend(supervisor.children())
                    for process in killed:
                        process.kill()
            time.sleep(0.01)

    threading.Thread(target=kill_after_the_second_answer, daemon=True).start()
    with LLM(server(concurrency=1), "model-1", tmp_path / "llm.sqlite", tmp_path / "log", say) as llm:
        answers, usage = llm.complete(requests)
    assert killed and usage.failed == 0
    assert all(json.loads(a.text)["items"] for a in answers)
    assert any("ended with code -9" in text and "starting it again" in text for text in said)


def test_no_server_outlives_its_starter_even_while_it_starts_and_will_not_listen(tmp_path):
    import psutil

    script = tmp_path / "server.py"
    script.write_text(
        "import os, pathlib, signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pids')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\ntime.sleep(600)"
    )
    config = {"serve": "vllm", "model": str(tmp_path), "executable": [sys.executable, str(script)]}
    starter = (
        "from pathlib import Path\nfrom factory.serve import serve\nfrom factory.settings import LLMConfig\n"
        f"with serve(LLMConfig(**{config!r}), Path({str(tmp_path / 'log')!r}), print):\n    pass"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=Path(__file__).parents[1])
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        time.sleep(0.1)
    process.kill()
    process.wait()
    left = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_missing_model_is_the_users_mistake(tmp_path, server):
    with pytest.raises(InputError, match="no such model"):
        run([ask("x")], server(model=str(tmp_path / "none.gguf")), tmp_path)


def test_the_api_key_is_sent_but_never_stored(tmp_path, faulty, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    faulty.replies.append(reply("ok"))
    said = []
    run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url, api_key_env="MY_KEY"), tmp_path, said)
    assert faulty.seen[0][0]["Authorization"] == "Bearer sk-very-secret"
    stored = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"very-secret" not in stored + "".join(said).encode()


@pytest.mark.parametrize("end", ["\n", "\r", " \r\n"])
def test_a_line_end_after_the_api_key_is_no_part_of_it(tmp_path, faulty, monkeypatch, end):
    monkeypatch.setenv("MY_KEY", f"sk-very-secret{end}")
    faulty.replies.append(reply("ok"))
    run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url, api_key_env="MY_KEY"), tmp_path)
    assert faulty.seen[0][0]["Authorization"] == "Bearer sk-very-secret"


@pytest.mark.parametrize("key", ["sk-secret密钥", "sk-secret\nsk-secret", "", "\n"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(tmp_path, faulty, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(InputError, match=r"llm\.api_key_env: .*MY_KEY") as refused:
        run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url, api_key_env="MY_KEY"), tmp_path)
    assert "secret" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://[::1", "http://127.0.0.1:99999", "127.0.0.1:8000"])
def test_a_url_that_is_none_is_an_error_at_its_key(tmp_path, url):
    with pytest.raises(InputError, match=r"llm\.url: "):
        run([ask("x")], LLMConfig(serve="endpoint", url=url), tmp_path)


@pytest.mark.parametrize("model", ["", "m"])
def test_a_server_without_a_model_is_an_error(tmp_path, faulty, model):
    faulty.models.clear()
    with pytest.raises(InputError, match=r"llm\.url: .* serves no model"):
        run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url, model=model), tmp_path)


def test_a_program_of_ours_may_be_given_by_a_path_from_where_we_are(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").write_text("#!/bin/sh\necho it was started\nexit 3\n")
    (tmp_path / "bin" / "vllm").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    config = LLMConfig(serve="vllm", model=str(tmp_path), executable=["bin/vllm", "serve"])
    with pytest.raises(ServerDied, match=r"(?s)code 3.*it was started"):
        run([ask("x")], config, tmp_path)


def test_a_proxy_in_the_environment_is_not_used(tmp_path, faulty, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    faulty.replies.append(reply("direct"))
    assert run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url), tmp_path)[0][0].text == "direct"


def test_an_endpoint_that_is_not_there_or_serves_another_model_is_an_error(tmp_path, faulty):
    with pytest.raises(InputError, match="no OpenAI-compatible server answers"):
        run([ask("x")], LLMConfig(serve="endpoint", url="http://127.0.0.1:9"), tmp_path)
    with pytest.raises(InputError, match="it serves m"):
        run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url, model="other"), tmp_path)


def test_another_model_at_the_same_url_is_not_mixed_with_the_first(tmp_path, faulty):
    faulty.replies.append(reply("ok"))
    unnamed = LLMConfig(serve="endpoint", url=faulty.url)
    run([ask("x")], unnamed, tmp_path)
    run([ask("x"), ask("y")], unnamed, tmp_path)
    faulty.models[0] = {"id": "other"}
    with pytest.raises(InputError, match=r"llm\.model: .* those of 'm', .* now 'other'"):
        run([ask("x"), ask("z")], unnamed, tmp_path)
    assert run([ask("x"), ask("y")], unnamed, tmp_path)[1].from_disk == 2  # no server is asked
    assert run([ask("x"), ask("z")], unnamed.model_copy(update={"model": "other"}), tmp_path)[1].sent == 1


def test_a_store_that_is_no_database_is_an_error(tmp_path):
    (tmp_path / "llm.sqlite").write_bytes(os.urandom(4096))
    with pytest.raises(InputError, match="not a usable SQLite file"):
        AnswerStore(tmp_path / "llm.sqlite")


def test_each_answer_is_committed_on_its_own(tmp_path, faulty):
    faulty.replies.append(reply("ok"))
    run([ask("x")], LLMConfig(serve="endpoint", url=faulty.url), tmp_path)
    with sqlite3.connect(tmp_path / "llm.sqlite") as db:
        (request,) = db.execute("SELECT request FROM answers").fetchone()
    assert json.loads(request)["messages"][0]["content"] == "x"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("<think>a\nb</think>\n{}", "{}"),
        ("reasoning without its opening tag</think>答案", "答案"),
        ("plain", "plain"),
        ("<think>cut off by max_tok", ""),
    ],
)
def test_thinking_is_taken_out(raw, clean):
    assert strip_thinking(raw) == clean
