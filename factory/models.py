"""Encoders and rerankers: FlagEmbedding's classes, and sentence-transformers', behind two protocols.

    encoder = CachedEncoder(load_encoder(config.model), run_folder / "cache")
    encoder.encode(["…"], "query").dense          # (1, d) float32, unit length

Texts are encoded in blocks of 256 in the order given. A text's vector depends, in the last bits, on
what it was padded with; fixed blocks make the vectors of a resumed run the very bytes of an unbroken one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from factory.config import ModelConfig
from factory.modelfiles import architecture_of, check_model_folder, model_fingerprint, pooling_of, position_limit
from factory.progress import bar
from factory.records import InputError
from factory.workspace import atomic

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["CachedEncoder", "Encoded", "Encoder", "Reranker", "load_encoder", "load_reranker", "model_fingerprint"]

BLOCK = 256  # texts encoded, cached and lost to a kill together: seconds of work, 1 MB on disk at d = 1024
RERANK_LENGTH = 512  # tokens of query and passage together, FlagReranker's own default

Role = Literal["query", "passage"]
Mode = Literal["dense", "sparse", "colbert", "sum"]


@dataclass(frozen=True)
class Encoded:
    """n texts, encoded. `sparse` and `colbert` are there only if they were asked for.

    Attributes:
        dense: (n, d) float32, rows of unit length.
        sparse: (n, vocabulary) float32, m3's lexical weights; a score is the dot product of two rows.
        colbert: n arrays (tokens, d) float32, rows of unit length, without the vector of [CLS].
    """

    dense: np.ndarray
    sparse: csr_matrix | None = None
    colbert: list[np.ndarray] | None = None


class Encoder(Protocol):
    """What turns texts into vectors.

    Attributes:
        fingerprint: of the model's files, see `model_fingerprint`.
        modes: ("dense",), or ("dense", "sparse", "colbert", "sum") for m3.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def modes(self) -> tuple[Mode, ...]: ...

    def key(self, role: Role) -> str:
        """Names all that a vector depends on beside the text: model, instruction, length, precision."""
        ...

    def encode(self, texts: Sequence[str], role: Role, *, modes: Sequence[Mode] = ("dense",)) -> Encoded:
        """Vectors of the texts, in their order; the role's instruction is put before each.

        `dense` always comes; "sparse" and "colbert" when named; "sum" names all three.
        """
        ...


class Reranker(Protocol):
    """What scores a query and a passage read together."""

    @property
    def fingerprint(self) -> str: ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Raw logits (never sigmoid scores), (n,) float32, for (query, passage) pairs."""
        ...


def load_encoder(config: ModelConfig) -> Encoder:
    """The encoder of a local folder. Its files are checked now; the weights are read at the first `encode`.

    `kind: auto` takes m3 for a folder with sparse_linear.pt and colbert_linear.pt; FlagModel where its
    pooling, CLS or mean, is all that the folder asks for (CLS, bge's, if the folder does not say);
    sentence-transformers for the rest (other poolings, projection layers).
    On a CPU in float32, on a GPU in float16, as FlagEmbedding itself does.

    Raises:
        InputError: no such folder, a file is missing, or a length is beyond the model's positions.
    """
    folder = Path(config.path)
    check_model_folder(folder)
    for name in ("query_max_length", "passage_max_length"):
        limit = position_limit(folder)
        if limit and getattr(config, name) > limit:
            raise InputError(
                f"model.{name} is {getattr(config, name)}, the model has positions for {limit} tokens",
                where=folder,
                fix=f"set model.{name} to {limit} or less",
            )
    kind, pooling = config.kind, pooling_of(folder)
    has_m3_heads = (folder / "sparse_linear.pt").exists() and (folder / "colbert_linear.pt").exists()
    if kind == "m3" and not has_m3_heads:
        raise InputError("model.kind is m3, but sparse_linear.pt or colbert_linear.pt is missing", where=folder)
    if kind == "auto":
        kind = "m3" if has_m3_heads else "flag" if pooling else "sentence-transformers"
    if kind == "m3":
        return _M3(config, "cls")
    return _Flag(config, pooling or "cls") if kind == "flag" else _SentenceTransformers(config, "")


def load_reranker(path: str | Path, batch_size: int = 32, device: str = "auto") -> Reranker:
    """The cross-encoder of a local folder: FlagReranker for a sequence classifier with one output (all
    bge-reranker-base/large/v2-m3), else sentence-transformers' CrossEncoder.

    Raises:
        InputError: the folder is not complete, or its model does not give one score for a pair.
    """
    folder = Path(path)
    check_model_folder(folder)
    classifier, labels = architecture_of(folder)
    if classifier and labels == 1:
        return _FlagReranker(folder, batch_size, device)
    if classifier or not (folder / "modules.json").exists():
        raise InputError(
            f"expected a sequence classifier with 1 output, got {labels} outputs"
            if classifier
            else "is not a cross-encoder",
            where=folder,
            fix="give bge-reranker-v2-m3, or any cross-encoder with one output",
        )
    return _CrossEncoder(folder, batch_size, device)


class CachedEncoder:
    """An encoder whose dense vectors are kept in `<cache>/embeddings/`, one file for each block of 256 texts.

    A file's name is the SHA-256 of the encoder's key and the block's texts; it is written whole or not at
    all, and one that cannot be read back is made again. With sparse or ColBERT vectors nothing is cached.
    """

    def __init__(self, encoder: Encoder, cache: Path):
        self.encoder, self.folder = encoder, cache / "embeddings"

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def modes(self) -> tuple[Mode, ...]:
        return self.encoder.modes

    def key(self, role: Role) -> str:
        return self.encoder.key(role)

    def encode(self, texts: Sequence[str], role: Role, *, modes: Sequence[Mode] = ("dense",)) -> Encoded:
        if set(modes) != {"dense"}:
            return self.encoder.encode(texts, role, modes=modes)

        def block_of(block: Sequence[str]) -> Encoded:
            name = hashlib.sha256(json.dumps([self.key(role), *block]).encode()).hexdigest()
            path = self.folder / f"{name}.npy"
            try:
                dense = np.load(path, allow_pickle=False)
                if (
                    dense.dtype == np.float32
                    and dense.ndim == 2
                    and len(dense) == len(block)
                    and np.isfinite(dense).all()
                ):
                    return Encoded(dense)
            except (OSError, ValueError, EOFError):
                pass  # not there, or cut off: made again below
            encoded = self.encoder.encode(block, role)
            with atomic(path) as temporary, open(temporary, "wb") as f:
                np.save(f, encoded.dense)
            return encoded

        return _in_blocks(texts, block_of, role)


def _in_blocks(texts: Sequence[str], encode: Callable[[Sequence[str]], Encoded], role: Role) -> Encoded:
    if not texts:
        return Encoded(np.zeros((0, 0), np.float32))
    parts: list[Encoded] = []
    with _bar(f"encode {role}s".replace("querys", "queries"), role, len(texts)) as shown:
        for start in range(0, len(texts), BLOCK):
            parts.append(encode(texts[start : start + BLOCK]))
            shown.update(len(parts[-1].dense))
    if len(parts) == 1:
        return parts[0]
    sparse, colbert = (
        [p.sparse for p in parts if p.sparse is not None],
        [p.colbert for p in parts if p.colbert is not None],
    )
    from scipy.sparse import vstack

    return Encoded(
        np.concatenate([p.dense for p in parts]),
        vstack(sparse, format="csr") if sparse else None,
        [vectors for part in colbert for vectors in part] if colbert else None,
    )


def _bar(description: str, unit: str, total: int) -> Any:
    """A bar if there is more than one block to wait for."""
    return bar(description, unit, total, disable=total <= BLOCK)


class _Local:
    """What every encoder of a folder has in common; the weights are read when first needed."""

    modes: tuple[Mode, ...] = ("dense",)

    def __init__(self, config: ModelConfig, pooling: str):
        self.config, self.pooling = config, pooling
        self.fingerprint = model_fingerprint(config.path)

    @cached_property
    def device(self) -> str:
        return _device(self.config.device)

    @cached_property
    def model(self) -> Any:
        return _loaded(Path(self.config.path), self._load)

    def key(self, role: Role) -> str:
        precision = "float32" if self.device == "cpu" else "float16"
        return json.dumps([self.fingerprint, type(self).__name__, self.pooling, precision, role, *self._settings(role)])

    def encode(self, texts: Sequence[str], role: Role, *, modes: Sequence[Mode] = ("dense",)) -> Encoded:
        unknown = set(modes) - set(self.modes)
        if unknown:
            raise InputError(
                f"the model has no {sorted(unknown)[0]} vectors, only {', '.join(self.modes)}", where=self.config.path
            )
        instruction, length = self._settings(role)

        def block_of(block: Sequence[str]) -> Encoded:
            with _quiet():
                return self._encode([instruction + text for text in block], length, set(modes))

        return _in_blocks(texts, block_of, role)

    def _settings(self, role: Role) -> tuple[str, int]:
        c = self.config
        return (
            (c.query_instruction, c.query_max_length)
            if role == "query"
            else (c.passage_instruction, c.passage_max_length)
        )

    def _load(self) -> Any:
        raise NotImplementedError

    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        raise NotImplementedError


class _Flag(_Local):
    def _load(self) -> Any:
        from FlagEmbedding import FlagModel

        return FlagModel(
            self.config.path, pooling_method=self.pooling, use_fp16=self.device != "cpu", devices=[self.device]
        )

    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        return Encoded(_unit(self.model.encode(texts, batch_size=self.config.batch_size, max_length=length)))


class _M3(_Local):
    modes = ("dense", "sparse", "colbert", "sum")

    def _load(self) -> Any:
        from FlagEmbedding import BGEM3FlagModel

        return BGEM3FlagModel(self.config.path, use_fp16=self.device != "cpu", devices=[self.device])

    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        sparse, colbert = bool(modes & {"sparse", "sum"}), bool(modes & {"colbert", "sum"})
        out = self.model.encode(
            texts,
            batch_size=self.config.batch_size,
            max_length=length,
            return_dense=True,
            return_sparse=sparse,
            return_colbert_vecs=colbert,
        )
        return Encoded(
            _unit(out["dense_vecs"]),
            _csr(out["lexical_weights"], len(self.model.tokenizer)) if sparse else None,
            [np.asarray(v, np.float32) for v in out["colbert_vecs"]] if colbert else None,
        )


class _SentenceTransformers(_Local):
    def _load(self) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        dtype = torch.float32 if self.device == "cpu" else torch.float16
        model = SentenceTransformer(
            self.config.path, device=self.device, local_files_only=True, model_kwargs={"dtype": dtype}
        )
        model.default_prompt_name = None  # only the instruction of our own configuration is put before a text
        return model

    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        self.model.max_seq_length = length
        return Encoded(_unit(self.model.encode(texts, batch_size=self.config.batch_size, show_progress_bar=False)))


class _LocalReranker:
    def __init__(self, folder: Path, batch_size: int, device: str):
        self.folder, self.batch_size, self._asked = folder, batch_size, device
        self.fingerprint = model_fingerprint(folder)

    @cached_property
    def device(self) -> str:
        return _device(self._asked)

    @cached_property
    def model(self) -> Any:
        return _loaded(self.folder, self._load)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        scores = np.zeros(len(pairs), np.float32)
        with _bar("rerank", "pair", len(pairs)) as shown:
            for start in range(0, len(pairs), BLOCK):
                block = [(query, passage) for query, passage in pairs[start : start + BLOCK]]
                with _quiet():
                    scores[start : start + len(block)] = self._score(block)
                shown.update(len(block))
        return scores

    def _load(self) -> Any:
        raise NotImplementedError

    def _score(self, pairs: list[tuple[str, str]]) -> Any:
        raise NotImplementedError


class _FlagReranker(_LocalReranker):
    def _load(self) -> Any:
        from FlagEmbedding import FlagReranker

        return FlagReranker(
            str(self.folder), use_fp16=self.device != "cpu", devices=[self.device], max_length=RERANK_LENGTH
        )

    def _score(self, pairs: list[tuple[str, str]]) -> Any:
        return self.model.compute_score(pairs, batch_size=self.batch_size, normalize=False)


class _CrossEncoder(_LocalReranker):
    def _load(self) -> Any:
        import torch
        from sentence_transformers import CrossEncoder

        return CrossEncoder(
            str(self.folder), device=self.device, local_files_only=True, activation_fn=torch.nn.Identity()
        )

    def _score(self, pairs: list[tuple[str, str]]) -> Any:
        return self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)


def _device(asked: str) -> str:
    """One device: a process for each GPU is not worth its start-up for what is encoded here."""
    import torch

    if asked == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as e:
        raise InputError(f"model.device is {asked!r}", fix="auto, cpu, or cuda:0") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"model.device is {asked!r}, this machine has {torch.cuda.device_count()} GPUs", fix="set it to auto or cpu"
        )
    return asked


def _loaded(folder: Path, load: Callable[[], Any]) -> Any:
    """A model, read without the network; whatever its files are reproached with becomes an InputError."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with _quiet():
            return load()
    except ImportError:
        raise
    except Exception as e:  # safetensors, torch, tokenizers and transformers each have errors of their own
        raise InputError(
            f"the model cannot be loaded: {type(e).__name__}: {str(e)[:300]}",
            where=folder,
            fix="copy the model again, whole",
        ) from e


@contextlib.contextmanager
def _quiet() -> Any:
    """The libraries' progress bars and load reports are kept off the terminal. Exceptions still come through."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _unit(vectors: Any) -> np.ndarray:
    """float32 rows of unit length: float16 ones are off by up to 1e-3."""
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _csr(weights: Iterable[dict[str, float]], vocabulary: int) -> csr_matrix:
    """Dictionaries of token id → weight, as FlagEmbedding gives them, as the rows of one matrix."""
    from scipy.sparse import csr_matrix

    rows = list(weights)
    indices = np.fromiter((int(i) for row in rows for i in row), np.int32)
    data = np.fromiter((float(w) for row in rows for w in row.values()), np.float32)
    return csr_matrix((data, indices, np.cumsum([0] + [len(row) for row in rows])), shape=(len(rows), vocabulary))
