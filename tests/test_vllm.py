"""A real vLLM on the CPU, with the smallest LLM: what only vLLM does. Runs in `make test-vllm`, as do the tests of
tests/test_llm.py once more.

One server serves all tests but those that kill it and that of `run-batch`, which starts its own.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from factory import asking
from factory.answers import Answer
from factory.config import Config
from factory.llm import LLM, Request, Usage
from factory.prompting import MAX_CHARACTERS, requests_for
from factory.records import Pair, Passage, read_records
from factory.serve import serve
from factory.settings import LLMConfig
from tests.test_build import COMMAND, ROOT, build, write_config

pytestmark = pytest.mark.vllm

ENGLISH = "The float valve of a Torricelli {0} pump sticks below {0} degrees, so the tank overflows within an hour. "
CHINESE = "托里{0}型水泵的浮球阀在{0}度以下会卡住，水箱一小时内就会溢出。"


@pytest.fixture(scope="module")
def running(vllm_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM for the whole file. Blocks of 32 tokens, the CPU's smallest; a GPU's have 16."""
    arguments = [*vllm_settings["arguments"], "--block-size", "32"]
    config = LLMConfig.model_validate(vllm_settings | {"arguments": arguments, "context": 2048})
    with serve(config, tmp_path_factory.mktemp("vllm") / "log", print) as (endpoint,):
        yield endpoint.url


def run(folder: Path, url: str, requests: list[Request], **settings: Any) -> tuple[list[Answer], Usage]:
    config = LLMConfig(serve="endpoint", url=url, **settings)
    with LLM(config, "m", folder / "llm.sqlite", folder / "log", print) as llm:
        return llm.complete(requests)


def generation(texts: list[str], **generate: Any) -> list[Request]:
    """What `generate` asks about these passages."""
    passages = [
        Passage(id=f"p{i}", document_id=f"d{i}", source="s", title="Pumps", text=text, start=0, end=len(text),
                tokens=len(text), document_group=f"d{i}", duplicate_group=f"p{i}", split="train")
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return requests_for(
        passages, Config.model_validate({"input": {"path": "."}, "model": {"path": "."}, "generate": generate})
    )


def counter(url: str, name: str) -> float:
    """The sum of one of vLLM's metrics."""
    page = httpx.get(url.removesuffix("/v1") + "/metrics", trust_env=False).text
    found = re.findall(rf"^vllm:{name}(?:\{{.*\}})? (\S+)$", page, re.M)
    assert found, f"vLLM has no metric {name}"
    return sum(map(float, found))


def test_the_answers_have_exactly_the_schema(tmp_path: Path, running: str) -> None:
    """The model alone would ramble: keys, number of items and lengths are the server's doing."""
    texts = [ENGLISH.format(8), ENGLISH.format(9), CHINESE.format(8)]
    answers, usage = run(tmp_path, running, generation(texts, questions_per_passage=2, max_tokens=1500))
    assert (usage.sent, usage.failed) == (3, 0)
    for i, answer in enumerate(answers):
        assert answer.finish == "stop", answer
        known = json.loads(answer.text)
        assert list(known) == ["items"] and len(known["items"]) == 2
        for item in known["items"]:
            assert sorted(item) == ["answer", "question"]
            assert all(0 < len(item[k]) <= MAX_CHARACTERS["en" if i < 2 else "zh"][k] for k in item)


def test_a_judges_probabilities_come(tmp_path: Path, running: str) -> None:
    request = Request((("user", "Is water wet? Yes or no."),), max_tokens=1, temperature=0, seed=1, top_logprobs=5)
    (answer,), _ = run(tmp_path, running, [request])
    tokens, logprobs = zip(*answer.first, strict=True)
    assert len(set(tokens)) >= 5 and all(p <= 0 for p in logprobs) and answer.text == tokens[0]


def test_what_prompts_share_is_computed_once(tmp_path: Path, running: str) -> None:
    """In two languages in turn, as passages may come: each language's instructions hit the cache from the second on."""
    asker = "an engineer who keeps old water works running and has seen every kind of failure " * 4
    texts = [(ENGLISH if i % 2 else CHINESE).format(100 + i) for i in range(24)]
    requests = generation(texts, asker=asker, max_tokens=16)
    before = [counter(running, f"prefix_cache_{kind}_total") for kind in ("queries", "hits")]
    answers, _ = run(tmp_path, running, requests)
    asked, hits = (
        counter(running, f"prefix_cache_{kind}_total") - known
        for kind, known in zip(("queries", "hits"), before, strict=True)
    )
    assert asked == sum(a.prompt_tokens for a in answers)
    own = sum(len(r.messages[-1][1]) for r in requests) / sum(len(c) for r in requests for _, c in r.messages)
    assert hits / asked > 0.6 * (1 - own), (
        f"{hits:.0f} of {asked:.0f} tokens; {own:.0%} of the text is each prompt's own"
    )


def test_auto_finds_the_load_that_vllm_takes(tmp_path: Path, running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 24 at once (--max-num-seqs): the window grows to that, and the rest waits here."""
    monkeypatch.setattr(asking, "LOOK", 0.2)
    requests = [
        Request((("user", f"Tell a long story about pump {i}."),), max_tokens=30, temperature=0.9, seed=i)
        for i in range(80)
    ]
    seen: list[tuple[float, float]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            with suppress(httpx.HTTPError):
                seen.append((counter(running, "num_requests_running"), counter(running, "num_requests_waiting")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answers, usage = run(tmp_path, running, requests, concurrency="auto")
    finally:
        ended.set()
        watcher.join()
    assert usage.failed == 0 and all(a.text for a in answers)
    assert max(r for r, _ in seen) == 24 > asking.START
    assert max(r + w for r, w in seen) <= 24 * 2


def test_a_prompt_that_is_too_long_is_refused_in_vllms_words_and_the_others_go_on(tmp_path: Path, running: str) -> None:
    requests = [
        Request((("user", "weld " * count),), max_tokens=20, temperature=0, seed=1) for count in (3000, 10, 20, 30)
    ]
    answers, usage = run(tmp_path, running, requests)
    assert "HTTP 400" in answers[0].failure and "2048" in answers[0].failure and usage.failed == 1


@pytest.mark.parametrize("part", ["server", "engine"])
def test_when_vllm_is_killed_every_request_is_answered_and_none_paid_twice(
    tmp_path: Path, vllm_settings: dict[str, Any], part: str
) -> None:
    """The server itself, or the engine, its child, which is where CUDA errors end. Nothing stays behind."""
    requests = [
        Request((("user", f"Tell a story about pump {i}."),), max_tokens=30, temperature=0.9, seed=i) for i in range(16)
    ]
    said: list[str] = []
    processes: list[psutil.Process] = []
    ended = threading.Event()
    others = psutil.Process().children()  # the server that the other tests share

    def stored() -> int:
        with suppress(sqlite3.Error), closing(sqlite3.connect(tmp_path / "llm.sqlite")) as db:
            return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])
        return 0

    def family() -> list[psutil.Process]:
        (supervisor,) = [p for p in psutil.Process().children() if p not in others]
        (server,) = supervisor.children()
        return [server, *server.children(recursive=True), supervisor]

    def killer() -> None:
        while stored() < 4:
            if ended.wait(0.02):
                return
        processes.extend(family())
        engine = next(p for p in processes if "EngineCor" in p.name())
        (engine if part == "engine" else processes[0]).kill()

    config = LLMConfig.model_validate(vllm_settings | {"context": 512, "concurrency": 4})
    with LLM(config, "m", tmp_path / "llm.sqlite", tmp_path / "log", said.append) as llm:
        thread = threading.Thread(target=killer)
        thread.start()
        try:
            answers, usage = llm.complete(requests)
        finally:
            ended.set()
            thread.join()
        (port,) = re.findall(r"on port (\d+)", [s for s in said if "starting vllm" in s][-1])
        paid = counter(f"http://127.0.0.1:{port}", "request_success_total")
        processes.extend(family())
    assert usage.sent == 16 and usage.failed == 0 and all(a.text for a in answers)
    (came,) = re.findall(r"starting it again; (\d+) answers came", "\n".join(said))
    assert 4 <= int(came) < 16 and paid == 16 - int(came) and stored() == 16
    assert len({p.pid for p in processes}) >= 6
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_requests_go_to_run_batch_as_a_file_and_its_answers_come_back(
    tmp_path: Path, vllm_settings: dict[str, Any], smollm_gguf: Path, minilm_en: Path
) -> None:
    config, out, file, answers = (tmp_path / n for n in ("factory.yaml", "run", "requests.jsonl", "answers.jsonl"))
    write_config(tmp_path, smollm_gguf, minilm_en)
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["llm"] = {"serve": "batch", "model": vllm_settings["model"], "context": 1024}
    settings["generate"] |= {"max_tokens": 400}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=600)

    asked = command("requests", config, "--out", out, "--file", file)
    assert asked.returncode == 0, asked.stderr
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    # one more line, which vLLM refuses: what it writes then must be read as well
    long = lines[0] | {"body": lines[0]["body"] | {"messages": [{"role": "user", "content": "weld " * 3000}]}}
    with file.open("a", encoding="utf-8") as more:
        more.write(json.dumps(long) + "\n")
    python, arguments = vllm_settings["executable"][0], vllm_settings["arguments"]
    words = ["-i", file, "-o", answers, "--model", vllm_settings["model"], "--max-model-len", "1024", *arguments]
    batch = subprocess.run(
        [python, "-m", "vllm.entrypoints.openai.run_batch", *words],
        capture_output=True, text=True, cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert batch.returncode == 0, batch.stderr[-3000:]
    read = command("answers", answers, "--out", out)
    assert read.returncode == 2 and f"{len(lines)} answers stored, 1 lines without one" in read.stderr, (
        read.stderr + batch.stdout[-6000:] + batch.stderr[-6000:]
    )
    assert f"{answers}:{len(lines) + 1}: no answer: " in read.stderr and "1024" in read.stderr
    done = build(config, out)
    assert done.returncode == 0, done.stderr
    stage = json.loads((out / "run.json").read_text("utf-8"))["stages"]["generate"]["counts"]
    assert (stage["answers from disk"], stage["answers sent for"]) == (len(lines), 0)
    known = " ".join(json.loads(line)["response"]["body"]["choices"][0]["message"]["content"]
                     for line in answers.read_text("utf-8").splitlines()[: len(lines)])  # fmt: skip
    pairs = read_records(out / "3-pairs.jsonl", Pair)
    assert pairs and all(p.query in known for p in pairs if '"' not in p.query and "\\" not in p.query)
