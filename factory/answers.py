"""LLM answers on disk: SQLite, keyed by a hash of the whole request and the model. One answer is one commit."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factory.records import InputError


@dataclass(frozen=True)
class Answer:
    text: str  # without <think> parts
    finish: str  # "stop", "length", … as the server says
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    # if asked for: (token, log-probability) of each alternative for the first token
    first: tuple[tuple[str, float], ...] = ()
    failure: str = ""  # why there is no answer; such a one is never stored
    refused: bool = False  # the failure is the server's word about this one request, and asking again is no use


class AnswerStore:
    """Answers in SQLite, keyed by a hash of the whole request and the model. One row is one commit."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; FULL waits for the disk with each answer
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT, request TEXT, text TEXT, finish TEXT,"
                " prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL, created REAL, first TEXT)"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS asked (key TEXT PRIMARY KEY, model TEXT, request TEXT)")
            self._db.execute("CREATE TABLE IF NOT EXISTS refused (key TEXT PRIMARY KEY, said TEXT)")
            self._db.execute("CREATE TABLE IF NOT EXISTS served (model TEXT PRIMARY KEY, name TEXT)")
            if "first" not in [row[1] for row in self._db.execute("PRAGMA table_info(answers)")]:
                self._db.execute("ALTER TABLE answers ADD COLUMN first TEXT")  # a store of version 0.1
        except sqlite3.DatabaseError as e:
            raise InputError(
                f"not a usable SQLite file: {e}", where=path, fix="move it away; its answers will be asked for again"
            ) from e

    def get(self, key: str) -> Answer | None:
        row = self._db.execute(
            "SELECT text, finish, prompt_tokens, completion_tokens, seconds, first FROM answers WHERE key = ?", (key,)
        ).fetchone()
        if not row:
            return None
        alternatives = tuple((token, p) for token, p in json.loads(row[5] or "[]"))
        return replace(Answer(*row[:5]), first=alternatives)

    def put(self, key: str, model: str, body: dict[str, Any], answer: Answer) -> None:
        try:
            with self._db:
                self._db.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                        json.dumps(answer.first, ensure_ascii=False) if answer.first else None,
                    ),
                )
        except sqlite3.OperationalError as e:
            raise InputError(
                f"an answer could not be stored: {e}", fix="free some disk space and run again: stored answers are kept"
            ) from e

    def remember(self, bodies: dict[str, dict[str, Any]], model: str) -> None:
        """Requests that leave in a file, so that their answers are known when they come."""
        rows = [(key, model, json.dumps(body, ensure_ascii=False)) for key, body in bodies.items()]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO asked VALUES (?, ?, ?)", rows)

    def asked(self, key: str) -> tuple[str, dict[str, Any]] | None:
        """The model and the request that `remember` was given under a key."""
        row = self._db.execute("SELECT model, request FROM asked WHERE key = ?", (key,)).fetchone()
        return (row[0], json.loads(row[1])) if row else None

    def refuse(self, key: str, said: str) -> None:
        """A refusal that came in a file; it stands until an answer comes."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (key, said))

    def refusal(self, key: str) -> str:
        """What `refuse` was given under a key; else nothing."""
        row = self._db.execute("SELECT said FROM refused WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def served(self, model: str, name: str) -> str:
        """The name under which a server first served `model` to this store; `name` from now on if there was none."""
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO served VALUES (?, ?)", (model, name))
        return str(self._db.execute("SELECT name FROM served WHERE model = ?", (model,)).fetchone()[0])

    def close(self) -> None:
        self._db.close()
