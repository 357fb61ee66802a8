"""The path from base to tuned, measured: which weight keeps the gain and loses the least elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import InputError
from factory.evaluate import Options, evaluate_sets
from factory.evaluation import FUSED, Change, Evaluation
from factory.folders import temporary_folder
from factory.merge import check_pair, merge
from factory.settings import ModelConfig

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Point:
    """One weight: each eval set's headline metric, and its difference from the base."""

    weight: float
    values: dict[str, float]
    changes: dict[str, Change]


def measure_path(
    base: ModelConfig,
    tuned: Path,
    weights: Sequence[float],
    sets: Sequence[tuple[str, Path]],
    options: Options,
    mode: str,
    out: Path,
    say: Callable[[str], None],
) -> list[Point]:
    """Every weight's model on every set. 0 is the base itself, 1 the tuned one; the models between are written into a
    temporary folder beside `out`, which needs room for them.

    Args:
        base: whose instructions and lengths hold for all.
        mode: dense, or one that the models have beside it.

    Raises:
        InputError: the models do not fit, or have no such mode; the disk is full.
    """
    from factory.models import load_encoder

    check_pair(Path(base.path), tuned)
    modes = (*load_encoder(base).modes, f"dense{FUSED}")
    if mode not in modes:
        raise InputError(f"the models have no mode {mode!r}", where="--mode", fix="choose from " + ", ".join(modes))
    with temporary_folder(out) as folder:
        models = [("0", base)]
        for w in weights:
            if w == 0:
                continue
            path = tuned if w == 1 else folder / f"{w:g}"
            if w != 1:
                say(f"merge {w:g} of tuned")
                merge(Path(base.path), tuned, w, path)
            models.append((f"{w:g}", base.model_copy(update={"path": str(path)})))
        done, _ = evaluate_sets(sets, models, options)
    return [point(w, done, mode) for w in weights]


def point(weight: float, done: Sequence[Evaluation], mode: str) -> Point:
    name = f"{weight:g}"
    values, changes = {}, {}
    for e in done:
        found = {(r.model, r.mode): r.metrics[e.metric] for r in e.rows}
        values[e.name] = found[name, mode]
        same = Change(value=0, low=0, high=0)
        of = {(d.model, d.mode): d.metrics[e.metric] for d in e.differences}
        changes[e.name] = of.get((name, mode), same)
    return Point(weight, values, changes)


def best(path: Sequence[Point], max_loss: float) -> Point:
    """The highest value on the first set among the weights that lose at most `max_loss` on every other one; where all
    lose more, the one that loses least."""
    first, *others = path[0].values

    def worst(p: Point) -> float:
        return min((p.changes[name].value for name in others), default=0.0)

    allowed = [p for p in path if worst(p) >= -max_loss]
    return max(allowed, key=lambda p: p.values[first]) if allowed else max(path, key=worst)


def render(path: Sequence[Point], chosen: float, metric: str, mode: str) -> Table:
    """A rich table: weights down, sets across, the chosen one marked."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from factory.evaluation_tables import shown

    table = Table(
        title=f"from base (0) to tuned (1): {metric}, {mode}",
        caption="in percent; differences from the base in points, with 95 % interval",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("weight of tuned", justify="right")
    for name in path[0].values:
        table.add_column(name, justify="right")
        table.add_column("− base", justify="right", no_wrap=True)
    for p in path:
        cells = [Text(f"{p.weight:g}" + (" ←" if p.weight == chosen else ""))]
        for name, value in p.values.items():
            cells += [Text(f"{100 * value:.1f}"), shown(p.changes[name]) if p.weight else Text("")]
        table.add_row(*cells)
    return table
