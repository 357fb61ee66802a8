"""Saving under ZeRO-3, which leaves empty tensors in the model and hands the gathered ones to the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def gathered(model: Any, state: dict[str, Any] | None) -> Iterator[None]:
    """Makes every part of a wrapper give its share of `state`, the whole wrapper's gathered weights, as its own.

    FlagEmbedding's trainers get `state` and save `model.model.state_dict()` instead. Nothing
    happens without `state`.
    """
    parts = list(model.named_children()) if state else []
    for name, part in parts:
        own = {k.removeprefix(f"{name}."): v for k, v in (state or {}).items() if k.startswith(f"{name}.")}
        part.state_dict = lambda *args, own=own, **kwargs: dict(own)
    try:
        yield
    finally:
        for _, part in parts:
            del part.state_dict
