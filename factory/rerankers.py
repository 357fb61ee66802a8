"""Cross-encoders in this process: FlagEmbedding's rerankers and sentence-transformers'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from factory.backends import BLOCK, block_bar, device_of, loaded, longest_first, quiet
from factory.first_batch import computed_once
from factory.modelfiles import model_fingerprint

RERANK_LENGTH = 512  # tokens of query and passage together, FlagReranker's own default


class LocalReranker(ABC):
    def __init__(self, folder: Path, batch_size: int, device: str):
        self.folder, self.batch_size, self._asked = folder, batch_size, device
        self.fingerprint = model_fingerprint(folder)

    @cached_property
    def device(self) -> str:
        return device_of(self._asked)

    @cached_property
    def model(self) -> Any:
        return loaded(self.folder, self._load)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        scores = np.zeros(len(pairs), np.float32)
        order = longest_first([query + passage for query, passage in pairs])
        with block_bar("rerank", "pair", len(pairs)) as shown:
            for start in range(0, len(pairs), BLOCK):
                block = order[start : start + BLOCK]
                with quiet():
                    scores[block] = self._score([(pairs[i][0], pairs[i][1]) for i in block])
                shown.update(len(block))
        return scores

    @abstractmethod
    def _load(self) -> Any:
        """What the library does; see the subclasses."""

    @abstractmethod
    def _score(self, pairs: list[tuple[str, str]]) -> Any:
        """What the library does; see the subclasses."""


class BgeReranker(LocalReranker):
    def _load(self) -> Any:
        from FlagEmbedding import FlagReranker

        return FlagReranker(
            str(self.folder), use_fp16=self.device != "cpu", devices=[self.device], max_length=RERANK_LENGTH
        )

    def _score(self, pairs: list[tuple[str, str]]) -> Any:
        with computed_once(self.model.model):
            return self.model.compute_score(pairs, batch_size=self.batch_size, normalize=False)


class SentenceTransformersReranker(LocalReranker):
    def _load(self) -> Any:
        import torch
        from sentence_transformers import CrossEncoder

        return CrossEncoder(
            str(self.folder), device=self.device, local_files_only=True, activation_fn=torch.nn.Identity()
        )

    def _score(self, pairs: list[tuple[str, str]]) -> Any:
        return self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)
