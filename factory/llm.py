"""The client of an OpenAI-compatible endpoint. Every finished answer is on disk before it is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from factory.answers import Answer, AnswerStore
from factory.asking import TRUST, ask_all, failure
from factory.progress import bar
from factory.records import InputError
from factory.request_files import AnswersMissing
from factory.serve import Endpoint, ServerDied, serve
from factory.settings import LLMConfig
from factory.workspace import fingerprint

RESTARTS = 3  # times a server of ours that died is started again, if it gave answers since the last time


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
    """What a batch of requests cost: how many came from disk, how many were sent, tokens, seconds of wall time.

    `failed`: of those sent, how many got no answer.
    """

    from_disk: int
    sent: int
    completion_tokens: int
    seconds: float
    failed: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


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
        self._open, self._store = ExitStack(), store
        self._answers = self._open.enter_context(closing(AnswerStore(store)))
        self._server = self._open.enter_context(ExitStack())
        self._endpoints: list[Endpoint] | None = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def complete(
        self,
        requests: Sequence[Request],
        what: str = "ask the LLM",
        watch: Callable[[int, Answer], str] | None = None,
        fresh: bool = True,
    ) -> tuple[list[Answer], Usage]:
        """An answer for each request, in order; one that the server would not give has `failure` set, and is not kept.

        Args:
            watch: called with the number of a request and its answer when that comes; what it returns stands in the bar.
            fresh: the server may not be able to answer such requests at all; if none of them is on disk, it is asked no
                more once it has given none of the first few.

        Raises:
            InputError: the server refuses all requests (HTTP 401, 404, …), or does not exist.
            AnswersMissing: with `serve: batch`, where there is no server; not if all that are missing were refused.
            ServerDied: it stopped answering; the answers so far are kept.
        """
        keys = [fingerprint([self.model_id, r.body()]) for r in requests]
        found = {key: self._answers.get(key) for key in dict.fromkeys(keys)}
        missing = {k: r for k, r in zip(keys, requests, strict=True) if found[k] is None}
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        started, tokens, failed = time.monotonic(), 0, 0
        if len(missing) < len(found):
            self._say(f"{len(found) - len(missing):,} of {len(found):,} answers are on disk already")
        new = fresh and len(missing) == len(found)
        if self.config.serve == "batch":
            refused = {key: said for key in missing if (said := self._answers.refusal(key))}
            if len(refused) < len(missing) or (new and len(refused) >= TRUST):
                raise AnswersMissing({k: r.body() for k, r in missing.items()}, self._store, self.model_id)
            found |= {key: failure(said, refused=True) for key, said in refused.items()}
            failed = len(refused)
        elif missing:
            with bar(what, "answer", len(missing)) as shown:

                def finished(key: str, answer: Answer) -> None:
                    nonlocal tokens, failed
                    found[key] = answer
                    if answer.failure:
                        failed += 1
                    else:
                        self._answers.put(key, self.model_id, missing[key].body(), answer)
                    tokens += answer.completion_tokens
                    if missing[key].max_tokens > 1:  # a judge's answer is one token
                        said = f", {watch(first[key], answer)}" if watch else ""
                        rate = tokens / (time.monotonic() - started)
                        shown.set_postfix_str(f"{rate:.0f} tokens/s{said}", refresh=False)
                    shown.update()

                self._ask({k: r.body() for k, r in missing.items()}, found, finished, new)
        if failed:
            reasons = sorted({a.failure for a in found.values() if a and a.failure})
            self._say(f"{failed:,} of {len(missing):,} requests got no answer; one reason: {reasons[0]}")
        usage = Usage(len(found) - len(missing), len(missing), tokens, time.monotonic() - started, failed)
        return [a for a in (found[k] for k in keys) if a is not None], usage

    def _ask(
        self,
        bodies: dict[str, dict[str, Any]],
        found: dict[str, Answer | None],
        finished: Callable[[str, Answer], None],
        new: bool,
    ) -> None:
        """Asks; a server of ours that dies on the way is started again and asked for what is still missing."""
        for attempt in range(RESTARTS + 1):
            if self._endpoints is None:
                self._endpoints = self._server.enter_context(serve(self.config, self._log, self._say))
                if self.config.serve == "endpoint" and not self.config.model:
                    self._same_model(self._endpoints[0].model)
            left = {key: body for key, body in bodies.items() if found[key] is None}
            try:
                return asyncio.run(ask_all(self._endpoints, left, self.config, finished, new=new))
            except ServerDied as e:
                came = sum(found[key] is not None for key in left)
                if self.config.serve == "endpoint" or not came or attempt == RESTARTS:
                    raise
                self._say(f"{e}\nstarting it again; {came:,} answers came since it was started")
                self._endpoints, new = None, False
                self._server.close()

    def _same_model(self, name: str) -> None:
        """Without `llm.model` an answer is kept under the server's URL alone: another model there would mix with the first."""
        before = self._answers.served(self.model_id, name)
        if name != before:
            what = f"the answers on disk are those of {before!r}, and the server's first model is now {name!r}"
            raise InputError(what, where="llm.model", fix="name there the one that is to be asked")
