"""The client of an OpenAI-compatible endpoint. Every finished answer is on disk before it is counted."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from factory.config import LLMConfig
from factory.progress import bar
from factory.records import InputError
from factory.serve import Endpoint, ServerDied, serve
from factory.workspace import fingerprint

THINK = re.compile(r"<think>.*?(</think>|\Z)", re.S)


@dataclass(frozen=True)
class Request:
    """One chat completion. `schema` is a JSON schema that the answer must follow."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    temperature: float
    seed: int
    schema: dict[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        if self.schema:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": self.schema, "strict": True},
            }
        return body


@dataclass(frozen=True)
class Answer:
    text: str  # without <think> parts
    finish: str  # "stop", "length", … as the server says
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class AnswerStore:
    """Answers in SQLite, keyed by a hash of the whole request and the model. One row is one commit."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT, request TEXT, text TEXT, finish TEXT,"
                " prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL, created REAL)"
            )
        except sqlite3.DatabaseError as e:
            raise InputError(
                f"not a usable SQLite file: {e}", where=path, fix="move it away; its answers will be asked for again"
            ) from e

    def get(self, key: str) -> Answer | None:
        row = self._db.execute(
            "SELECT text, finish, prompt_tokens, completion_tokens, seconds FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return Answer(*row) if row else None

    def put(self, key: str, model: str, body: dict[str, Any], answer: Answer) -> None:
        try:
            with self._db:
                self._db.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        key,
                        model,
                        json.dumps(body, ensure_ascii=False),
                        answer.text,
                        answer.finish,
                        answer.prompt_tokens,
                        answer.completion_tokens,
                        answer.seconds,
                        time.time(),
                    ),
                )
        except sqlite3.OperationalError as e:
            raise InputError(
                f"an answer could not be stored: {e}", fix="free some disk space and run again: stored answers are kept"
            ) from e

    def close(self) -> None:
        self._db.close()


@dataclass(frozen=True)
class Usage:
    """What a batch of requests cost: how many came from disk, how many were sent, tokens, seconds of wall time."""

    from_disk: int
    sent: int
    completion_tokens: int
    seconds: float


def complete(
    requests: Sequence[Request], config: LLMConfig, model_id: str, store: Path, log: Path, say: Callable[[str], None]
) -> tuple[list[Answer], Usage]:
    """An answer for each request, in order. The server is started only if one is not on disk yet.

    Args:
        model_id: fingerprint or name of the model; part of each answer's key.

    Raises:
        InputError: the server refuses a request (HTTP 4xx), or does not exist.
        ServerDied: it stopped answering; the answers so far are kept.
    """
    with closing(AnswerStore(store)) as answers:
        keys = [fingerprint([model_id, r.body()]) for r in requests]
        missing = {k: r for k, r in zip(keys, requests, strict=True) if answers.get(k) is None}
        started, tokens = time.monotonic(), 0
        if len(missing) < len(set(keys)):
            say(f"{len(set(keys)) - len(missing):,} of {len(set(keys)):,} answers are on disk already")
        if missing:
            with serve(config, log, say) as endpoint, bar("ask the LLM", "answer", len(missing)) as shown:

                def finished(key: str, answer: Answer) -> None:
                    nonlocal tokens
                    answers.put(key, model_id, missing[key].body(), answer)
                    tokens += answer.completion_tokens
                    shown.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
                    shown.update()

                asyncio.run(_ask_all(endpoint, missing, config, finished))
        found = [answers.get(k) for k in keys]
        usage = Usage(len(set(keys)) - len(missing), len(missing), tokens, time.monotonic() - started)
    return [a for a in found if a is not None], usage


async def _ask_all(
    endpoint: Endpoint, missing: dict[str, Request], config: LLMConfig, finished: Callable[[str, Answer], None]
) -> None:
    """Ask for every missing answer, at most `concurrency` at once; each is handed to `finished` as it comes."""
    limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
    timeout = httpx.Timeout(config.timeout, connect=30)
    waiting = iter(missing.items())
    async with httpx.AsyncClient(
        base_url=endpoint.url, headers=endpoint.headers(), timeout=timeout, limits=limits, trust_env=False
    ) as client:

        async def worker() -> None:
            for key, request in waiting:  # the workers share one iterator
                finished(key, await _ask(client, endpoint, request, config))

        workers = [asyncio.create_task(worker()) for _ in range(min(config.concurrency, len(missing)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 409, 425, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError, KeyError))


async def _ask(client: httpx.AsyncClient, endpoint: Endpoint, request: Request, config: LLMConfig) -> Answer:
    """One answer, retried with growing random pauses (at most 30 s) when the failure can pass."""
    started = time.monotonic()
    retrying = AsyncRetrying(
        stop=stop_after_attempt(config.retries + 1),
        wait=wait_random_exponential(multiplier=0.5, max=30),
        retry=retry_if_exception(_worth_retrying),
        reraise=True,
    )
    try:
        async for attempt in retrying:
            with attempt:
                response = await client.post("/chat/completions", json={"model": endpoint.model, **request.body()})
                response.raise_for_status()
                reply = response.json()
                choice = reply["choices"][0]
    except httpx.HTTPStatusError as e:
        said = e.response.text[:300]
        if e.response.status_code < 500:
            raise InputError(
                f"the LLM server refused a request: HTTP {e.response.status_code}: {said}", where=endpoint.url
            ) from e
        raise ServerDied(
            f"the LLM server failed {config.retries + 1} times: HTTP {e.response.status_code}: {said}"
        ) from e
    except (httpx.TransportError, json.JSONDecodeError, KeyError) as e:
        raise ServerDied(
            f"the LLM server at {endpoint.url} gave no answer in {config.retries + 1} tries: {type(e).__name__} {e}"
        ) from e
    usage = reply.get("usage") or {}
    return Answer(
        text=strip_thinking(choice["message"].get("content") or ""),
        finish=choice.get("finish_reason") or "",
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        seconds=round(time.monotonic() - started, 3),
    )


def strip_thinking(text: str) -> str:
    """The answer without its `<think>` parts; also where only the closing tag was sent (Qwen's template opens it)."""
    if "</think>" in text and "<think>" not in text.split("</think>", 1)[0]:
        text = text.split("</think>", 1)[1]
    return THINK.sub("", text).strip()
