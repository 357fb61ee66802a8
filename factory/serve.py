"""Where the LLM endpoint comes from: a URL that runs, `vllm serve`, or a GGUF file through xllamacpp."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from factory.offline import SILENT
from factory.records import InputError, loads
from factory.settings import LLMConfig

_ERROR = re.compile(r"\b\w*(?:Error|Exception): .+")


class ServerDied(RuntimeError):
    """The server we started ended or never became healthy; the message holds the errors and last lines of its log."""


@dataclass(frozen=True)
class Endpoint:
    url: str  # ends in /v1
    model: str  # the name to send in requests
    api_key: str = ""
    gone: Callable[[], str] = str  # of a server of ours: how it ended; empty while it runs

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def __repr__(self) -> str:  # the key never reaches a log
        return f"Endpoint({self.url}, {self.model})"


def check_there(config: LLMConfig) -> None:
    """See that what `serve` needs on this machine is there.

    Raises:
        InputError: the model, the executable or the key is not.
    """
    if config.serve == "endpoint":
        _key(config)
    if config.serve in ("llamacpp", "vllm") and not (config.model and Path(config.model).exists()):
        fix = "a GGUF file for llamacpp, a model folder for vllm"
        raise InputError(f"no such model {config.model!r}", where="llm.model", fix=fix)
    if config.serve == "vllm" and not shutil.which(config.executable[0]):
        what = f"cannot start {config.executable[0]!r}: no such program"
        raise InputError(what, where="llm.executable", fix="give its full path")


@contextmanager
def serve(config: LLMConfig, log: Path, say: Callable[[str], None]) -> Iterator[list[Endpoint]]:
    """Healthy endpoints, of our own servers one; a server that we started is stopped at the end, also after an error or Ctrl-C.

    Raises:
        InputError: the model, the executable or the URL is not there.
        ServerDied: the server did not come up within `start_timeout` seconds.
    """
    if config.serve == "endpoint":
        yield [_running(url, config) for url in ([config.url] if isinstance(config.url, str) else config.url)]
        return
    check_there(config)
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bge-factory-") as scratch, open(log, "wb") as output:
        command, environment = (_vllm if config.serve == "vllm" else _llamacpp)(config, port)
        say(f"starting {config.serve} with {Path(config.model).name} on port {port} (log: {log})")
        process = subprocess.Popen(
            [sys.executable, "-IS", str(Path(__file__).with_name("supervise.py")), *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            cwd=scratch,
            env=os.environ | SILENT | environment,
            start_new_session=True,
        )
        try:
            wait_until_healthy(process, port, config.start_timeout, log)
            yield [Endpoint(f"http://127.0.0.1:{port}/v1", "local", gone=lambda: _ending(process, log))]
        finally:
            stop(process)


def _key(config: LLMConfig) -> str:
    """The API key, or "". InputError, which does not show it, if it is not set or cannot stand in a header."""
    name = config.api_key_env
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key:
        raise InputError(f"environment variable {name} is not set", where="llm.api_key_env", fix="export it")
    if not (key.isascii() and key.isprintable()):
        what = f"the key in environment variable {name} holds characters that no HTTP header can carry"
        raise InputError(what, where="llm.api_key_env", fix="export it anew: one line, ASCII only")
    return key


def _running(address: str, config: LLMConfig) -> Endpoint:
    key = _key(config)
    url = address.rstrip("/")
    url = url if url.endswith("/v1") else url + "/v1"
    endpoint = Endpoint(url, config.model, key)
    try:
        answer = httpx.get(f"{url}/models", headers=endpoint.headers(), timeout=30, trust_env=False)
        answer.raise_for_status()
        names = [str(m["id"]) for m in loads(answer.text)["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"no OpenAI-compatible server answers at {url}/models: {e}",
            where="llm.url",
            fix="start it, or correct llm.url",
        ) from e
    if not names:
        raise InputError(f"the server at {url} serves no model", where="llm.url", fix="start it with one")
    if config.model and config.model not in names:
        raise InputError(f"the server has no model {config.model!r}; it serves {', '.join(names)}", where="llm.model")
    return Endpoint(url, config.model or names[0], key)


def _vllm(config: LLMConfig, port: int) -> tuple[list[str], dict[str, str]]:
    # `vllm serve MODEL` takes the model by position; `python -m vllm.entrypoints.openai.api_server` by --model
    model = ["--model", config.model] if "-m" in config.executable else [config.model]
    options = [
        "--served-model-name",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--max-model-len",
        str(config.context),
    ]
    program = os.path.abspath(shutil.which(config.executable[0]) or config.executable[0])  # it starts in another folder
    return [program, *config.executable[1:], *model, *options, *config.arguments], dict(config.environment)


def _llamacpp(config: LLMConfig, port: int) -> tuple[list[str], dict[str, str]]:
    slots = 8 if config.concurrency == "auto" else config.concurrency
    arguments = [config.model, str(port), str(slots), str(config.context)]
    return [sys.executable, "-m", "factory.llamacpp", *arguments], {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_WAIT_POLICY": "passive",
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if said := _ending(process, log):
            raise ServerDied(said)
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise ServerDied(f"the LLM server was not healthy after {timeout:.0f} s (llm.start_timeout); {_tail(log)}")


def _ending(process: subprocess.Popen[bytes], log: Path) -> str:
    """How it ended, with the last lines of its log; empty while it runs."""
    return "" if process.poll() is None else f"the LLM server ended with code {process.returncode}; {_tail(log)}"


def _tail(log: Path) -> str:
    """Its end, after the first errors that it names before: vLLM ends with "see root cause above"."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = list(dict.fromkeys(match.group() for line in lines[:-15] if (match := _ERROR.search(line))))[:3]
    errors = f"errors in {log}:\n  " + "\n  ".join(named) + "\n" if named else ""
    return errors + f"the end of {log}:\n  " + "\n  ".join(lines[-15:])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and all it started: politely, after 10 seconds by force."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        try:
            process.wait(patience)
            break
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what the server left behind
