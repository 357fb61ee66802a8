"""Encoders and rerankers: FlagEmbedding's classes, and sentence-transformers', behind two protocols.

    encoder = CachedEncoder(load_encoder(config.model), run_folder / "cache")
    encoder.encode(["…"], "query").dense          # (1, d) float32, unit length

Texts are encoded in blocks of 256 in the order given. A text's vector depends, in the last bits, on
what it was padded with; fixed blocks make the vectors of a resumed run the very bytes of an unbroken one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from factory.backends import (
    BLOCK,
    Encoded,
    FlagEncoder,
    M3Encoder,
    Mode,
    Role,
    SentenceTransformersEncoder,
    concatenate,
    in_blocks,
)
from factory.modelfiles import architecture_of, check_model_folder, model_fingerprint, pooling_of, position_limit
from factory.records import InputError
from factory.rerankers import BgeReranker, SentenceTransformersReranker
from factory.settings import ModelConfig
from factory.workspace import atomic

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = [
    "BLOCK",
    "CachedEncoder",
    "Encoded",
    "Encoder",
    "Mode",
    "Reranker",
    "Role",
    "concatenate",
    "load_encoder",
    "load_reranker",
    "model_fingerprint",
]


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

    def with_query_instruction(self, instruction: str) -> Encoder:
        """The same model, its weights read once for both, with another text before each query."""
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
    pooling, CLS or mean, is all that the folder asks for (CLS, bge's, if the folder does not say, also for m3);
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
        return M3Encoder(config, pooling or "cls")
    return FlagEncoder(config, pooling or "cls") if kind == "flag" else SentenceTransformersEncoder(config, "")


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
        return BgeReranker(folder, batch_size, device)
    if classifier or not (folder / "modules.json").exists():
        raise InputError(
            f"expected a sequence classifier with 1 output, got {labels} outputs"
            if classifier
            else "is not a cross-encoder",
            where=folder,
            fix="give bge-reranker-v2-m3, or any cross-encoder with one output",
        )
    return SentenceTransformersReranker(folder, batch_size, device)


class CachedEncoder:
    """An encoder whose vectors are kept in `<cache>/embeddings/`, one file for each block of 256 texts.

    A file's name is the SHA-256 of the encoder's key and the block's texts; it is written whole or not at
    all, and one that cannot be read back is made again. A model with sparse weights gives them in the same pass, so
    they are kept beside the dense vectors, in a file of their own. ColBERT's vectors are not kept.
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

    def with_query_instruction(self, instruction: str) -> CachedEncoder:
        return CachedEncoder(self.encoder.with_query_instruction(instruction), self.folder.parent)

    def encode(self, texts: Sequence[str], role: Role, *, modes: Sequence[Mode] = ("dense",)) -> Encoded:
        if not set(modes) <= {"dense", "sparse"} or not set(modes) <= {"dense", *self.modes}:
            return self.encoder.encode(texts, role, modes=modes)
        with_sparse = "sparse" in self.modes

        def block_of(block: Sequence[str]) -> Encoded:
            name = hashlib.sha256(json.dumps([self.key(role), *block]).encode()).hexdigest()
            dense_file, sparse_file = self.folder / f"{name}.npy", self.folder / f"{name}.sparse.npz"
            dense = _dense_of(dense_file, len(block))
            sparse = _sparse_of(sparse_file, len(block)) if with_sparse else None
            if dense is None or (with_sparse and sparse is None):
                encoded = self.encoder.encode(block, role, modes=("dense", "sparse") if with_sparse else ("dense",))
                dense, sparse = encoded.dense, encoded.sparse
                with atomic(dense_file) as temporary, open(temporary, "wb") as f:
                    np.save(f, dense)
                if sparse is not None:
                    from scipy.sparse import save_npz

                    with atomic(sparse_file) as temporary, open(temporary, "wb") as f:
                        save_npz(f, sparse)
            return Encoded(dense, sparse if "sparse" in modes else None)

        return in_blocks(texts, block_of, role)


def _dense_of(path: Path, rows: int) -> np.ndarray | None:
    """A block's vectors; None if they are not there, or cut off."""
    try:
        dense = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = dense.dtype == np.float32 and dense.ndim == 2 and len(dense) == rows and np.isfinite(dense).all()
    return dense if whole else None


def _sparse_of(path: Path, rows: int) -> csr_matrix | None:
    from zipfile import BadZipFile

    from scipy.sparse import load_npz

    try:
        sparse = load_npz(path).tocsr()
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    return sparse if sparse.shape[0] == rows else None
