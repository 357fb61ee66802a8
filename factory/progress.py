"""One progress bar with an estimate, for every long step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(description: str, unit: str, total: int | None, **options: Any) -> tqdm[Any]:
    """A bar on stderr. In a log file it prints a line every ten seconds instead of animating."""
    return tqdm(
        total=total,
        desc=f"  {description}",
        unit=f" {unit}",
        mininterval=0.2 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
        **options,
    )


def progress(items: Iterable[T], description: str, unit: str) -> Iterable[T]:
    """Iterate with a bar; the total is taken from `items` if it has a length."""
    with bar(description, unit, len(items) if isinstance(items, Sized) else None) as shown:
        for item in items:
            yield item
            shown.update()
