"""What tests share: real small models, fetched once, and collections that may lie beside the repository."""

from __future__ import annotations

import os
import signal

# A script's background jobs ignore it; what tests start must take Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports transformers: no test may open a socket to a hub

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factory import demo_models
from factory.records import InputError
from factory.settings import LLMConfig
from tests.llm_server import Behaviour, Server
from tests.tiny_models import make_tiny_bert, make_tiny_m3, make_tiny_reranker


def _model(name: str) -> Path:
    try:
        return demo_models.ensure([name])[name]
    except InputError as e:  # `make test` fetches them first, and fails if it cannot; a plain `pytest` goes on
        pytest.skip(f"model {name} is not here and cannot be fetched: {e.what}")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Where the demo models lie."""
    return demo_models.models_dir()


@pytest.fixture(scope="session")
def e5_small() -> Path:
    """multilingual-e5-small, a sentence-transformers folder: Chinese and English."""
    return _model("e5-small")


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file: it answers, but nonsense."""
    return _model("smollm2-135m")


@pytest.fixture(scope="session")
def minilm_en() -> Path:
    """all-MiniLM-L6-v2, a sentence-transformers folder: English."""
    return _model("minilm-en")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Collections with human queries (BEIR layout) in `shared/data` beside the repository, where there are some."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def vllm_settings() -> dict[str, Any]:
    """How vLLM is started here; set by tests/vllm_environment.sh."""
    return {
        "serve": "vllm",
        "model": os.environ["BGE_FACTORY_VLLM_MODEL"],
        "executable": [os.environ["BGE_FACTORY_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"],
        "arguments": os.environ["BGE_FACTORY_VLLM_ARGUMENTS"].split(),
    }


@pytest.fixture(params=["llamacpp", pytest.param("vllm", marks=pytest.mark.vllm)])
def server(request):
    """Configurations of a server that we start, with whatever keys a test changes."""
    if request.param == "llamacpp":
        known = {"serve": "llamacpp", "model": str(request.getfixturevalue("smollm_gguf"))}
    else:
        known = request.getfixturevalue("vllm_settings")
    known = known | {"context": 512, "concurrency": 2}
    return lambda **more: LLMConfig.model_validate(known | more)


@pytest.fixture
def start() -> Iterator[Callable[[Behaviour], Server]]:
    """Starts a server that answers as its argument says (tests/llm_server.py)."""
    servers: list[Server] = []

    def begin(behave: Behaviour) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT (bert), a tiny bge-m3 (m3) and a tiny reranker (reranker)."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_bert(folder / "bert")
    make_tiny_m3(folder / "m3")
    make_tiny_reranker(folder / "reranker")
    return folder
