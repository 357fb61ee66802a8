"""The client against servers that misbehave: every request ends with an answer or a reason, whatever the server does.

The servers are real HTTP servers; only what they answer is made up, since a real LLM server does not fail on command.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from factory import asking
from factory.answers import Answer
from factory.asking import ask_all
from factory.judge import LLMJudge
from factory.llm import LLM, Request, Usage
from factory.records import InputError
from factory.serve import ServerDied
from factory.settings import LLMConfig
from factory.token_estimate import crop_to, estimated_tokens
from tests.llm_server import Behaviour, Handler


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds where the client would wait for seconds."""
    monkeypatch.setattr(asking, "PAUSE", 0.01)
    monkeypatch.setattr(asking, "LONGEST", 0.05)
    monkeypatch.setattr(asking, "LOOK", 0.05)


def good(handler: Handler, number: int, prompt: str) -> None:
    handler.good(prompt)


def run(folder: Path, url: str | list[str], count: int, **settings: Any) -> tuple[list[Answer], Usage]:
    config = LLMConfig(serve="endpoint", url=url, **settings)
    requests = [Request((("user", f"q{i}"),), max_tokens=9, temperature=0, seed=1) for i in range(count)]
    with LLM(config, "m", folder / "llm.sqlite", folder / "log", lambda text: None) as llm:
        return llm.complete(requests)


def whole(answers: list[Answer], count: int) -> bool:
    return [a.text for a in answers] == [f"answer to q{i}" for i in range(count)]


def completion(text: str, tokens: bytes) -> bytes:
    usage = b'"usage": {"completion_tokens": %s}' % tokens
    return b'{"choices": [{"message": {"content": "%s"}}], %s}' % (text.encode(), usage)


FAULTS: dict[str, Behaviour] = {
    "500": lambda h, n, p: h.say(500, b"CUDA error"),
    "502 with a page": lambda h, n, p: h.say(502, b"<html>bad gateway</html>"),
    "a reset before the body": lambda h, n, p: h.reset(),
    "a reset in the body": lambda h, n, p: h.reset(b'{"choices": [{"mess'),
    "garbage": lambda h, n, p: h.say(200, b"\xff\xfe not json"),
    "json without choices": lambda h, n, p: h.say(200, b'{"object": "list", "choices": []}'),
    "a null message": lambda h, n, p: h.say(200, b'{"choices": [{"message": null}]}'),
    "broken gzip": lambda h, n, p: h.say(200, b"not gzip", Content_Encoding="gzip"),
    "json without an end to its depth": lambda h, n, p: h.say(200, b"[" * 100_000),
    "more tokens than there are": lambda h, n, p: h.say(200, completion("so", b"1e999")),
    "more tokens than a store can count": lambda h, n, p: h.say(200, completion("so", b"1" + b"0" * 30)),
    "a stall": lambda h, n, p: time.sleep(1.2),
    "503": lambda h, n, p: h.say(503, b"loading"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_request_in_five_fails_and_all_are_answered(tmp_path: Path, start: Any, name: str) -> None:
    server = start(lambda h, n, p: FAULTS[name](h, n, p) if n % 5 == 3 else h.good(p))
    answers, usage = run(tmp_path, server.url, 30, concurrency=4, timeout=0.5)
    assert whole(answers, 30)
    assert (usage.sent, usage.failed) == (30, 0) and len(server.seen) > 30
    again, usage = run(tmp_path, server.url, 30)
    assert (usage.from_disk, usage.sent) == (30, 0) and again == answers


def test_half_an_emoji_at_the_end_of_an_answer_is_stored_as_an_unknown_character(tmp_path: Path, start: Any) -> None:
    """As a model sends it whose answer is cut off in the middle of one."""
    server = start(lambda h, n, p: h.say(200, completion("fine \\ud83d", b"3")) if p == "q1" else h.good(p))
    for sent in (3, 0):
        answers, usage = run(tmp_path, server.url, 3)
        assert (answers[1].text, usage.sent, usage.failed) == ("fine \N{REPLACEMENT CHARACTER}", sent, 0)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_one_request_does_to_the_server_is_that_requests_failure(
    tmp_path: Path, start: Any, concurrency: int
) -> None:
    """Its neighbours pass, so the server is well. The next run asks for it alone: a run must not end there for ever."""
    ill = {"yes": True}
    server = start(lambda h, n, p: h.say(500, b"boom") if p == "q7" and ill["yes"] else h.good(p))
    for sent in (40, 1):
        answers, usage = run(tmp_path, server.url, 40, concurrency=concurrency, retries=3)
        assert [i for i, a in enumerate(answers) if a.failure] == [7] and usage.sent == sent
        assert "4 tries, the last: HTTP 500: boom" in answers[7].failure and usage.failed == 1
    ill["yes"] = False
    answers, usage = run(tmp_path, server.url, 40)
    assert whole(answers, 40) and (usage.from_disk, usage.sent) == (39, 1)


def test_some_requests_that_a_server_fails_at_are_given_up_whenever_they_come(tmp_path: Path, start: Any) -> None:
    """They end up at the end of the line, with nothing between them that would tell that the server is well."""
    ill = {f"q{i}" for i in range(0, 40, 5)}
    server = start(lambda h, n, p: h.say(500, b"boom") if p in ill else h.good(p))
    for sent in (40, 8):
        answers, usage = run(tmp_path, server.url, 40, concurrency=2, retries=3)
        assert (usage.sent, usage.failed) == (sent, 8)
        assert {f"q{i}" for i, a in enumerate(answers) if a.failure} == ill


def test_a_server_that_answers_us_and_none_of_the_requests_is_not_asked_for_all_of_them(
    tmp_path: Path, start: Any
) -> None:
    ill = {"yes": True}
    server = start(lambda h, n, p: h.say(500, b"no grammar") if p.startswith("q") and ill["yes"] else h.good(p))
    with pytest.raises(InputError, match="none of the first 5 answers: 3 tries, the last: HTTP 500: no grammar"):
        run(tmp_path, server.url, 100, concurrency=4, retries=2)
    assert len(server.seen) < 50  # without a limit it is 300 and more
    ill["yes"] = False
    assert whole(run(tmp_path, server.url, 10)[0], 10)
    ill["yes"] = True
    with pytest.raises(ServerDied, match="HTTP 500: no grammar"):
        run(tmp_path, server.url, 100, concurrency=4, retries=2)
    assert len(server.seen) < 200


def test_a_server_that_is_too_busy_for_all_but_our_small_request_ends_the_run(tmp_path: Path, start: Any) -> None:
    server = start(lambda h, n, p: h.say(429, b"quota") if p.startswith("q") else h.good(p))
    with pytest.raises(ServerDied, match="HTTP 429: quota"):
        run(tmp_path, server.url, 20, concurrency=2, retries=3)
    assert len(server.seen) < 20


def test_a_refused_request_is_not_sent_again_and_the_others_go_on(tmp_path: Path, start: Any) -> None:
    server = start(lambda h, n, p: h.say(400, b"maximum context length is 2048") if p == "q1" else h.good(p))
    answers, usage = run(tmp_path, server.url, 4)
    assert "refused: HTTP 400: maximum context length" in answers[1].failure
    assert len(server.seen) == 4 and usage.failed == 1


def test_a_server_that_refuses_from_the_first_on_ends_the_run_and_later_it_does_not(tmp_path: Path, start: Any) -> None:
    server = start(lambda h, n, p: h.say(400, b"response_format is not supported"))
    with pytest.raises(InputError, match=r"none of the first 5 answers: refused: HTTP 400: response_format"):
        run(tmp_path, server.url, 50, concurrency=1)
    assert len(server.seen) <= 6
    long = {f"q{i}" for i in range(10, 16)}
    server.behave = lambda h, n, p: h.say(400, b"too long") if p in long else h.good(p)
    for sent in (50, 6):  # the second run asks for these six alone, and knows that others were answered
        answers, usage = run(tmp_path, server.url, 50, concurrency=1)
        assert (usage.sent, usage.failed) == (sent, 6) and sum(bool(a.failure) for a in answers) == 6


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_wrong_with_every_request_ends_the_run_at_once(tmp_path: Path, start: Any, status: int) -> None:
    server = start(lambda h, n, p: h.say(status, b"no such key"))
    with pytest.raises(InputError, match=rf"HTTP {status}: no such key"):
        run(tmp_path, server.url, 50, concurrency=2)
    assert len(server.seen) <= 4


def test_retry_after_is_kept(tmp_path: Path, start: Any) -> None:
    server = start(lambda h, n, p: h.say(429, b"slow down", Retry_After="1") if n == 3 else h.good(p))
    answers, _ = run(tmp_path, server.url, 10, concurrency=1)
    assert whole(answers, 10)
    assert server.seen[3][0] - server.seen[2][0] >= 1


def test_a_busy_server_gets_fewer_requests_at_once_and_loses_none(tmp_path: Path, start: Any) -> None:
    """More than four at once are too many for it."""

    def behave(handler: Handler, number: int, prompt: str) -> None:
        if handler.server.under_way > 4:
            handler.say(429, b"too many")
        else:
            time.sleep(0.1)
            handler.good(prompt)

    server = start(behave)
    answers, usage = run(tmp_path, server.url, 150, concurrency=32, retries=2)
    assert whole(answers, 150) and usage.failed == 0
    assert len(server.seen) < 270  # with a window that stays at 32 it is 350


def test_a_server_that_dies_at_request_137_keeps_what_it_said(tmp_path: Path, start: Any) -> None:
    server = start(lambda h, n, p: h.good(p) if n < 137 else h.reset())
    with pytest.raises(ServerDied, match=r"stopped answering, 4 times in a row: http://127.*"):
        run(tmp_path, server.url, 200, concurrency=4, retries=3)
    assert len(server.seen) < 170  # it is not asked for the rest as well
    server.behave = good
    answers, usage = run(tmp_path, server.url, 200)
    assert whole(answers, 200) and usage.from_disk == 136


def test_when_one_of_two_servers_dies_the_other_does_the_work(tmp_path: Path, start: Any) -> None:
    first = start(lambda h, n, p: h.good(p) if n <= 5 else h.say(500, b"dead"))
    second = start(good)
    answers, usage = run(tmp_path, [first.url, second.url], 60, concurrency=2, retries=2)
    assert whole(answers, 60) and usage.failed == 0
    assert len(first.seen) > 5 and len(second.seen) >= 40


def test_auto_widens_the_window_while_nothing_waits_and_narrows_it_when_much_does(tmp_path: Path, start: Any) -> None:
    def behave(handler: Handler, number: int, prompt: str) -> None:
        time.sleep(0.5)
        handler.good(prompt)

    def tell(handler: Handler, number: int, prompt: str) -> None:
        server.load = {"running": server.under_way, "waiting": 0}
        behave(handler, number, prompt)

    server = start(tell)
    assert whole(run(tmp_path / "a", server.url, 150, concurrency="auto")[0], 150)
    assert server.widest > asking.START
    server.load = {"running": 4, "waiting": 50}
    widths: list[int] = []

    def watch(handler: Handler, number: int, prompt: str) -> None:
        widths.append(server.under_way)
        behave(handler, number, prompt)

    server.behave = watch
    assert whole(run(tmp_path / "b", server.url, 40, concurrency="auto")[0], 40)
    assert max(widths) <= asking.START and max(widths[-16:-4]) <= 5


def test_auto_does_not_grow_on_a_load_that_was_written_before_its_requests_came(tmp_path: Path, start: Any) -> None:
    """vLLM writes its figures after each step, which on a CPU takes seconds."""
    server = start(lambda h, n, p: (time.sleep(0.3), h.good(p)))
    server.load = {"running": 3, "waiting": 0}
    assert whole(run(tmp_path, server.url, 60, concurrency="auto")[0], 60)
    assert server.widest == asking.START


def test_auto_counts_what_waits_once(tmp_path: Path, start: Any) -> None:
    """vLLM also says for what reason requests wait; those are the same ones."""
    widths: list[int] = []

    def behave(handler: Handler, number: int, prompt: str) -> None:
        widths.append(handler.server.under_way)
        time.sleep(0.4)
        handler.good(prompt)

    server = start(behave)
    server.load = {"running": 10, "waiting": 2, "waiting_by_reason": 2}  # 4 would be too many
    assert whole(run(tmp_path, server.url, 48, concurrency="auto")[0], 48)
    assert max(widths[16:]) > 12


def test_connections_are_kept_and_are_no_more_than_requests_under_way(tmp_path: Path, start: Any) -> None:
    ports: set[int] = set()

    def behave(handler: Handler, number: int, prompt: str) -> None:
        ports.add(handler.client_address[1])
        time.sleep(0.01)
        handler.good(prompt)

    assert whole(run(tmp_path, start(behave).url, 60, concurrency=5)[0], 60)
    assert 1 < len(ports) <= 5


def judged(folder: Path, url: str, texts: list[str]) -> list[float]:
    config = LLMConfig(serve="endpoint", url=url, concurrency=1, retries=1)
    with LLM(config, "m", folder / "llm.sqlite", folder / "log", print) as llm:
        return [float(x) for x in LLMJudge(llm).score([("What is it?", text) for text in texts])]


def test_a_judgement_that_is_refused_is_no_opinion_and_the_judge_goes_on(
    tmp_path: Path, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"top_logprobs": [{"token": "yes", "logprob": -0.5}, {"token": "no", "logprob": -2.5}]}
    choice = {"message": {"content": "yes"}, "logprobs": {"content": [first]}}
    yes = json.dumps({"choices": [choice]}).encode()
    server = start(lambda h, n, p: h.say(400, b"too long") if "kettle" in p else h.say(200, yes))
    for _ in range(2):
        assert judged(tmp_path, server.url, ["A pump.", "A kettle.", "A fan."]) == [2, 0, 2]
        assert "1 of " in (said := capsys.readouterr().out) and "got no answer; one reason: refused: HTTP 400" in said
    server.behave = lambda h, n, p: h.say(500, b"boom") if "kettle" in p else h.good(p)
    with pytest.raises(ServerDied):  # this may pass, so that the next run asks again
        judged(tmp_path, server.url, ["A pump.", "A kettle.", "A fan."])


@pytest.mark.parametrize(
    ("text", "tokens"),  # as Qwen's tokenizer counts them
    {
        "ひらがなだけのぶんしょうはとてもながくなります" * 50: 700,
        "0123456789" * 100: 1000,
        "😀🎉🧯🦺" * 100: 600,
        "การบำรุงรักษาปั๊มน้ำ" * 100: 1200,
        "펌프의 필터는 반년마다 교체한다 " * 50: 699,
        "𠀀𠀁𠀂" * 50: 450,
        "| 1.5 | 2,7 | x |" * 50: 601,
        "焊条在350℃烘干。" * 100: 900,
    }.items(),
)
def test_tokens_of_any_script_are_not_guessed_too_low(text: str, tokens: int) -> None:
    assert tokens <= estimated_tokens(text) < 3 * tokens


def test_a_text_that_is_cut_fits_also_where_its_beginning_is_denser_than_its_end() -> None:
    text = "ひらがな" * 250 + "a plain English sentence " * 400
    assert 1700 < estimated_tokens(crop_to(text, 1788)) <= 1788
    assert crop_to(text, -5) == "ひ"


def test_ask_all_ends_without_work() -> None:
    import asyncio

    config = LLMConfig(serve="endpoint", url="http://127.0.0.1:9")
    asyncio.run(asyncio.wait_for(ask_all([], {}, config, lambda key, answer: None), 5))
