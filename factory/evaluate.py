"""Any number of models × modes × lengths of vector × eval sets: every metric, and how sure each difference is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from factory import metrics
from factory.evalset import SET_FILES, EvalSet, read_eval_set
from factory.evaluation import (
    BARE,
    BM25,
    FUSED,
    SEED,
    Change,
    Difference,
    Evaluation,
    Row,
    is_variant,
    label,
    plain_mode,
)
from factory.records import InputError
from factory.settings import ModelConfig
from factory.workspace import sha256_file, write_json, write_jsonl

__all__ = ["EvalSet", "Evaluation", "Options", "evaluate", "evaluate_sets", "read_eval_set", "write_evaluation"]

CUTOFFS = (1, 3, 6, 10)
MODES = ("dense", "sparse", "colbert", "sum", "fusion")
TOP = 3  # passages of each query that are kept, to be read


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        cutoffs: the k of recall@k, precision@k, mrr@k, ndcg@k, map@k, hit_rate@k.
        modes: of `MODES`, as far as a model has them; dense is always measured. fusion: dense with BM25.
        dims: lengths to which dense vectors are cut, beside the full one.
        weights: of dense, sparse and ColBERT in the sum; further ones are further modes (sum@0.2,0.6,0.2).
        instructions: queries with their instruction, without, or both.
    """

    cutoffs: tuple[int, ...] = CUTOFFS
    modes: tuple[str, ...] = MODES
    dims: tuple[int, ...] = ()
    weights: tuple[tuple[float, float, float], ...] = ((0.4, 0.2, 0.4),)
    instructions: Literal["given", "none", "both"] = "given"

    def check(self, models: Sequence[tuple[str, ModelConfig]]) -> None:
        """Raises an InputError where these options, or the models' names, make no sense."""
        if len({name for name, _ in models} | {BM25}) != len(models) + 1:
            raise InputError(
                f"model names must differ, and none may be {BM25}; got {', '.join(name for name, _ in models)}"
            )
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise InputError(f"cutoffs must be 1 or more, got {list(self.cutoffs)}", fix="e.g. 1,3,6,10")
        if unknown := [m for m in self.modes if m not in MODES]:
            raise InputError(f"there is no mode {unknown[0]!r}, only {', '.join(MODES)}", where="--modes")
        if wrong := [w for w in self.weights if min(w) < 0 or not sum(w)]:
            raise InputError(f"weights must be 0 or more, and not all 0; got {wrong[0]}", where="--weights")
        if len(set(self.weights)) < len(self.weights):
            raise InputError(f"the same weights twice: {self.weights}", where="--weights")
        if self.instructions == "both" and not any(c.query_instruction for _, c in models):
            raise InputError("no model has a query instruction to leave out", fix="give --query-instruction")


@dataclass
class Measured:
    """One system on one eval set: metrics of each query, the first relevant passage's rank (0: none), the top ones."""

    values: dict[str, np.ndarray]
    ranks: np.ndarray
    top: np.ndarray


@dataclass
class SetResults:
    """An eval set and what was measured on it, by (model, mode); BM25 comes first."""

    name: str
    folder: Path
    data: EvalSet
    bm25: Any = None
    measured: dict[tuple[str, str], Measured] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate(
    folder: Path,
    models: Sequence[tuple[str, ModelConfig]],
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    cache: Path | None = None,
    out: Path | None = None,
) -> Evaluation:
    """`evaluate_sets` of one set with everything else as it comes; `out` gets the files of `write_evaluation`."""
    done, results = evaluate_sets([(folder.name, folder)], models, Options(cutoffs=tuple(cutoffs)), cache=cache)
    if out:
        write_evaluation(out, done, results)
    return done[0]


def evaluate_sets(
    sets: Sequence[tuple[str, Path]],
    models: Sequence[tuple[str, ModelConfig]],
    options: Options,
    *,
    split: str = "test",
    subset: str | None = None,
    cache: Path | None = None,
    run_files: Path | None = None,
) -> tuple[list[Evaluation], list[SetResults]]:
    """Measure BM25 and each model on each eval set; the first model is what the others are compared with.

    Models run one after the other, so only one is in memory. Vectors are kept in `cache` by the model's fingerprint.

    Args:
        sets: (name, folder), see `read_eval_set` for `split` and `subset`; names must differ.
        models: (name, configuration); names must differ.
        run_files: a folder for each ranking as a TREC run file.

    Raises:
        InputError: a set, an option or a model's folder is at fault; names that are the same.
    """
    from factory.models import CachedEncoder, Encoder, load_encoder
    from factory.run_files import write_qrels, write_run
    from factory.search import DEPTH, Found, search_bm25

    options.check(models)
    if len({name for name, _ in sets}) != len(sets):
        raise InputError(
            f"eval sets must have different names; got {', '.join(name for name, _ in sets)}",
            fix="give one of them a name: general=FOLDER",
        )
    if options.instructions == "none":
        models = [(name, c.model_copy(update={"query_instruction": ""})) for name, c in models]
    encoders: dict[str, Encoder] = {name: load_encoder(config) for name, config in models}  # a bad folder stops us now
    results = [SetResults(n, f, read_eval_set(f, split=split, subset=subset)) for n, f in sets]
    depth = max(DEPTH, *options.cutoffs)

    def add(r: SetResults, model: str, mode: str, found: Found) -> None:
        r.measured[model, mode] = _measured(r.data, found.rows, options.cutoffs)
        if run_files:
            write_run(run_files / r.name, model, mode, r.data, found)

    for r in results:
        with _timed(r.seconds, BM25):
            r.bm25 = search_bm25(r.data.queries, r.data.passages, depth)
            add(r, BM25, "", r.bm25)
        if run_files:
            write_qrels(run_files / r.name, r.data)
    described = {}
    for name, config in models:
        loaded = encoders.pop(name)
        encoder: Encoder = CachedEncoder(loaded, cache) if cache else loaded
        for r in results:
            with _timed(r.seconds, name):
                for mode, found in _rankings(encoder, config, r, depth, options):
                    add(r, name, mode, found)
        described[name] = config.model_dump() | {"fingerprint": encoder.fingerprint}
        del encoder, loaded  # with their weights, before the next one's are read
    return [_evaluation(r, described, options, depth) for r in results], results


class _timed:
    """Adds the block's seconds to `seconds[name]`."""

    def __init__(self, seconds: dict[str, float], name: str):
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = round(time.monotonic() - self.started, 1)


def _rankings(encoder: Any, config: ModelConfig, r: SetResults, depth: int, o: Options) -> Iterator[tuple[str, Any]]:
    """(mode, ranking) of one model. Queries without their instruction are further queries of the same search."""
    from factory.fusion import reciprocal_rank_fusion
    from factory.models import concatenate
    from factory.search import Found, query_modes, search

    both = o.instructions == "both" and config.query_instruction
    arms = {"": encoder} | ({BARE: encoder.with_query_instruction("")} if both else {})
    needed = query_modes(encoder, o.modes)
    n = len(r.data.queries)
    queries = concatenate([arm.encode(r.data.queries, "query", modes=needed) for arm in arms.values()])
    found = search(encoder, queries, r.data.passages, depth, modes=o.modes, dims=o.dims, weights=o.weights)
    for i, arm in enumerate(arms):
        part = slice(i * n, (i + 1) * n)
        for mode, ranking in found.items():
            yield mode + arm, ranking.of(part)
        if "fusion" in o.modes:
            yield f"dense{FUSED}{arm}", Found(*reciprocal_rank_fusion(found["dense"].of(part).rows, r.bm25.rows, depth))


def _measured(data: EvalSet, rows: np.ndarray, cutoffs: Sequence[int]) -> Measured:
    ranks = np.zeros(len(rows), np.int32)
    for i, (row, relevant) in enumerate(zip(rows, data.relevant, strict=True)):
        hits = np.flatnonzero(np.isin(row, list(relevant)))
        ranks[i] = hits[0] + 1 if len(hits) else 0
    return Measured(metrics.measure(data.relevant, rows, cutoffs), ranks, rows[:, :TOP].copy())


def _evaluation(r: SetResults, models: dict[str, Any], o: Options, depth: int) -> Evaluation:
    from factory.groups import groups

    headline = f"ndcg@{max(o.cutoffs)}"
    names, measured = list(models), r.measured
    against = [(m, mode, names[0], mode) for m, mode in measured if m not in (BM25, names[0])]
    within = [(m, mode, m, plain) for m, mode in measured if (plain := plain_mode(mode)) and m != BM25]
    words = [(m, mode, BM25, "") for m, mode in measured if m != BM25 and not is_variant(mode)]
    pairs = [p for p in [*against, *within, *words] if p[2:] in measured]
    found = _differences(measured, pairs)
    differences = [d for d in found if not d.base_mode and d.base != BM25]
    return Evaluation(
        name=r.name,
        eval_set=str(r.folder),
        data={file: sha256_file(path) for file in SET_FILES if (path := r.folder / file).is_file()},
        passages=len(r.data.passages),
        queries=len(r.data.queries),
        queries_without_judgement=r.data.unjudged,
        judgements=sum(len(x) for x in r.data.relevant),
        cutoffs=tuple(o.cutoffs),
        metric=headline,
        depth=depth,
        models=models,
        rows=[
            Row(model=name, mode=mode, metrics={m: float(v.mean()) for m, v in x.values.items()})
            for (name, mode), x in measured.items()
        ],
        differences=differences,
        within_model=[d for d in found if d.base_mode],
        against_bm25=[d for d in found if d.base == BM25],
        groups=groups(r.data, {k: x.values[headline] for k, x in measured.items()}, differences),
        seconds=r.seconds,
        query_ids=r.data.query_ids,
        per_query={label(*k): {m: v.tolist() for m, v in x.values.items()} for k, x in measured.items()},
        ranks={label(*k): x.ranks.tolist() for k, x in measured.items()},
    )


def _differences(
    measured: dict[tuple[str, str], Measured], pairs: Sequence[tuple[str, str, str, str]]
) -> list[Difference]:
    """One for each (model, mode, base, base's mode); all are resampled by the same draws."""
    if not pairs:
        return []
    names = list(next(iter(measured.values())).values)
    columns = [measured[p[:2]].values[m] - measured[p[2:]].values[m] for p in pairs for m in names]
    table = np.column_stack(columns)
    intervals, p_values = metrics.compare(table, seed=SEED)
    numbers = zip(table.mean(axis=0), intervals, p_values, strict=True)
    changes = [Change(value=float(v), low=float(lo), high=float(hi), p=float(p)) for v, (lo, hi), p in numbers]
    return [
        Difference(
            model=model,
            base=base,
            mode=mode,
            base_mode=base_mode if base_mode != mode else "",
            metrics=dict(zip(names, changes[i * len(names) :], strict=False)),
        )
        for i, (model, mode, base, base_mode) in enumerate(pairs)
    ]


def write_evaluation(out: Path, done: Sequence[Evaluation], results: Sequence[SetResults]) -> None:
    """evaluation.json (all sets), evaluation-queries.jsonl (every query of every set with its values and ranks), and
    wins-and-losses.jsonl (the largest of each comparison, with their passages). Another evaluation of the same folder that
    ends at the same time waits, so that the three are of one.
    """
    from factory.wins import wins_and_losses

    def rows() -> Iterator[dict[str, Any]]:
        for e, r in zip(done, results, strict=True):
            values = {s: {m: np.round(v, 6).tolist() for m, v in ms.items()} for s, ms in e.per_query.items()}
            for i, (key, text) in enumerate(zip(r.data.query_ids, r.data.queries, strict=True)):
                yield {"set": e.name, "_id": key, "query": text} | {
                    s: {"rank": e.ranks[s][i] or None} | {m: v[i] for m, v in ms.items()} for s, ms in values.items()
                }

    both = list(zip(done, results, strict=True))
    whole = done[0].model_copy(update={"further_sets": list(done[1:])})
    with FileLock(out / ".evaluation.lock"):
        write_jsonl(out / "evaluation-queries.jsonl", rows())
        write_jsonl(out / "wins-and-losses.jsonl", (w for e, r in both for w in wins_and_losses(e, r)))
        write_json(out / "evaluation.json", whole.model_dump(mode="json"))
