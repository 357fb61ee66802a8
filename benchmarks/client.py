"""The client of the LLM alone, against a server in another process that answers at once: how fast could a server be?

    python -m benchmarks.client --requests 2000

For each number of requests under way: *ours* (`factory.llm.LLM` with a new store on the disk of --folder), the same bodies
through httpx with a connection for each worker (*bare*), and through one httpx client with a pool of connections
(*pool*), which is what one writes first. Processor time is the client's own. --delay makes the server answer later, so
that all requests are really under way. The last lines are the store alone: one commit for each answer, and reading them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from factory.answers import Answer, AnswerStore
from factory.llm import LLM, Request
from factory.serve import free_port
from factory.settings import LLMConfig

ITEM = {
    "question": "How far ahead of the wing does the slipstream still change the lift?",
    "answer": "one chord length",
}
TEXT = json.dumps({"items": [ITEM] * 3})
REPLY = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 600, "completion_tokens": 90, "total_tokens": 690},
    }
).encode()


class Instant(asyncio.Protocol):
    """As little of HTTP/1.1 as a client needs."""

    delay = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.read = transport, b""

    def data_received(self, data: bytes) -> None:
        self.read += data
        head, end, rest = self.read.partition(b"\r\n\r\n")
        _, named, length = head.lower().partition(b"content-length:")
        if not end or len(rest) < (int(length.split(b"\r\n")[0]) if named else 0):
            return
        self.read = b""
        body = b'{"data": [{"id": "m"}]}' if head.startswith(b"GET") else REPLY
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )
        asyncio.get_running_loop().call_later(self.delay, self.transport.write, answer)  # type: ignore[attr-defined]


def instant_server(port: int, delay: float) -> None:
    async def run() -> None:
        Instant.delay = delay
        server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    asyncio.run(run())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--requests", type=int, default=2000)
    p.add_argument("--concurrency", type=int, nargs="+", default=[8, 64, 256])
    p.add_argument("--delay", type=float, default=0.3, help="seconds until the server answers")
    p.add_argument("--folder", type=Path, default=Path("."), help="where the store is put for a while")
    a = p.parse_args()
    words = "the boundary layer on the upper surface of the wing behind the propeller " * 30
    requests = [
        Request((("system", words[:900]), ("user", f"{i} {words}")), max_tokens=400, temperature=0.7, seed=1)
        for i in range(a.requests)
    ]
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=instant_server, args=(port, a.delay), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port}/v1"
    wait_for(url)
    print(
        f"{len(requests):,} requests, answered after {a.delay} s\nat once  client   requests/s  ms of processor a request"
    )
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for concurrency in a.concurrency:
            store = Path(folder) / f"{concurrency}.sqlite"
            for name, ask in {
                "pool": lambda c=concurrency: asyncio.run(pooled(requests, url, c, 1)),
                "bare": lambda c=concurrency: asyncio.run(pooled(requests, url, c, c)),
                "ours": lambda c=concurrency, s=store: through_llm(requests, url, c, s),
            }.items():
                seconds, busy = timed(ask)
                print(
                    f"{concurrency:7}  {name:6} {len(requests) / seconds:11.0f} {1000 * busy / len(requests):10.2f}",
                    flush=True,
                )
        answer = Answer(TEXT, "stop", 600, 90, 1.0)
        with_store = AnswerStore(Path(folder) / "store.sqlite")
        bodies = [r.body() for r in requests]
        put = timed(lambda: [with_store.put(f"{i:032}", "m", body, answer) for i, body in enumerate(bodies)])
        got = timed(lambda: [with_store.get(f"{i:032}") for i in range(len(bodies))])
        with_store.close()
    for name, (seconds, busy) in {"commit an answer": put, "read an answer": got}.items():
        print(f"{name}: {1000 * seconds / len(bodies):.3f} ms, {1000 * busy / len(bodies):.3f} ms of processor")
    server.terminate()


def wait_for(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(f"{url}/models", trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError("the server did not start")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of this process's processor time."""
    started, busy = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - started, time.process_time() - busy


async def pooled(requests: list[Request], url: str, concurrency: int, clients: int) -> None:
    """`concurrency` workers, which share so many httpx clients."""
    limits = httpx.Limits(max_connections=concurrency // clients, max_keepalive_connections=concurrency // clients)
    secure = httpx.create_ssl_context(trust_env=False)
    shared = [httpx.AsyncClient(limits=limits, timeout=600, trust_env=False, verify=secure) for _ in range(clients)]
    bodies = iter([{"model": "m"} | r.body() for r in requests])

    async def work(client: httpx.AsyncClient) -> None:
        for body in bodies:
            (await client.post(f"{url}/chat/completions", json=body)).json()

    await asyncio.gather(*(work(shared[i % clients]) for i in range(concurrency)))
    for client in shared:
        await client.aclose()


def through_llm(requests: list[Request], url: str, concurrency: int, store: Path) -> None:
    config = LLMConfig(serve="endpoint", url=url, concurrency=concurrency)
    with LLM(config, "m", store, store.with_suffix(".log"), print) as llm:
        _, usage = llm.complete(requests)
    assert (usage.sent, usage.failed) == (len(requests), 0), usage


if __name__ == "__main__":
    main()
