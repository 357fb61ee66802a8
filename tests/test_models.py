"""Encoders and rerankers: what they return, what they refuse, and that the cache gives the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from factory.modelfiles import write_mean_pooling
from factory.models import BLOCK, CachedEncoder, load_encoder, load_reranker, model_fingerprint
from factory.records import InputError
from factory.settings import ModelConfig
from factory.tokens import tokens
from tests.tiny_models import make_tiny_bert, make_tiny_m3

TEXTS = [f"焊接电流 {i} 安培 ×{i * 7 % 13}，预热 text {'长' * (i % 7)}" for i in range(2 * BLOCK + 100)]


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_m3(tmp_path_factory.mktemp("m3"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("bert"))


def config(path: Path, **more: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": str(path), "device": "cpu", "passage_max_length": 128} | more)


def test_m3_gives_three_kinds_of_vectors_in_the_order_of_the_texts(m3: Path) -> None:
    encoder = load_encoder(config(m3))
    assert encoder.modes == ("dense", "sparse", "colbert", "sum")
    texts = TEXTS[: BLOCK + 3]
    all_three = encoder.encode(texts, "passage", modes=("dense", "sparse", "colbert"))
    assert all_three.dense.shape == (len(texts), 64) and all_three.dense.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(all_three.dense, axis=1), 1, rtol=1e-5)
    assert all_three.sparse is not None and all_three.sparse.shape[0] == len(texts) and all_three.sparse.nnz
    assert all_three.colbert is not None and len(all_three.colbert) == len(texts)
    alone = encoder.encode([texts[-1]], "passage", modes=("sum",))
    np.testing.assert_allclose(alone.dense[0], all_three.dense[-1], atol=1e-5)
    assert alone.colbert is not None and alone.colbert[0].shape == all_three.colbert[-1].shape
    assert encoder.encode(texts[:2], "passage").sparse is None


def test_sparse_rows_multiply_to_flagembeddings_own_lexical_score(m3: Path) -> None:
    from FlagEmbedding import BGEM3FlagModel

    theirs = BGEM3FlagModel(str(m3), use_fp16=False, devices=["cpu"])
    weights = theirs.encode(TEXTS[:2], return_sparse=True, max_length=128)["lexical_weights"]
    sparse = load_encoder(config(m3)).encode(TEXTS[:2], "passage", modes=("sparse",)).sparse
    assert sparse is not None
    ours = (sparse[0] @ sparse[1].T).toarray()[0, 0]
    assert ours == pytest.approx(theirs.compute_lexical_matching_score(weights[0], weights[1]), rel=1e-5)


def test_flag_model_and_sentence_transformers_agree_on_a_mean_pooled_folder(bert: Path) -> None:
    ours = load_encoder(config(bert)).encode(TEXTS[:5], "passage").dense
    theirs = load_encoder(config(bert, kind="sentence-transformers")).encode(TEXTS[:5], "passage").dense
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_m3_pools_as_its_folder_says(m3: Path, tmp_path: Path) -> None:
    """Heads may be trained onto a model that pools by the mean, such as e5."""
    folder = shutil.copytree(m3, tmp_path / "m3")
    write_mean_pooling(folder, width=json.loads((folder / "config.json").read_text())["hidden_size"], max_length=128)
    ours = load_encoder(config(folder)).encode(TEXTS[:5], "passage", modes=("dense", "sparse", "colbert"))
    theirs = load_encoder(config(folder, kind="sentence-transformers")).encode(TEXTS[:5], "passage").dense
    np.testing.assert_allclose(ours.dense, theirs, atol=1e-5)
    assert ours.sparse is not None and ours.colbert is not None


def test_the_instruction_is_put_before_the_text(bert: Path) -> None:
    plain, asking = load_encoder(config(bert)), load_encoder(config(bert, query_instruction="query: "))
    np.testing.assert_array_equal(asking.encode(["预热"], "query").dense, plain.encode(["query: 预热"], "query").dense)
    np.testing.assert_array_equal(asking.encode(["预热"], "passage").dense, plain.encode(["预热"], "passage").dense)


def test_a_resumed_run_has_the_very_bytes_of_an_unbroken_one(bert: Path, tmp_path: Path) -> None:
    encoder = load_encoder(config(bert, passage_max_length=24))
    unbroken = CachedEncoder(encoder, tmp_path).encode(TEXTS, "passage").dense
    files = sorted((tmp_path / "embeddings").glob("*.npy"))
    assert len(files) == 3
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-100])  # cut off, as by a full disk
    np.save(files[2], np.ones((1, 64), np.float32))  # whole, but another block's
    again = CachedEncoder(load_encoder(config(bert, passage_max_length=24)), tmp_path).encode(TEXTS, "passage").dense
    assert again.tobytes() == unbroken.tobytes()


def test_sparse_weights_are_kept_beside_the_dense_vectors_and_made_in_one_pass(m3: Path, tmp_path: Path) -> None:
    encoder = load_encoder(config(m3))
    dense = CachedEncoder(encoder, tmp_path).encode(TEXTS[:300], "passage")
    assert dense.sparse is None
    encoder.encode = None  # type: ignore[method-assign, assignment]  # from here on nothing may be encoded
    both = CachedEncoder(encoder, tmp_path).encode(TEXTS[:300], "passage", modes=("dense", "sparse"))
    assert both.sparse is not None and both.sparse.shape[0] == 300 and both.sparse.nnz > 300
    np.testing.assert_array_equal(both.dense, dense.dense)
    damaged = sorted((tmp_path / "embeddings").glob("*.sparse.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    again = CachedEncoder(load_encoder(config(m3)), tmp_path).encode(TEXTS[:300], "passage", modes=("dense", "sparse"))
    assert again.sparse is not None and (again.sparse != both.sparse).nnz == 0


def test_what_changes_a_vector_is_never_read_from_the_cache(bert: Path, tmp_path: Path) -> None:
    def cached(**more: object) -> CachedEncoder:
        return CachedEncoder(load_encoder(config(bert, **more)), tmp_path)

    plain = cached().encode(TEXTS[:3], "query").dense
    assert not np.array_equal(plain, cached(query_instruction="query: ").encode(TEXTS[:3], "query").dense)
    assert not np.array_equal(plain, cached(query_max_length=8).encode(TEXTS[:3], "query").dense)
    assert not np.array_equal(plain, cached(kind="flag", query_max_length=9).encode(TEXTS[:3], "query").dense)
    files = len(list((tmp_path / "embeddings").iterdir()))
    np.testing.assert_array_equal(plain, cached(passage_instruction="passage: ").encode(TEXTS[:3], "query").dense)
    assert len(list((tmp_path / "embeddings").iterdir())) == files


def test_the_fingerprint_follows_content_wherever_the_file_is_changed(tmp_path: Path) -> None:
    model = tmp_path / "a"
    model.mkdir()
    (model / "weights.bin").write_bytes(bytes(8_000_000))
    (model / "config.json").write_text("{}")
    first = model_fingerprint(model)
    assert model_fingerprint(shutil.copytree(model, tmp_path / "copied")) == first
    with open(model / "weights.bin", "r+b") as f:  # a tensor in the middle; the ends stay as they were
        f.seek(4_000_000)
        f.write(bytes([1]) * 100_000)
    assert model_fingerprint(model) != first
    assert model_fingerprint(model / "config.json") != model_fingerprint(model)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused_by_name(bert: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing) as e:
        load_encoder(config(folder))
    assert str(folder) in str(e.value)


def test_folders_that_are_not_a_model(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        load_encoder(config(Path("BAAI/bge-m3")))
    folder = shutil.copytree(bert, tmp_path / "lfs")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="git lfs pull"):
        load_encoder(config(folder))
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(config(folder)).encode(["x"], "query")
    with pytest.raises(InputError, match="512 or less"):
        load_encoder(config(bert, passage_max_length=8192))
    with pytest.raises(InputError, match=r"sparse_linear\.pt"):
        load_encoder(config(bert, kind="m3"))


def test_nothing_is_printed_and_an_empty_list_is_no_crash(
    bert: Path, m3: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in (bert, m3):
        encoder = load_encoder(config(folder, batch_size=2))
        assert len(encoder.encode([], "query").dense) == 0
        encoder.encode(TEXTS[:9], "query")
    assert capfd.readouterr() == ("", "")


def make_reranker(folder: Path, labels: int) -> Path:
    """A tiny XLM-RoBERTa sequence classifier with the tokenizer of the tiny m3."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    make_tiny_m3(folder)
    for extra in ("modules.json", "sparse_linear.pt", "colbert_linear.pt"):
        (folder / extra).unlink()
    settings = json.loads((folder / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**settings | {"num_labels": labels}))
        model.classifier.out_proj.bias.data += 5  # logits beyond 1: a sigmoid would show
        model.save_pretrained(folder)
    return folder


def test_a_reranker_gives_raw_logits_whatever_its_class(tmp_path: Path) -> None:
    folder = make_reranker(tmp_path / "reranker", 1)
    pairs = [("预热", text) for text in TEXTS[:9]]
    scores = load_reranker(folder, batch_size=4, device="cpu").score(pairs)
    assert scores.shape == (9,) and scores.dtype == np.float32 and scores.min() > 1
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    theirs = CrossEncoder(str(folder), device="cpu", activation_fn=Identity()).predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(scores, theirs, atol=1e-4)
    assert load_reranker(folder, device="cpu").score(pairs[:1]).shape == (1,)
    assert load_reranker(folder, device="cpu").score([]).shape == (0,)


def test_what_is_not_a_reranker_is_refused(m3: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 outputs"):
        load_reranker(make_reranker(tmp_path / "three", 3))
    (folder := shutil.copytree(m3, tmp_path / "m3")).joinpath("modules.json").unlink()
    with pytest.raises(InputError, match="not a cross-encoder"):
        load_reranker(folder)


def test_tokens_of_both_languages() -> None:
    assert tokens("更换E4303焊条 2 根") == ["更换", "e4303", "焊条", "2", "根"]
    assert tokens("Ｐｒｅ-heat, 250 ℃!") == ["pre", "heat", "250", "c"]
    assert tokens("，。?") == []
