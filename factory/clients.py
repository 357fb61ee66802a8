"""HTTP clients of one connection each, for many requests at once to one server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from factory.serve import Endpoint

ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1)


class Clients:
    """As many clients as requests are under way at most; each keeps its connection open.

    One client for all would walk through all its connections at the beginning and end of each request, so that 256 at
    once cost eight times as much processor time as these (benchmarks/client.py).
    """

    def __init__(self, endpoint: Endpoint, timeout: float):
        self._settings: dict[str, Any] = {
            "base_url": endpoint.url,
            "headers": endpoint.headers(),
            "timeout": httpx.Timeout(timeout, connect=30),
            "limits": ONE,
            "trust_env": False,
            "verify": httpx.create_ssl_context(trust_env=False),  # reading the certificates anew takes 20 ms
        }
        self._all: list[httpx.AsyncClient] = []
        self._free: list[httpx.AsyncClient] = []

    @contextmanager
    def one(self) -> Iterator[httpx.AsyncClient]:
        """A client that nobody else uses meanwhile."""
        if not self._free:
            self._free.append(httpx.AsyncClient(**self._settings))
            self._all.append(self._free[-1])
        client = self._free.pop()  # the one used last: its connection is likeliest to be open still
        try:
            yield client
        finally:
            self._free.append(client)

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *error: Any) -> None:
        for client in self._all:
            await client.aclose()
