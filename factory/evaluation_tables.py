"""An evaluation on the terminal: every system in one table, then the dense models metric by metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from factory.evaluation import BM25, Change, Difference, Evaluation, is_variant

if TYPE_CHECKING:
    from rich.table import Table

WITH_INTERVALS = 2  # later models beside the first, in a table of every k; three would not fit 110 columns


def render(e: Evaluation, *, detailed: bool = True) -> list[Table]:
    """`overview`, `variants` where there are some, and `details` of the dense models. In percent and points."""
    return [overview(e), *([variants(e)] if variants_of(e) else []), *([details(e)] if detailed else [])]


def overview(e: Evaluation) -> Table:
    """Systems down, the metrics at the largest cutoff across, and each later model's difference in the headline metric."""
    from rich.text import Text

    k = max(e.cutoffs)
    names = [m for m in e.rows[0].metrics if m.endswith(f"@{k}")]
    left_out = f" ({e.queries_without_judgement:,} without judgement left out)" if e.queries_without_judgement else ""
    title = f"{e.name}: {e.queries:,} queries{left_out}, {e.passages:,} passages"
    table = _table(title, "in percent; differences in points, with 95 % interval and randomisation test")
    table.add_column("mode", overflow="fold")
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name.replace("@", "\n@"), justify="right", no_wrap=True)
    base = next(iter(e.models), "")
    if e.differences:
        table.add_column(f"{e.metric}\n− {base}", justify="right", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    change = {(d.model, d.mode): d.metrics[e.metric] for d in e.differences}
    modes = list(dict.fromkeys(r.mode for r in e.rows))
    for mode in modes:
        rows = [r for r in e.rows if r.mode == mode]
        for i, r in enumerate(rows):
            cells: list[Any] = [Text(mode if i == 0 else ""), Text(r.model)]
            cells += [f"{100 * r.metrics[m]:.1f}" for m in names]
            if e.differences:
                c = change.get((r.model, mode))
                cells += [shown(c), p_value(c)] if c else ["", ""]
            table.add_row(*cells, end_section=i + 1 == len(rows))
    return table


def details(e: Evaluation) -> Table:
    """Every metric@k down; BM25 and the models across, dense.

    Each later model has its difference beside it; with more than WITH_INTERVALS of them there is room for a mark only.
    """
    from rich.text import Text

    first, *later = e.models
    value = {r.model: r.metrics for r in e.rows if r.mode in ("", "dense")}
    change = {d.model: d.metrics for d in e.differences if d.mode == "dense"}
    marked = len(later) > WITH_INTERVALS
    caption = f"* surely other than {first} (95 % interval)" if marked else "differences in points, with 95 % interval"
    table = _table(f"{e.name}: dense, every k", f"in percent; {caption}")
    table.add_column("metric", no_wrap=True)
    for name in (BM25, first):
        table.add_column(name, justify="right", overflow="fold")
    for name in later:
        table.add_column(name, justify="right", overflow="fold")
        if not marked:
            table.add_column(f"− {first}", justify="right", no_wrap=True)
    for metric in value[BM25]:
        cells: list[Any] = [Text(metric), *(f"{100 * value[m][metric]:.1f}" for m in (BM25, first))]
        for name in later:
            c, percent = change.get(name, {}).get(metric), f"{100 * value[name][metric]:.1f}"
            if marked:
                style = _style(c) if c else ""
                cells.append(Text(percent + ("*" if style else " "), style=style))
            else:
                cells += [percent, shown(c) if c else "–"]
        table.add_row(*cells, end_section=metric.endswith(f"@{e.cutoffs[-1]}"))
    return table


def variants_of(e: Evaluation) -> list[Difference]:
    """What a reader chose to compare within a model: cut vectors, no instruction."""
    return [d for d in e.within_model if is_variant(d.mode)]


def variants(e: Evaluation) -> Table:
    """What a cut vector or a missing instruction costs, or gains, inside each model."""
    table = _table(f"{e.name}: variants of a model", f"{e.metric} in points, with 95 % interval")
    for name in ("model", "mode", "against"):
        table.add_column(name, overflow="fold")
    table.add_column(e.metric, justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    for d in variants_of(e):
        c = d.metrics[e.metric]
        table.add_row(d.model, d.mode, d.base_mode, shown(c), p_value(c))
    return table


def shown(c: Change) -> Any:
    """In points; green above zero, red below."""
    from rich.text import Text

    return Text(f"{100 * c.value:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]", style=_style(c))


def _style(c: Change) -> str:
    """Empty where the interval holds zero."""
    return "green" if c.low > 0 else "red" if c.high < 0 else ""


def p_value(c: Change) -> str:
    """Three decimals; what 10,000 signs cannot tell from zero is < 0.001."""
    return "" if c.p is None else "< 0.001" if c.p < 0.001 else f"{c.p:.3f}"


def _table(title: str, caption: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
