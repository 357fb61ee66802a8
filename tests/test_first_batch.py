"""Encoding in blocks costs nothing on top of FlagEmbedding's own encoding: no batch twice, no padding that it would not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.backends import _unit
from factory.models import load_encoder, load_reranker
from factory.settings import ModelConfig
from tests.test_models import make_reranker
from tests.tiny_models import make_tiny_m3

TEXTS = [f"焊接电流 {i} 安培 ×{i * 7 % 13}，预热 text {'长' * (i % 7)}" for i in range(600)]


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_m3(tmp_path_factory.mktemp("m3"))


def config(path: Path, **more: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"path": str(path), "device": "cpu", "passage_max_length": 128, "batch_size": 32} | more
    )


@pytest.mark.parametrize("kind", ["flag", "m3"])
def test_no_batch_is_computed_twice_and_the_vectors_are_flagembeddings_own(m3: Path, kind: str) -> None:
    """Its `encode` tries the first batch of a call before it computes it: with 256 texts a call, a ninth of the time."""
    from FlagEmbedding import BGEM3FlagModel, FlagModel

    encoder: Any = load_encoder(config(m3, kind=kind))
    texts = TEXTS[:80]
    theirs: Any = (FlagModel if kind == "flag" else BGEM3FlagModel)(str(m3), use_fp16=False, devices=["cpu"])
    expected = theirs.encode(texts, batch_size=32, max_length=128)
    seen: list[int] = []
    encoder.model.model.register_forward_hook(lambda module, given, out: seen.append(1))
    passes: list[int] = []
    inner = encoder.model.model if kind == "flag" else encoder.model.model.model
    inner.encoder.register_forward_hook(lambda module, given, out: passes.append(1))
    found = encoder.encode(texts, "passage").dense
    assert (len(seen), len(passes)) == (4, 3)  # 80 texts in batches of 32, and the trial
    np.testing.assert_array_equal(found, _unit(expected["dense_vecs"] if kind == "m3" else expected))
    encoder.encode([TEXTS[0]] * 64, "passage")  # two equal batches: each is computed, the trial apart
    assert len(passes) == 5


def test_a_batch_that_does_not_fit_is_made_smaller(m3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = load_encoder(config(m3, kind="flag"))
    whole = encoder.encode(TEXTS[:80], "passage").dense
    plain = type(encoder.model.model).forward

    def small(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 20:
            raise RuntimeError("CUDA out of memory")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(encoder.model.model), "forward", small)
    np.testing.assert_allclose(encoder.encode(TEXTS[:80], "passage").dense, whole, atol=1e-5)


def test_texts_of_one_length_are_encoded_together_and_come_in_their_order(m3: Path) -> None:
    """Of 600 texts of two lengths, mixed, few batches are as long as the longest."""
    encoder: Any = load_encoder(config(m3))
    texts = [TEXTS[i] * (4 if i % 3 == 0 else 1) for i in range(600)]
    widths: list[int] = []
    encoder.model.model.register_forward_hook(lambda module, given, out: widths.append(given[0]["input_ids"].shape[1]))
    found = encoder.encode(texts, "passage", modes=("dense", "sparse", "colbert"))
    assert sum(w > max(widths) / 2 for w in widths) < len(widths) / 2
    for i in (0, 1, 300, 599):
        alone = encoder.encode([texts[i]], "passage", modes=("sum",))
        np.testing.assert_allclose(alone.dense[0], found.dense[i], atol=1e-5)
        assert found.colbert is not None and alone.colbert is not None and found.sparse is not None
        np.testing.assert_allclose(alone.colbert[0], found.colbert[i], atol=1e-4)
        assert abs(alone.sparse - found.sparse[i]).max() < 1e-4


def test_a_reranker_reads_each_pair_once_and_in_order_of_length(tmp_path: Path) -> None:
    reranker: Any = load_reranker(make_reranker(tmp_path / "reranker", 1), batch_size=4, device="cpu")
    pairs = [(TEXTS[i], TEXTS[i + 1] * (1 + i % 3)) for i in range(300)]
    read: list[int] = []
    encoder = reranker.model.model.roberta.encoder
    encoder.register_forward_hook(lambda module, given, out: read.append(given[0].shape[0]))
    scores = reranker.score(pairs)
    assert sum(read) == 300
    for i in (0, 1, 2, 299):
        np.testing.assert_allclose(reranker.score([pairs[i]])[0], scores[i], atol=1e-4)
