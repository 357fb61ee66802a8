"""The review page's server: this machine only, behind a random token; every decision is on the disk before it answers."""

from __future__ import annotations

import csv
import io
import ipaddress
import json
import os
import secrets
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from factory.records import InputError
from factory.review import Decision, ReviewLog, now
from factory.review_items import Item, Items
from factory.shared_words import pieces

PAGE = Path(__file__).parent / "templates" / "review.html"
LONGEST = 1 << 20  # bytes of a request
PATIENCE = 60  # seconds that a silent connection is kept


class Refused(Exception):
    """A request that gets no more than a status and a sentence."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Session:
    """One run under review: what the page asks for and does. Safe for several threads."""

    def __init__(self, items: Items, log: ReviewLog, reviewer: str, name: str):
        self.items, self.log, self.reviewer, self.name = items, log, reviewer, name

    def state(self) -> dict[str, Any]:
        """All questions in their order: [id, split, decision or ""]."""
        rows = [(i, self.items.pairs[i].split, self._decided(i)) for i in self.items.order]
        return {"run": self.name, "reviewer": self.reviewer, "rows": rows}

    def item(self, pair: str) -> dict[str, Any]:
        """A question with its texts; each text, and the question, as pieces of which the shared ones are marked."""
        decision = self._decision(pair)
        shown = self._item(pair)
        query = shown.pair.query
        told = shown.to_json() | {"pieces": pieces(query, shown.pair.target_text)}
        for text in (*told["positives"], *told["candidates"]):
            text["pieces"] = pieces(text.pop("text"), query)
        return told | {"decision": decision and decision.model_dump(mode="json", exclude={"texts"})}

    def decide(self, pair: str, verdict: Any, negatives: list[str]) -> dict[str, Any]:
        texts = self._item(pair).texts
        if verdict not in ("good", "not-answerable", "positive", "drop", "skip"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"no such decision: {verdict!r}")
        if not set(negatives) <= set(texts) - {pair} or (verdict == "positive") != bool(negatives):
            raise Refused(HTTPStatus.BAD_REQUEST, "negatives: those that answer the question, and only with positive")
        self.log.add(
            Decision(
                time=now(), id=pair, decision=verdict, negatives=tuple(negatives), reviewer=self.reviewer,
                texts={key: texts[key] for key in (pair, *negatives)},
            )
        )  # fmt: skip
        return {"id": pair, "decision": self._decided(pair)}

    def undo(self) -> dict[str, Any]:
        last = self.log.undo(self.reviewer, lambda d: self.items.holding(d) is not None)
        return {"id": last and last.id, "decision": last and self._decided(last.id)}

    def table(self) -> bytes:
        """The decisions that count, as CSV; with a BOM, without which Excel garbles Chinese."""
        file = io.StringIO()
        out = csv.writer(file)
        out.writerow(("id", "question", "decision", "also answered by", "reviewer", "time"))
        for pair, d in self.log.history.effective().items():
            query = self.items.pairs[pair].query if pair in self.items.pairs else ""
            row = (pair, query, d.decision, " ".join(d.negatives), d.reviewer, d.time)
            out.writerow(
                "'" + cell if cell[:1] in "=+-@\t" and cell else cell for cell in row
            )  # Excel would compute it
        return file.getvalue().encode("utf-8-sig")

    def _decided(self, pair: str) -> str:
        decision = self._decision(pair)
        return decision.decision if decision else ""

    def _decision(self, pair: str) -> Decision | None:
        return self.items.holding(self.log.history.of(pair))

    def _item(self, pair: str) -> Item:
        if pair not in self.items.pairs:
            raise Refused(HTTPStatus.NOT_FOUND, f"no such question: {pair}")
        return self.items.item(pair, self._decision(pair))


class Server(ThreadingHTTPServer):
    """Serves one session under http://HOST:PORT/TOKEN/; whatever does not know the token gets 403."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, session: Session, host: str = "127.0.0.1", port: int = 0):
        address = loopback(host)
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.address_family = _family(address)
        try:
            super().__init__((address, port), Handler)
        except OSError as e:
            raise InputError(f"cannot listen: {e.strerror}", where=f"--port {port}", fix="leave --port out") from e
        name = f"[{address}]" if ":" in address else address
        self.url = f"http://{name}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def loopback(host: str) -> str:
    """The address of this very machine that `host` names.

    Raises:
        InputError: it is reachable from elsewhere.
    """
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    if not is_loopback(address):
        fix = "from another machine, tunnel: ssh -L 8000:127.0.0.1:8000 THIS-MACHINE, with --port 8000 here"
        raise InputError(f"{host!r} is not this machine alone (127.0.0.1, ::1, localhost)", where="--host", fix=fix)
    return address


def is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _family(address: str) -> Any:
    import socket

    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        self._sent = b""  # read whatever becomes of it: what is left unread would be taken for the next request
        if length.isdecimal() and int(length) <= LONGEST:
            self._sent = self.rfile.read(int(length))
        else:
            self.close_connection = True
        self._answer(self._post)

    def _get(self, path: str, query: dict[str, list[str]]) -> None:
        session = self.server.session
        if path == "":
            nonce = secrets.token_urlsafe(12)
            page = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
            self._send(page.encode(), "text/html; charset=utf-8", nonce=nonce)
        elif path == "state":
            self._send_json(session.state())
        elif path == "item":
            self._send_json(session.item(query.get("id", [""])[0]))
        elif path == "decisions.csv":
            self._send(session.table(), "text/csv; charset=utf-8")
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self, path: str, query: dict[str, list[str]]) -> None:
        given = self._body()
        if path == "decide":
            negatives = given.get("negatives", [])
            if not isinstance(negatives, list) or not all(isinstance(n, str) for n in negatives):
                raise Refused(HTTPStatus.BAD_REQUEST, "negatives: expected a list of ids")
            self._send_json(self.server.session.decide(str(given.get("id")), given.get("decision"), negatives))
        elif path == "undo":
            self._send_json(self.server.session.undo())
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _answer(self, work: Callable[[str, dict[str, list[str]]], None]) -> None:
        try:
            path, query = self._asked()
            work(self._admitted(path), parse_qs(query))
        except Refused as e:
            self._send(e.message.encode(), "text/plain; charset=utf-8", status=e.status)
        except InputError as e:  # the disk is full
            self._send(str(e).encode(), "text/plain; charset=utf-8", status=HTTPStatus.INSUFFICIENT_STORAGE)

    def _asked(self) -> tuple[str, str]:
        try:
            parts = urlsplit(self.path)
        except ValueError as e:
            raise Refused(HTTPStatus.BAD_REQUEST, "not an address") from e
        return parts.path, parts.query

    def _admitted(self, path: str) -> str:
        """What follows the token. A foreign name in Host is a page elsewhere whose name was turned to this machine."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        name = host.rpartition(":")[0] if host[-1:] != "]" and ":" in host else host
        if not is_loopback(name.strip("[]").lower()) or (origin and origin != f"http://{host}"):
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for this machine only")
        token, _, rest = path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "open the address that `bge-factory review` printed when it started")
        return rest

    def _body(self) -> dict[str, Any]:
        try:
            given = json.loads(self._sent)
        except ValueError:
            given = None
        if not isinstance(given, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "expected a JSON object")
        return given

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value, ensure_ascii=False).encode(), "application/json")

    def _send(self, body: bytes, kind: str, nonce: str = "", status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        own = (
            f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
            if nonce
            else ""
        )
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": f"default-src 'none'; {own}base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if kind.startswith("text/csv"):
            headers["Content-Disposition"] = "attachment; filename=review.csv"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests hold the token."""

    def version_string(self) -> str:
        return "bge-factory"


def review(
    run: Path, reviewer: str, say: Callable[[str], None], host: str = "127.0.0.1", port: int = 0, browser: bool = True
) -> None:
    """Serve the page of a run until Ctrl-C.

    Raises:
        InputError: no questions in the folder; it is being reviewed already; `host` is not this machine alone.
    """
    loopback(host)
    items = Items(run)
    with ReviewLog(run, say) as log:
        session = Session(items, log, reviewer, run.resolve().name)
        with Server(session, host, port) as server:
            say(
                f"open this page: {server.url}\n(only this machine can; Ctrl-C ends it, every decision is saved at once)"
            )
            if browser and _has_browser():
                webbrowser.open(server.url)
            with suppress(KeyboardInterrupt):
                server.serve_forever(poll_interval=0.2)
        decided = len(log.history.effective())
        say(f"\n{decided:,} decisions in {log.path}; the next `bge-factory build` applies them")


def _has_browser() -> bool:
    """A browser with a window; one in the terminal would take this command's place."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
