"""Requests as a file for `vllm run-batch`, and its answers back: for an LLM on a machine that this one cannot reach.

The format is OpenAI's batch file. A request's custom_id is its key in the answer store, so answers may come in any
order, in several files, and twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from factory.answers import AnswerStore
from factory.asking import REFUSED, answer_of
from factory.records import InputError, read_lines
from factory.workspace import atomic_text


class AnswersMissing(InputError):
    """`llm.serve: batch`, and answers are not on disk. `bodies`: the requests by key; `store`: where answers belong."""

    def __init__(self, bodies: dict[str, dict[str, Any]], store: Path, model_id: str):
        self.bodies, self.store, self.model_id = bodies, store, model_id
        super().__init__(
            f"{len(bodies):,} answers of the LLM are missing",
            where="llm.serve: batch",
            fix="bge-factory requests CONFIG --out RUN --file requests.jsonl, then `vllm run-batch` where the LLM is, "
            "then bge-factory answers",
        )


def write_requests(missing: AnswersMissing, model: str, file: Path) -> None:
    """One line for each missing answer, in the order in which they are best asked; remembered in the store."""
    store = AnswerStore(missing.store)
    try:
        store.remember(missing.bodies, missing.model_id)
    finally:
        store.close()
    with atomic_text(file) as out:
        for key, body in missing.bodies.items():
            line = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": {"model": model} | body}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_answers(files: list[Path], store_path: Path) -> tuple[int, list[str]]:
    """Stores the answers of batch output files, and which requests were refused: the run goes on without those.

    Returns:
        How many were stored, and a line with file:line for each that has none.

    Raises:
        InputError: a line is no JSON object; names file:line. What came before is stored.
    """
    store, stored, problems = AnswerStore(store_path), 0, []
    try:
        for path in files:
            for number, row in read_lines(path):
                where = f"{path}:{number}"
                asked = store.asked(str(row.get("custom_id")))
                response = row["response"] if isinstance(row.get("response"), dict) else {}
                if asked is None:
                    problems.append(f"{where}: custom_id {row.get('custom_id')!r} is none of this run's requests")
                elif row.get("error") or response.get("status_code") != 200:
                    status = response.get("status_code")
                    said = row.get("error") or response.get("body") or f"HTTP {status}"
                    what = json.dumps(said, ensure_ascii=False)[:300]
                    problems.append(f"{where}: no answer: {what}")
                    if status in REFUSED:
                        store.refuse(str(row["custom_id"]), f"refused: HTTP {status}: {what}")
                else:
                    model_id, body = asked
                    try:
                        answer = answer_of(response.get("body"), body, 0.0)
                    except ValueError as e:
                        problems.append(f"{where}: {e}")
                        continue
                    store.put(str(row["custom_id"]), model_id, body, answer)
                    stored += 1
    finally:
        store.close()
    return stored, problems
