"""Our client against the server's own ceiling, on the prompts of `generate`: requests/s and completion tokens/s.

    python -m benchmarks.generation COLLECTION --llm FILE.gguf --passages 200 --concurrency 8 --out runs/generation
    python -m benchmarks.generation COLLECTION --llm FOLDER --serve vllm --arguments="--max-num-seqs 256" --concurrency 256
    python -m benchmarks.generation COLLECTION --url http://127.0.0.1:8000/v1 --concurrency 256

*Ceiling*: as many workers as requests may be under way, each with a connection of its own, send the same kind of bodies one
after the other and count tokens; no store, no retries, no bar. *Ours*: `factory.llm.LLM` with a new store.

One server serves both, and neither arm may profit from what the other left in its prefix cache. So each arm of each round
puts a random word of its own before the first word of every prompt. Blocks are cached by all that comes before
them, so nothing is shared between arms and rounds, while inside an arm the instructions are shared by all passages, as
they are in a build. Passages, seeds and lengths are the same in both arms. Answers may differ a little with the word, so
tokens/s are compared beside requests/s. A round of a few requests, which is not counted, warms the server; then the arm that
begins changes from round to round, so that a machine that slows down or speeds up favours none.

At last the LLM is asked once more over the store of the last round, at an address where nothing listens: 0 requests sent.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import collection_parser, parse, peak
from factory.config import Config
from factory.evalset import read_corpus
from factory.languages import language
from factory.llm import LLM, Request
from factory.prompting import requests_for
from factory.records import Passage
from factory.serve import Endpoint, serve
from factory.settings import LLMConfig
from factory.workspace import write_json

Result = dict[str, float]
WARM = 8  # requests before the first round


def main() -> None:
    p = collection_parser(__doc__, model=False)
    p.add_argument("--llm", default="", help="a GGUF file, a model's folder for vLLM, or the name at --url")
    p.add_argument("--serve", choices=["llamacpp", "vllm"], default="llamacpp", help="who serves --llm")
    p.add_argument("--url", help="a server that runs, instead")
    p.add_argument("--executable", default="vllm serve", help="vLLM's command")
    p.add_argument("--arguments", default="", help="further ones of vLLM's: --arguments='--max-num-seqs 256'")
    p.add_argument("--context", type=int, default=2048)
    p.add_argument("--passages", type=int, default=200, help="requests of each arm in each round")
    p.add_argument("--max-tokens", type=int, default=400, help="of one answer")
    p.add_argument("--concurrency", type=int, default=8)
    p.add_argument("--rounds", type=int, default=4, help="an even number, so that each arm begins as often")
    p.add_argument("--out", type=Path, default=Path("runs/generation"), help="generation.json and the server's log")
    a = parse(p)
    config = LLMConfig.model_validate(
        {"serve": "endpoint", "url": a.url, "model": a.llm}
        if a.url
        else {"serve": a.serve, "model": a.llm, "arguments": shlex.split(a.arguments),
              "executable": shlex.split(a.executable)}
    ).model_copy(update={"context": a.context, "concurrency": a.concurrency})  # fmt: skip
    requests = prompts(a.collection / "corpus.jsonl", a.passages, a.max_tokens, a.context)
    print(f"{len(requests):,} requests a round and arm, {a.concurrency} at once")
    rounds: list[dict[str, Result]] = []
    with ExitStack() as opened:
        (endpoint,) = opened.enter_context(serve(config, a.out / "llm-server.log", print))
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="generation-", dir=a.out)))
        ceiling(marked(requests[:WARM]), endpoint, a.concurrency)
        for number in range(a.rounds):
            asked = marked(requests)
            store = folder / f"{number}.sqlite"
            arms: dict[str, Callable[[], Result]] = {
                "ceiling": lambda: ceiling(marked(requests), endpoint, a.concurrency),
                "ours": lambda asked=asked, store=store: ours(asked, endpoint, a.concurrency, store),
            }
            order = list(arms) if number % 2 == 0 else list(arms)[::-1]
            measured = {name: arms[name]() for name in order}
            rounds.append(measured)
            for name in arms:
                print(f"round {number + 1} {name:8}" + line(measured[name]), flush=True)
        again = restarted(asked, store)
    write_json(a.out / "generation.json", conclude(rounds, again, a))


def prompts(corpus: Path, count: int, max_tokens: int, context: int) -> list[Request]:
    """What `generate` asks about the first passages of a corpus."""
    texts = list(read_corpus(corpus).values())[:count]
    passages = [
        Passage(id=f"p{i}", document_id=f"p{i}", source=f"p{i}", text=text, start=0, end=len(text),
                tokens=len(text) if language(text) == "zh" else len(text) // 4,
                document_group=f"p{i}", duplicate_group=f"p{i}", split="train")
        for i, text in enumerate(texts)
    ]  # fmt: skip
    known = {"input": {"path": str(corpus)}, "model": {"path": "."}, "llm": {"context": context}}
    return requests_for(passages, Config.model_validate(known | {"generate": {"max_tokens": max_tokens}}))


def marked(requests: list[Request]) -> list[Request]:
    """The same random word before the first word of every prompt."""
    word = secrets.token_hex(4)
    return [replace(r, messages=((r.messages[0][0], f"{word} {r.messages[0][1]}"), *r.messages[1:])) for r in requests]


def ceiling(requests: list[Request], endpoint: Endpoint, concurrency: int) -> Result:
    """The minimal loop. RuntimeError if a request fails: then there is nothing to compare."""
    bodies = iter([{"model": endpoint.model} | r.body() for r in requests])
    tokens = 0

    settings: dict[str, Any] = {
        "limits": httpx.Limits(max_connections=1),
        "headers": endpoint.headers(),
        "timeout": 3600,
        "trust_env": False,
        "verify": httpx.create_ssl_context(trust_env=False),
    }

    async def work() -> None:
        nonlocal tokens
        async with httpx.AsyncClient(**settings) as client:
            for body in bodies:
                answer = await client.post(f"{endpoint.url}/chat/completions", json=body)
                if answer.status_code != 200:
                    raise RuntimeError(f"HTTP {answer.status_code}: {answer.text[:300]}")
                tokens += answer.json()["usage"]["completion_tokens"]

    async def together() -> None:
        await asyncio.gather(*(work() for _ in range(concurrency)))

    started, busy = time.monotonic(), time.process_time()
    asyncio.run(together())
    return rates(len(requests), tokens, time.monotonic() - started, time.process_time() - busy)


def ours(requests: list[Request], endpoint: Endpoint, concurrency: int, store: Path) -> Result:
    config = LLMConfig(serve="endpoint", url=endpoint.url, concurrency=concurrency)
    started, busy = time.monotonic(), time.process_time()
    with LLM(config, "m", store, store.with_suffix(".log"), print) as llm:
        _, usage = llm.complete(requests)
    spent = time.monotonic() - started, time.process_time() - busy
    if usage.failed or usage.sent != len(requests):
        raise RuntimeError(f"{usage.failed} requests failed, {usage.sent} of {len(requests)} sent")
    return rates(len(requests), usage.completion_tokens, *spent)


def restarted(requests: list[Request], store: Path) -> Result:
    """The same once more, where nothing listens."""
    config = LLMConfig(serve="endpoint", url="http://127.0.0.1:9")
    started = time.monotonic()
    with LLM(config, "m", store, store.with_suffix(".log"), print) as llm:
        _, usage = llm.complete(requests)
    return {"requests sent": usage.sent, "answers from disk": usage.from_disk, "seconds": time.monotonic() - started}


def rates(requests: int, tokens: int, seconds: float, busy: float) -> Result:
    return {
        "requests/s": requests / seconds,
        "tokens/s": tokens / seconds,
        "tokens": tokens,
        "seconds": seconds,
        "client ms/request": 1000 * busy / requests,  # processor time
    }


def line(result: Result) -> str:
    return (
        f"{result['tokens/s']:9.1f} tokens/s {result['requests/s']:8.2f} requests/s {result['seconds']:8.1f} s "
        f"{result['tokens']:8,.0f} tokens {result['client ms/request']:6.2f} ms of processor time a request"
    )


def conclude(rounds: list[dict[str, Result]], again: Result, a: Namespace) -> dict[str, Any]:
    """Prints the ratios and gives back all there is to keep."""
    ratios = {}
    for unit in ("tokens/s", "requests/s"):
        each = [r["ours"][unit] / r["ceiling"][unit] for r in rounds]
        ratios[unit] = {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}
        print(f"ours / ceiling, {unit}: {ratios[unit]['median']:.3f} ({min(each):.3f} to {max(each):.3f}; goal 0.95)")
    print(f"restarted: {again['requests sent']:.0f} requests sent, {again['answers from disk']:.0f} answers from disk, "
          f"{again['seconds']:.2f} s")  # fmt: skip
    print(f"peak memory of the client, both arms: {peak():.2f} GiB")
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}
    return json.loads(
        json.dumps({"asked": asked, "ratio": ratios, "restarted": again, "peak GiB": peak(), "rounds": rounds})
    )


if __name__ == "__main__":
    main()
