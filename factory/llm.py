"""The client of an OpenAI-compatible endpoint. Every finished answer is on disk before it is counted."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from factory.answers import Answer, AnswerStore
from factory.progress import bar
from factory.records import InputError
from factory.serve import Endpoint, ServerDied, serve
from factory.settings import LLMConfig
from factory.workspace import fingerprint

THINK = re.compile(r"<think>.*?(</think>|\Z)", re.S)


@dataclass(frozen=True)
class Request:
    """One chat completion. `schema` is a JSON schema that the answer must follow; `top_logprobs` asks for the
    log-probabilities of the first token's so many likeliest alternatives."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    temperature: float
    seed: int
    schema: dict[str, Any] | None = None
    top_logprobs: int = 0

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
        if self.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body


@dataclass(frozen=True)
class Usage:
    """What a batch of requests cost: how many came from disk, how many were sent, tokens, seconds of wall time."""

    from_disk: int
    sent: int
    completion_tokens: int
    seconds: float


class LLM:
    """A server and the answers it has given. The server is started when an answer is first missing on disk.

        with LLM(config, model_id, store, log, say) as llm:
            answers, usage = llm.complete(requests)

    Args:
        model_id: fingerprint or name of the model; part of each answer's key.
        store: the SQLite file of the answers; log: where a server that we start writes.
    """

    def __init__(self, config: LLMConfig, model_id: str, store: Path, log: Path, say: Callable[[str], None]):
        self.config, self.model_id, self._log, self._say = config, model_id, log, say
        self._open = ExitStack()
        self._answers = self._open.enter_context(closing(AnswerStore(store)))
        self._endpoint: Endpoint | None = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def complete(self, requests: Sequence[Request], what: str = "ask the LLM") -> tuple[list[Answer], Usage]:
        """An answer for each request, in order.

        Raises:
            InputError: the server refuses a request (HTTP 4xx), or does not exist.
            ServerDied: it stopped answering; the answers so far are kept.
        """
        answers = self._answers
        keys = [fingerprint([self.model_id, r.body()]) for r in requests]
        missing = {k: r for k, r in zip(keys, requests, strict=True) if answers.get(k) is None}
        started, tokens = time.monotonic(), 0
        if len(missing) < len(set(keys)):
            self._say(f"{len(set(keys)) - len(missing):,} of {len(set(keys)):,} answers are on disk already")
        if missing:
            if self._endpoint is None:
                self._endpoint = self._open.enter_context(serve(self.config, self._log, self._say))
            with bar(what, "answer", len(missing)) as shown:

                def finished(key: str, answer: Answer) -> None:
                    nonlocal tokens
                    answers.put(key, self.model_id, missing[key].body(), answer)
                    tokens += answer.completion_tokens
                    if missing[key].max_tokens > 1:  # a judge's answer is one token
                        shown.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
                    shown.update()

                asyncio.run(_ask_all(self._endpoint, missing, self.config, finished))
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
        first=_first_token(choice) if request.top_logprobs else (),
    )


def _first_token(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """The alternatives of the answer's first token; empty if the server sent none."""
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    return tuple((a["token"], float(a["logprob"])) for a in content[0].get("top_logprobs") or [])


def strip_thinking(text: str) -> str:
    """The answer without its `<think>` parts; also where only the closing tag was sent (Qwen's template opens it)."""
    if "</think>" in text and "<think>" not in text.split("</think>", 1)[0]:
        text = text.split("</think>", 1)[1]
    return THINK.sub("", text).strip()
