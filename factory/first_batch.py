"""FlagEmbedding computes the first batch of each call twice: once to see whether it fits into memory, once in earnest.

Its `encode` and `compute_score` are called with blocks of 256 texts here, so that with batches of 32 a ninth of all forward passes would be
for nothing, and the longest ones at that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def computed_once(model: Any) -> Iterator[None]:
    """Within, the second forward pass of a torch module returns what the first one gave, if its texts are the same."""
    plain, seen = model.forward, 0
    first: list[tuple[Any, Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        batch = args[0] if args else kwargs
        if first and _same(first[0][0], batch):
            return first.pop()[1]
        first.clear()
        out = plain(*args, **kwargs)  # one that does not fit raises here, and a smaller one is tried
        seen += 1
        if seen == 1:
            first.append((batch, out))
        return out

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _same(batch: Any, other: Any) -> bool:
    import torch

    return all(torch.equal(batch[name], other[name]) for name in ("input_ids", "attention_mask"))
