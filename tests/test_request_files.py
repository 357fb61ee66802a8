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


def requests(*prompts: str) -> list[Request]:
    return [Request((("user", p),), max_tokens=9, temperature=0, seed=1, top_logprobs=2) for p in prompts]


def ask(store: Path, *prompts: str) -> list[str]:
    with LLM(LLMConfig(serve="batch", model="m"), "batch m", store, store.with_suffix(".log"), print) as llm:
        return [a.text for a in llm.complete(requests(*prompts))[0]]


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


def refused(key: str) -> dict[str, object]:
    """As `vllm run-batch` writes it."""
    return {"custom_id": key, "response": {"status_code": 400, "body": None}, "error": {"message": "too long"}}


def bring(folder: Path, *rows: dict[str, object]) -> list[str]:
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return read_answers([folder / "a.jsonl"], folder / "llm.sqlite")[1]


def test_a_refused_request_is_named_and_the_run_goes_on_without_it(
    tmp_path: Path, missing: AnswersMissing, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = missing.bodies
    good = row(second, choices=[{"message": {"content": "fine"}}])
    assert "too long" in bring(tmp_path, refused(first), good)[0]
    store = tmp_path / "llm.sqlite"
    with LLM(LLMConfig(serve="batch", model="m"), "batch m", store, store.with_suffix(".log"), print) as llm:
        answers, usage = llm.complete(requests("一", "two"))
    assert [a.text for a in answers] == ["", "fine"] and (usage.from_disk, usage.failed) == (1, 1)
    assert "refused: HTTP 400" in answers[0].failure and "too long" in answers[0].failure
    assert "1 of 1 requests got no answer; one reason: refused: HTTP 400" in capsys.readouterr().out
    bring(tmp_path, row(first, choices=[{"message": {"content": "late"}}]))
    assert ask(store, "一", "two") == ["late", "fine"]


def test_a_server_that_refused_all_is_to_be_asked_again(tmp_path: Path) -> None:
    prompts = [str(i) for i in range(6)]
    with pytest.raises(AnswersMissing) as found:
        ask(tmp_path / "llm.sqlite", *prompts)
    write_requests(found.value, "m", tmp_path / "requests.jsonl")
    bring(tmp_path, *(refused(key) for key in found.value.bodies))
    with pytest.raises(AnswersMissing, match="6 answers of the LLM are missing"):
        ask(tmp_path / "llm.sqlite", *prompts)


def test_a_batch_needs_the_models_name() -> None:
    with pytest.raises(ValueError, match="serve: batch needs model"):
        LLMConfig(serve="batch")
