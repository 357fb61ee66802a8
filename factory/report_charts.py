"""What the report's charts look like: numbers in, SVG paths and places out. `templates/charts.html.j2` draws them.

Everything is in percent of the drawing, without text in it, so that a chart fits any width; words stand in HTML beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factory.report_words import Text, same, say

BLUE, GREEN, RED, ORANGE, GREY = "#3d6fb6", "#1d7a46", "#b3322c", "#dc7a3c", "#7b8794"
DECADES = 4
DASHES = ("6 3", "2 3", "9 3 2 3")  # of the lines that mark a threshold, so that they differ without colour


@dataclass(frozen=True)
class Series:
    """One shape: filled, or a line. `opacity` is that of the filling."""

    name: Text | None
    path: str
    colour: str
    filled: bool = False
    opacity: float = 1.0


@dataclass(frozen=True)
class Mark:
    """A threshold: a vertical line, named in the legend."""

    name: Text
    at: float
    dashes: str


@dataclass(frozen=True)
class Chart:
    """`ticks` are (place, label) along the x axis; `tips` (from, width, words) what the mouse finds; `top` is what the
    full height stands for, counted from zero; `across` says what the x axis is."""

    series: tuple[Series, ...]
    ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...] = ()
    tips: tuple[tuple[float, float, Text], ...] = ()
    top: Text | None = None
    across: Text | None = None


@dataclass(frozen=True)
class Flow:
    """A step of the story: a bar and what flows out of it, (path, colour, opacity), for a wide and a narrow page."""

    wide: tuple[tuple[str, str, float], ...]
    narrow: tuple[tuple[str, str, float], ...]


def histogram(
    edges: Sequence[float] | np.ndarray,
    counts: Sequence[tuple[Text, str, Sequence[int] | np.ndarray]],
    marks: Sequence[tuple[Text, float]] = (),
    *,
    across: Text,
    unit: str = "{:,g}",
    tips: Sequence[Text] = (),
    log: bool = False,
) -> Chart:
    """Shares of each group over common bins: the first as bars, the others as outlines, on one scale.

    Args:
        edges: (bins + 1,), evenly spaced. counts: (name, colour, (bins,) numbers) for each group. marks: (name, value).
        across: what the x axis is.
        log: heights go by the logarithm, `DECADES` powers of ten up to the highest.
    """
    shares = [np.asarray(n, float) / max(float(np.sum(n)), 1.0) for _, _, n in counts]
    most = max(float(s.max(initial=0)) for s in shares) or 1.0
    heights = [_height(s / most, log) for s in shares]
    bins = len(edges) - 1
    x = [100 * i / bins for i in range(bins + 1)]
    series = tuple(
        Series(name, _bars(x, h) if i == 0 else _steps(x, h), colour, filled=i == 0, opacity=0.55)
        for i, ((name, colour, _), h) in enumerate(zip(counts, heights, strict=True))
    )
    low, high = float(edges[0]), float(edges[-1])
    return Chart(
        series,
        _ticks(low, high, 5, unit),
        _marks(marks, low, high),
        tuple((x[i], 100 / bins, words) for i, words in enumerate(tips)),
        say("chart.log-top", most=100 * most, least=100 * most / 10**DECADES)
        if log
        else say("chart.top", most=100 * most),
        across,
    )


def curve(xs: Sequence[float], ys: Sequence[float], across: Text, colour: str = BLUE, *, unit: str = "{:.3g}") -> Chart:
    """One line over x; y from 0, or from its lowest value where that is negative, to its highest."""
    low, high = min(0.0, *ys), max(*ys, 0.0)
    line = _line(_place(xs, xs[0], xs[-1]), [100 - y for y in _place(ys, low, high)])
    top = unit.format(high) if low == 0 else f"{unit.format(low)} … {unit.format(high)}"
    return Chart((Series(None, line, colour),), _ticks(xs[0], xs[-1], 4, "{:,g}"), top=same(top), across=across)


def reliability(points: Sequence[tuple[float, float]], tips: Sequence[Text]) -> Chart:
    """Predicted against observed shares, both 0 to 1, beside the diagonal on which they agree."""
    x, y = [100 * p for p, _ in points], [100 - 100 * o for _, o in points]
    dots = " ".join(f"M{a - 0.7:.2f} {b - 1.8:.2f}h1.4v3.6h-1.4z" for a, b in zip(x, y, strict=True))
    series = (
        Series(None, "M0 100L100 0", "#aab3bd"),
        Series(None, _line(x, y), BLUE),
        Series(None, dots, BLUE, filled=True),
    )
    near = tuple((a - 1.5, 3.0, words) for a, words in zip(x, tips, strict=True))
    return Chart(series, _ticks(0, 1, 5, "{:g}"), tips=near, top=say("axis.affirmed"), across=say("axis.predicted"))


def flow(passed: float, colour: str, lost: Sequence[tuple[float, str]]) -> Flow:
    """A bar with its parts, the band to the next step and a branch for each part that is lost.

    Args:
        passed: share of the bar that goes on. lost: (share, colour) of each branch; with `passed` they make up 1.
    """
    band = [("M", 0, 0), ("L", 100, 0), ("L", 100, 100), ("C", 70, 100, 70, 100 * passed, 40, 100 * passed)]
    shapes = [([*band, ("L", 0, 100 * passed)], colour, 0.3)] if passed else []
    bars = [(0.0, 100 * passed, colour)]
    at, out = 100 * passed, 8 + 46 * sum(share for share, _ in lost)
    for share, shade in lost:
        size = max(100 * share, 0.8)
        end, begin = out, out - max(46 * share, 0.6)
        outer = [("M", 0, at), ("C", end * 0.8, at, end, at + 20, end, 160)]
        inner = [("L", begin, 160), ("C", begin, at + size + 15, begin * 0.8, at + size, 0, at + size)]
        shapes.append(([*outer, *inner], shade, 0.55))
        bars.append((at, size, shade))
        at, out = at + size, begin
    for start, size, shade in bars:
        shapes.append(([("M", 0, start), ("L", 7, start), ("L", 7, start + size), ("L", 0, start + size)], shade, 1.0))
    wide = tuple((_path(shape, False), shade, opacity) for shape, shade, opacity in shapes)
    return Flow(wide, tuple((_path(shape, True), shade, opacity) for shape, shade, opacity in shapes))


def _path(shape: Sequence[tuple], turned: bool) -> str:
    """An SVG path; `turned` with x and y exchanged."""
    words = []
    for command, *numbers in shape:
        pairs = [(b, a) if turned else (a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
        words.append(command + " ".join(f"{a:.2f} {b:.2f}" for a, b in pairs))
    return "".join(words) + "Z"


def _height(shares: np.ndarray, log: bool) -> np.ndarray:
    """Of shares of the highest, 0 to 1."""
    return np.clip(1 + np.log10(np.maximum(shares, 1e-9)) / DECADES, 0, 1) if log else shares


def _bars(x: Sequence[float], heights: np.ndarray) -> str:
    gap = 0.06 * (x[1] - x[0])
    some = [(a + gap, b - gap, 100 - 100 * h) for a, b, h in zip(x, x[1:], heights, strict=False) if h > 0]
    return "".join(f"M{a:.2f} 100V{y:.2f}H{b:.2f}V100Z" for a, b, y in some)


def _steps(x: Sequence[float], heights: np.ndarray) -> str:
    return "M0 100" + "".join(f"V{100 - 100 * h:.2f}H{b:.2f}" for b, h in zip(x[1:], heights, strict=True)) + "V100"


def _line(x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in zip(x, y, strict=True))


def _place(values: Sequence[float], low: float, high: float) -> list[float]:
    return [100 * (v - low) / ((high - low) or 1.0) for v in values]


def _ticks(low: float, high: float, number: int, unit: str) -> tuple[tuple[float, str], ...]:
    """Round values, about `number` of them."""
    if not high > low:
        return ((0.0, unit.format(low)),)
    power = 10.0 ** np.floor(np.log10((high - low) / number))
    step = min((nice * power for nice in (1, 2, 5, 10)), key=lambda s: abs((high - low) / s - number))
    first = int(np.ceil(low / step - 1e-9))
    values = [round(i * step, 12) for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]
    return tuple((100 * (v - low) / (high - low), unit.format(v)) for v in values)


def _marks(marks: Sequence[tuple[Text, float]], low: float, high: float) -> tuple[Mark, ...]:
    shown = [(name, value) for name, value in marks if low <= value <= high]
    return tuple(
        Mark(name, 100 * (value - low) / (high - low), DASHES[i % len(DASHES)]) for i, (name, value) in enumerate(shown)
    )
