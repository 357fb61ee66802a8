"""An HTTP server in place of an LLM's that answers, or fails, as a test says: a real one does not fail on command."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler", int, str], None]


class Server(ThreadingHTTPServer):
    """`behave(handler, number of the request from 1, its prompt)` answers; `seen` has the time and prompt of each."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave: Behaviour):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.seen, self.lock = behave, [], threading.Lock()
        self.under_way = self.widest = 0
        self.load: dict[str, int] | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path == "/metrics" and self.server.load is not None:
            lines = [f'vllm:num_requests_{k}{{engine="0"}} {v}.0' for k, v in self.server.load.items()]
            self.say(200, "\n".join(lines).encode())
        else:
            self.say(200 if self.path == "/v1/models" else 404, json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            prompt = body["messages"][-1]["content"]
            self.server.seen.append((time.monotonic(), prompt))
            number = len(self.server.seen)
            self.server.under_way += 1
            self.server.widest = max(self.server.widest, self.server.under_way)
        try:
            self.server.behave(self, number, prompt)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def good(self, prompt: str) -> None:
        choice = {"message": {"content": f"answer to {prompt}"}, "finish_reason": "stop"}
        self.say(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode())

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def reset(self, after: bytes = b"") -> None:
        """Ends the connection in the middle of a body."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(after)
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
