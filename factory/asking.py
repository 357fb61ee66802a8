"""Many requests to one or several OpenAI-compatible servers at once. Every request ends with an answer or a reason.

A server that fails is left alone for a growing while and then tried with one request; the others go on. A request that
fails where its neighbours pass is given up after `retries` tries, and where there are none left, one of ours of one
token tells whether the server is well. 429 and 503 make the window of that server smaller.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from factory.answers import Answer
from factory.clients import Clients
from factory.records import InputError, loads
from factory.serve import Endpoint, ServerDied
from factory.settings import LLMConfig

PAUSE, LONGEST = 0.5, 30.0  # seconds after a server's first failure, doubled with each; and at most
REFUSED = (400, 409, 413, 415, 422)  # about this one request; other 4xx are about all of them
BUSY = (429, 503)
TRUST = 5  # refusals at the very beginning, after which the server is asked no more
PATIENCE = 20  # requests given up in a row, after which it is the server that cannot
LOOK = 2.0  # seconds between two looks at a server's load
START, MOST = 16, 512  # the window of `concurrency: auto`, at first and at most
KNOCK = {"messages": [{"role": "user", "content": "1 + 1 ="}], "max_tokens": 1, "temperature": 0}
THINK = re.compile(r"<think>.*?(</think>|\Z)", re.S)
_LOAD = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^\n]*\})? ([0-9.e+]+)$", re.M)
Finished = Callable[[str, Answer], None]


@dataclass
class _Item:
    key: str
    body: dict[str, Any]
    tries: int = 0
    blamed: bool = False  # the server answers, but not this


class _Passing(Exception):
    """A failure that may pass. `pause`: what the server asks for, in seconds; `busy`: it has too much to do."""

    def __init__(self, said: str, *, pause: float = 0.0, busy: bool = False):
        super().__init__(said)
        self.pause, self.busy = pause, busy


@dataclass
class _Lane:
    """One server: how many requests may be under way, and how it has been doing."""

    endpoint: Endpoint
    clients: Clients
    window: float
    wanted: float  # where the window goes back to after the server was busy
    under_way: int = 0
    failures: int = 0  # in a row
    until: float = 0.0  # no request before
    said: str = ""
    down: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def room(self) -> bool:
        allowed = 1 if self.failures else int(self.window)
        return self.under_way < allowed and time.monotonic() >= self.until

    def good(self) -> None:
        self.failures = 0
        self.window = min(self.wanted, self.window + 1 / self.window)

    def bad(self, failure: _Passing, retries: int, started: float) -> None:
        self.said = str(failure)
        if started < self.until:
            return  # it was under way when the first of its kind failed: one failure, not many
        if failure.busy:
            self.window = max(1.0, self.window / 2)
        self.failures += 1
        wait = min(LONGEST, PAUSE * 2 ** max(self.failures - 1, 0)) * random.uniform(0.7, 1.3)
        self.until = time.monotonic() + max(wait, failure.pause)
        self.down = self.failures > retries


async def ask_all(
    endpoints: list[Endpoint],
    bodies: dict[str, dict[str, Any]],
    config: LLMConfig,
    done: Finished,
    *,
    new: bool = False,
) -> None:
    """Hands an answer for each body to `done` as it comes; one that nobody would give has `failure` set.

    Args:
        new: none of its kind was answered before, so the first refusals are likely about all of them.

    Raises:
        InputError: a server refuses every request (401, 404, …; with `new`, the first TRUST).
        ServerDied: all servers stopped answering; what came before was handed over.
    """
    work = deque(_Item(key, body) for key, body in bodies.items())
    left = len(work)
    if not left:
        return
    finished = asyncio.Event()
    first, most = (START, MOST) if config.concurrency == "auto" else (config.concurrency, config.concurrency)
    given_up = 0  # in a row, since the last answer
    tasks: set[asyncio.Task[None]] = set()
    failed: list[BaseException] = []
    async with AsyncExitStack() as opened:
        lanes = [
            _Lane(
                endpoint=e,
                clients=await opened.enter_async_context(Clients(e, config.timeout)),
                window=first,
                wanted=first,
            )
            for e in endpoints
        ]

        def end(item: _Item, answer: Answer) -> None:
            nonlocal left, new
            left -= 1
            new = new and bool(answer.failure)
            if new and len(bodies) - left == TRUST:
                raise InputError(
                    f"the LLM server gave none of the first {TRUST} answers: {answer.failure}", where="llm"
                )
            done(item.key, answer)
            if not left:
                finished.set()

        async def attempt(lane: _Lane, item: _Item) -> None:
            nonlocal given_up
            started = time.monotonic()
            try:
                answer = await _ask(lane, item.body)
            except _Passing as e:
                if gone := lane.endpoint.gone():
                    raise ServerDied(gone) from e
                if not e.busy and lane.failures == config.retries and given_up < PATIENCE and await _answers(lane):
                    lane.failures, item.blamed = 0, True
                lane.bad(e, config.retries, started)
                item.tries += not e.busy
                if item.tries > config.retries and not lane.down:
                    given_up += 1
                    end(item, failure(f"{item.tries} tries, the last: {e}"))
                elif e.busy or item.blamed:
                    work.appendleft(item)
                else:
                    work.append(item)  # another one tells whether it is the server or this request
                if all(other.down for other in lanes):
                    raise ServerDied(_dead(lanes, config.retries)) from e
            else:
                lane.good()
                given_up = 0
                end(item, answer)
            finally:
                lane.under_way -= 1
                lane.changed.set()

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                failed.append(error)
                finished.set()

        def begin(coroutine: Any) -> None:
            task = asyncio.create_task(coroutine)
            tasks.add(task)
            task.add_done_callback(ended)

        async def pump(lane: _Lane) -> None:
            while not lane.down:
                while work and lane.room():
                    lane.under_way += 1
                    begin(attempt(lane, work.popleft()))
                lane.changed.clear()
                pause = max(lane.until - time.monotonic(), 0.0) or (None if lane.under_way else 0.2)
                with suppress(TimeoutError):
                    await asyncio.wait_for(lane.changed.wait(), pause)

        for lane in lanes:
            begin(pump(lane))
            if first < most:
                begin(_follow_load(lane))
        try:
            await finished.wait()
        finally:
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if failed:
        raise failed[0]


def failure(reason: str, refused: bool = False) -> Answer:
    """What stands where an answer is missing; it is not stored, so that the next run asks again."""
    return Answer("", "", prompt_tokens=0, completion_tokens=0, seconds=0, failure=reason, refused=refused)


async def _answers(lane: _Lane) -> bool:
    """Whether the server answers at all: if so, what it failed at is to blame."""
    try:
        return not (await _ask(lane, KNOCK)).failure
    except (_Passing, InputError):
        return False


async def _ask(lane: _Lane, body: dict[str, Any]) -> Answer:
    """One try. Raises _Passing, or InputError where no other request would fare better."""
    started = time.monotonic()
    try:
        with lane.clients.one() as client:
            response = await client.post("/chat/completions", json={"model": lane.endpoint.model, **body})
    except httpx.RequestError as e:
        raise _Passing(f"{type(e).__name__} {e}".strip()) from e
    status, said = response.status_code, response.text[:300]
    if status in REFUSED:
        return failure(f"refused: HTTP {status}: {said}", refused=True)
    if 400 <= status < 500 and status not in (408, 425, 429):
        raise InputError(f"the LLM server refuses requests: HTTP {status}: {said}", where=lane.endpoint.url)
    if status != 200:
        raise _Passing(f"HTTP {status}: {said}", pause=_retry_after(response), busy=status in BUSY)
    try:
        return answer_of(loads(response.text), body, time.monotonic() - started)
    except ValueError as e:
        raise _Passing(f"no chat completion: {said!r}") from e


def answer_of(reply: Any, body: dict[str, Any], seconds: float) -> Answer:
    """The answer in a chat completion. ValueError if it is none."""
    try:
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        return Answer(
            text=strip_thinking(choice["message"].get("content") or ""),
            finish=str(choice.get("finish_reason") or ""),
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
            seconds=round(seconds, 3),
            first=_first_token(choice) if body.get("logprobs") else (),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise ValueError(f"no chat completion: {json.dumps(reply, ensure_ascii=False)[:300]}") from e


def _count(usage: dict[str, Any], name: str) -> int:
    number = float(usage.get(name) or 0)
    if not 0 <= number < 1e9:
        raise ValueError(f"no chat completion: {name} is {number}")
    return int(number)


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, 0 if it does not say; at most ten minutes."""
    said = response.headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 600.0)


async def _follow_load(lane: _Lane) -> None:
    """Widens the window while vLLM has nothing waiting, and narrows it when much waits. Without /metrics it stays."""
    address = lane.endpoint.url.removesuffix("/v1") + "/metrics"
    while True:
        await asyncio.sleep(LOOK)
        try:
            with lane.clients.one() as client:
                page = await client.get(address, timeout=10)
        except httpx.HTTPError:
            continue
        load = {"running": 0.0, "waiting": 0.0}
        for kind, number in _LOAD.findall(page.text if page.status_code == 200 else ""):
            load[kind] += float(number)
        if not any(load.values()):
            continue
        full = 0.8 * lane.window  # what runs there must be what was sent: a page written before tells nothing
        if load["waiting"] == 0 and lane.under_way > full and load["running"] > full:
            lane.window = lane.wanted = min(MOST, lane.window * 1.5)
        elif load["waiting"] > load["running"] / 4:
            lane.window = lane.wanted = max(1.0, load["running"] * 1.1)
        lane.changed.set()


def _dead(lanes: list[_Lane], retries: int) -> str:
    said = "; ".join(f"{lane.endpoint.url}: {lane.said}" for lane in lanes)
    return f"the LLM server stopped answering, {retries + 1} times in a row: {said}"


def _first_token(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """The alternatives of the answer's first token; empty if the server sent none."""
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    return tuple((a["token"], float(a["logprob"])) for a in content[0].get("top_logprobs") or [])


def strip_thinking(text: str) -> str:
    """The answer without its `<think>` parts; also where only the closing tag was sent (Qwen's template opens it)."""
    if "</think>" in text and "<think>" not in text.split("</think>", 1)[0]:
        text = text.split("</think>", 1)[1]
    return THINK.sub("", text).strip()
