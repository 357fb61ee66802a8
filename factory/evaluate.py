"""Base against tuned on held-out questions: every system, every metric, and how sure each difference is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from factory import metrics
from factory.evalset import EvalSet, read_eval_set
from factory.records import InputError
from factory.settings import ModelConfig
from factory.workspace import write_json, write_jsonl

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["EvalSet", "Evaluation", "evaluate", "read_eval_set", "render_table"]

CUTOFFS = (1, 3, 6, 10)
BM25 = "BM25"
SEED = 42


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Part):
    """One system's means over the queries, each in [0, 1]. `mode` is empty for BM25."""

    model: str
    mode: str
    metrics: dict[str, float]


class Change(_Part):
    """A difference of means, later model − first model, and its 95 % interval; 0.01 is one point."""

    value: float
    low: float
    high: float


class Difference(_Part):
    """A later model against the first one, in the same mode."""

    model: str
    base: str
    mode: str
    metrics: dict[str, Change]


class Evaluation(_Part):
    """What `evaluation.json` holds. `per_query` goes to evaluation-queries.jsonl instead.

    Attributes:
        per_query: "model mode" → metric → one value for each of `query_ids`.
    """

    eval_set: str
    passages: int
    queries: int
    queries_without_judgement: int
    judgements: int
    cutoffs: tuple[int, ...]
    models: dict[str, dict[str, Any]]
    rows: list[Row]
    differences: list[Difference]
    resamples: int = metrics.RESAMPLES
    seed: int = SEED
    seconds: dict[str, float]
    query_ids: list[str] = Field(exclude=True, repr=False)
    per_query: dict[str, dict[str, list[float]]] = Field(exclude=True, repr=False)


def evaluate(
    folder: Path,
    models: Sequence[tuple[str, ModelConfig]],
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    cache: Path | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Measure BM25 and each model on an eval set; the first model is what the others are compared with.

    Models run one after the other, so only one is in memory. Dense vectors are kept in `cache`; `out` gets
    evaluation.json and evaluation-queries.jsonl (each query's own values).

    Args:
        folder: BEIR layout, see `read_eval_set`.
        models: (name, configuration); names must differ.
        cutoffs: the k of recall@k, mrr@k, ndcg@k, hit_rate@k.

    Raises:
        InputError: the set or a model folder is at fault; two models have the same name; a k is below 1.
    """
    from factory.models import CachedEncoder, Encoder, load_encoder
    from factory.search import DEPTH, search, search_bm25

    if len({name for name, _ in models} | {BM25}) != len(models) + 1:
        raise InputError(
            f"model names must differ, and none may be {BM25}; got {', '.join(name for name, _ in models)}"
        )
    if not cutoffs or min(cutoffs) < 1:
        raise InputError(f"cutoffs must be 1 or more, got {list(cutoffs)}", fix="e.g. 1,3,6,10")
    encoders: dict[str, Encoder] = {name: load_encoder(config) for name, config in models}  # a bad folder stops us now
    data, depth = read_eval_set(folder), max(DEPTH, *cutoffs)
    seconds: dict[str, float] = {}
    measured: dict[tuple[str, str], dict[str, np.ndarray]] = {}

    started = time.monotonic()
    ranking = search_bm25(data.queries, data.passages, depth)
    measured[BM25, ""] = metrics.measure(data.relevant, ranking, cutoffs)
    seconds[BM25] = round(time.monotonic() - started, 1)
    described = {}
    for name, config in models:
        started = time.monotonic()
        encoder = encoders.pop(name)
        found = search(CachedEncoder(encoder, cache) if cache else encoder, data.queries, data.passages, depth)
        for mode, ranking in found.items():
            measured[name, mode] = metrics.measure(data.relevant, ranking, cutoffs)
        described[name] = config.model_dump() | {"fingerprint": encoder.fingerprint}
        del encoder  # with its weights, before the next one's are read
        seconds[name] = round(time.monotonic() - started, 1)

    result = Evaluation(
        eval_set=str(folder),
        passages=len(data.passages),
        queries=len(data.queries),
        queries_without_judgement=data.unjudged,
        judgements=sum(len(r) for r in data.relevant),
        cutoffs=tuple(cutoffs),
        models=described,
        rows=[
            Row(model=name, mode=mode, metrics={m: float(v.mean()) for m, v in values.items()})
            for (name, mode), values in measured.items()
        ],
        differences=_differences(measured),
        seconds=seconds,
        query_ids=data.query_ids,
        per_query={
            f"{name} {mode}".strip(): {m: v.tolist() for m, v in values.items()}
            for (name, mode), values in measured.items()
        },
    )
    if out:
        rows = ({"_id": q, "query": text} for q, text in zip(data.query_ids, data.queries, strict=True))
        write_jsonl(
            out / "evaluation-queries.jsonl",
            (
                row | {s: {m: round(v[i], 6) for m, v in ms.items()} for s, ms in result.per_query.items()}
                for i, row in enumerate(rows)
            ),
        )
        write_json(out / "evaluation.json", result.model_dump(mode="json"))
    return result


def _differences(measured: dict[tuple[str, str], dict[str, np.ndarray]]) -> list[Difference]:
    """Each model after the first against it, in each mode that both have."""
    names = list(dict.fromkeys(name for name, _ in measured if name != BM25))
    found = []
    for (name, mode), values in measured.items():
        if name in (BM25, *names[:1]) or (names[0], mode) not in measured:
            continue
        differences = np.column_stack([values[m] - measured[names[0], mode][m] for m in values])
        intervals = metrics.bootstrap(differences, seed=SEED)
        changes = {
            m: Change(value=float(d), low=float(low), high=float(high))
            for m, d, (low, high) in zip(values, differences.mean(axis=0), intervals, strict=True)
        }
        found.append(Difference(model=name, base=names[0], mode=mode, metrics=changes))
    return found


def render_table(evaluation: Evaluation) -> Table:
    """A rich table: metric@k down; BM25, the first model, and each later one with its difference across.

    Values in percent, differences in points with their 95 % interval; green above zero, red below.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    e = evaluation
    models = list(e.models)
    value = {(r.model, r.mode): r.metrics for r in e.rows}
    change = {(d.model, d.mode): d.metrics for d in e.differences}
    left_out = f" ({e.queries_without_judgement:,} without judgement left out)" if e.queries_without_judgement else ""
    table = Table(
        title=f"{e.queries:,} queries{left_out}, {e.passages:,} passages",
        caption="in percent; differences in points, with 95 % interval",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("metric", no_wrap=True)
    for name in (BM25, *models[:1]):
        table.add_column(name, justify="right")
    for name in models[1:]:
        table.add_column(name, justify="right")
        table.add_column(f"− {models[0]}", justify="right", no_wrap=True)

    def cell(model: str, mode: str, metric: str) -> str:
        return f"{100 * value[model, mode][metric]:.1f}" if (model, mode) in value else "–"

    modes = list(dict.fromkeys(r.mode for r in e.rows if r.mode)) or [""]
    for mode in modes:
        if len(modes) > 1:
            table.add_row(Text(mode, style="bold"))
        for metric in value[BM25, ""]:
            cells: list[Any] = [Text(metric), cell(BM25, "", metric), *(cell(m, mode, metric) for m in models[:1])]
            for name in models[1:]:
                cells += [cell(name, mode, metric), _shown(change.get((name, mode), {}).get(metric))]
            table.add_row(*cells, end_section=metric.endswith(f"@{e.cutoffs[-1]}"))
    return table


def _shown(change: Change | None) -> Any:
    from rich.text import Text

    if change is None:
        return "–"
    style = "green" if change.low > 0 else "red" if change.high < 0 else ""
    return Text(f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]", style=style)
