"""The classes that hold an encoder's weights: FlagEmbedding's and sentence-transformers', each in a few lines.

They read the weights when first asked, encode blocks of 256 texts, and keep the libraries quiet meanwhile.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from factory.first_batch import computed_once
from factory.modelfiles import model_fingerprint
from factory.offline import stay_offline
from factory.progress import bar
from factory.records import InputError
from factory.settings import ModelConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BLOCK = 256  # texts encoded, cached and lost to a kill together: seconds of work, 1 MB on disk at d = 1024

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


def in_blocks(texts: Sequence[str], encode: Callable[[Sequence[str]], Encoded], role: Role) -> Encoded:
    if not texts:
        return Encoded(np.zeros((0, 0), np.float32))
    parts: list[Encoded] = []
    with block_bar(f"encode {role}s".replace("querys", "queries"), role, len(texts)) as shown:
        for start in range(0, len(texts), BLOCK):
            parts.append(encode(texts[start : start + BLOCK]))
            shown.update(len(parts[-1].dense))
    return concatenate(parts)


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """The texts of all parts, one after the other; each part has the same kinds of vectors."""
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


def block_bar(description: str, unit: str, total: int) -> Any:
    """A bar if there is more than one block to wait for."""
    return bar(description, unit, total, disable=total <= BLOCK)


class LocalEncoder(ABC):
    """What every encoder of a folder has in common; the weights are read when first needed."""

    modes: tuple[Mode, ...] = ("dense",)

    def __init__(self, config: ModelConfig, pooling: str):
        self.config, self.pooling = config, pooling
        self.fingerprint = model_fingerprint(config.path)
        self._loaded: list[Any] = []  # the model, once it is; one list for all copies of this encoder

    @cached_property
    def device(self) -> str:
        return device_of(self.config.device)

    @property
    def model(self) -> Any:
        if not self._loaded:
            self._loaded.append(loaded(Path(self.config.path), self._load))
        return self._loaded[0]

    def with_query_instruction(self, instruction: str) -> Self:
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"query_instruction": instruction})
        return other

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
            with quiet():
                encoded = self._encode([instruction + text for text in block], length, set(modes))
            if not np.isfinite(encoded.dense).all():
                raise InputError(
                    "the model gives vectors that hold NaN or infinity",
                    where=self.config.path,
                    fix="its weights are damaged, or too large for float16: try --device cpu (model.device: cpu)",
                )
            return encoded

        order = longest_first(texts)
        return _reordered(in_blocks([texts[i] for i in order], block_of, role), np.argsort(order))

    def _settings(self, role: Role) -> tuple[str, int]:
        c = self.config
        return (
            (c.query_instruction, c.query_max_length)
            if role == "query"
            else (c.passage_instruction, c.passage_max_length)
        )

    @abstractmethod
    def _load(self) -> Any:
        """What the library does; see the subclasses."""

    @abstractmethod
    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        """What the library does; see the subclasses."""


class FlagEncoder(LocalEncoder):
    def _load(self) -> Any:
        from FlagEmbedding import FlagModel

        return FlagModel(
            self.config.path, pooling_method=self.pooling, use_fp16=self.device != "cpu", devices=[self.device]
        )

    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        with computed_once(self.model.model):
            return Encoded(_unit(self.model.encode(texts, batch_size=self.config.batch_size, max_length=length)))


class M3Encoder(LocalEncoder):
    modes = ("dense", "sparse", "colbert", "sum")

    def _load(self) -> Any:
        from FlagEmbedding import BGEM3FlagModel

        return BGEM3FlagModel(
            self.config.path, pooling_method=self.pooling, use_fp16=self.device != "cpu", devices=[self.device]
        )

    def _encode(self, texts: list[str], length: int, modes: set[Mode]) -> Encoded:
        sparse, colbert = bool(modes & {"sparse", "sum"}), bool(modes & {"colbert", "sum"})
        with computed_once(self.model.model):
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


class SentenceTransformersEncoder(LocalEncoder):
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


def device_of(asked: str) -> str:
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


def loaded(folder: Path, load: Callable[[], Any]) -> Any:
    """A model, read without the network; whatever its files are reproached with becomes an InputError."""
    stay_offline()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        with quiet():
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
def quiet() -> Iterator[None]:
    """The libraries' progress bars and load reports are kept off the terminal. Exceptions still come through."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def longest_first(texts: Sequence[str]) -> list[int]:
    """An order in which the texts of a block are of one length, more or less: nothing is lost to padding."""
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))


def _reordered(found: Encoded, rows: np.ndarray) -> Encoded:
    return Encoded(
        found.dense[rows],
        found.sparse[rows] if found.sparse is not None else None,
        [found.colbert[i] for i in rows] if found.colbert is not None else None,
    )


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
