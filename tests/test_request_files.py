"""Requests as a file, and answers from one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.answers import AnswerStore
from factory.llm import LLM, Request
from factory.records import InputError
from factory.request_files import AnswersMissing, read_answers, write_requests
from factory.settings import LLMConfig


def ask(store: Path, *prompts: str) -> list[str]:
    requests = [Request((("user", p),), max_tokens=9, temperature=0, seed=1, top_logprobs=2) for p in prompts]
    with LLM(LLMConfig(serve="batch", model="m"), "batch m", store, store.with_suffix(".log"), print) as llm:
        return [a.text for a in llm.complete(requests)[0]]


def row(key: str, **body: object) -> dict[str, object]:
    return {"custom_id": key, "response": {"status_code": 200, "body": body}}


@pytest.fixture
def missing(tmp_path: Path) -> AnswersMissing:
    with pytest.raises(AnswersMissing, match="2 answers of the LLM are missing") as found:
        ask(tmp_path / "llm.sqlite", "一", "two")
    write_requests(found.value, "m", tmp_path / "requests.jsonl")
    return found.value


def test_a_judges_probabilities_come_back_too(tmp_path: Path, missing: AnswersMissing) -> None:
    lines = [json.loads(x) for x in (tmp_path / "requests.jsonl").read_text("utf-8").splitlines()]
    assert [x["body"]["messages"][0]["content"] for x in lines] == ["一", "two"]
    tokens = [{"top_logprobs": [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -2.0}]}]
    choice = {
        "message": {"content": "<think>so</think>yes"},
        "finish_reason": "length",
        "logprobs": {"content": tokens},
    }
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row(k, choices=[choice])) + "\n" for k in missing.bodies))
    assert read_answers([tmp_path / "a.jsonl"], tmp_path / "llm.sqlite") == (2, [])
    assert ask(tmp_path / "llm.sqlite", "two", "一") == ["yes", "yes"]
    store = AnswerStore(tmp_path / "llm.sqlite")
    answer = store.get(next(iter(missing.bodies)))
    store.close()
    assert answer and answer.first == (("yes", -0.1), ("no", -2.0))


def test_a_line_without_an_answer_is_named_and_the_others_are_kept(tmp_path: Path, missing: AnswersMissing) -> None:
    first, second = missing.bodies
    good = row(second, choices=[{"message": {"content": "fine"}}])
    bad = [row("of another run", choices=[]), row(first, choices=[]), {"custom_id": first, "error": {"message": "no"}}]
    bad.append({"custom_id": first, "response": "gone"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*bad, good]))
    stored, problems = read_answers([tmp_path / "a.jsonl"], tmp_path / "llm.sqlite")
    assert stored == 1 and [p.split(": ")[0] for p in problems] == [f"{tmp_path}/a.jsonl:{i}" for i in (1, 2, 3, 4)]
    assert (
        "none of this run's requests" in problems[0] and "no chat completion" in problems[1] and '"no"' in problems[2]
    )
    with pytest.raises(AnswersMissing, match="1 answers"):
        ask(tmp_path / "llm.sqlite", "一", "two")


def test_a_broken_line_is_an_error_and_what_came_before_is_kept(tmp_path: Path, missing: AnswersMissing) -> None:
    good = json.dumps(row(next(iter(missing.bodies)), choices=[{"message": {"content": "fine"}}]))
    (tmp_path / "a.jsonl").write_text(good + '\n{"custom_id": \n')
    with pytest.raises(InputError, match=r"a\.jsonl:2"):
        read_answers([tmp_path / "a.jsonl"], tmp_path / "llm.sqlite")
    with pytest.raises(AnswersMissing, match="1 answers"):
        ask(tmp_path / "llm.sqlite", "一", "two")


def test_a_batch_needs_the_models_name() -> None:
    with pytest.raises(ValueError, match="serve: batch needs model"):
        LLMConfig(serve="batch")
