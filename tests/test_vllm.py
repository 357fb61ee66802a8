"""The client against a real vLLM that we start ourselves; see tests/vllm_environment.sh (`make test-vllm`)."""

import json
import os

import pytest

from factory.config import LLMConfig
from factory.serve import ServerDied
from tests.test_llm import SCHEMA, ask, run

pytestmark = pytest.mark.vllm


def vllm(model: str | None = None, **more) -> LLMConfig:
    return LLMConfig.model_validate(
        {
            "serve": "vllm",
            "model": model or os.environ["BGE_FACTORY_VLLM_MODEL"],
            "executable": [os.environ["BGE_FACTORY_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"],
            "arguments": os.environ["BGE_FACTORY_VLLM_ARGUMENTS"].split(),
            "context": 2048,
            "concurrency": 8,
            "start_timeout": 400,
        }
        | more
    )


def test_vllm_follows_a_schema_and_no_answer_is_paid_for_twice(tmp_path):
    requests = [ask(f"Name a colour. Number {i}.", SCHEMA) for i in range(12)]
    answers, usage = run(requests, vllm(), tmp_path)
    assert (usage.sent, usage.from_disk) == (12, 0)
    complete = [a for a in answers if a.finish == "stop"]
    assert len(complete) >= 10
    for answer in complete:
        assert isinstance(json.loads(answer.text)["items"][0], str)
    again, usage = run(requests, vllm(), tmp_path)  # vLLM is not even started: that would take a minute
    assert (usage.sent, usage.from_disk) == (0, 12)
    assert again == answers


def test_a_vllm_that_cannot_start_shows_the_end_of_its_log(tmp_path):
    empty = tmp_path / "model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ServerDied, match=r"(?s)ended with code.*server\.log"):
        run([ask("x")], vllm(str(empty)), tmp_path)
