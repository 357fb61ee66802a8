"""What evaluation.json holds: every system's means, each difference with how sure it is, groups of questions, gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from factory import metrics
from factory.modelfiles import read_json
from factory.records import InputError

BM25 = "BM25"
SEED = 42
BARE = "/no-instruction"  # ends a mode whose queries were encoded without their instruction
FUSED = f"+{BM25}"  # ends a mode that is fused with BM25


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Part):
    """One system's means over the queries, each in [0, 1].

    Attributes:
        mode: dense, sparse, colbert, sum; sum@0.2,0.6,0.2 with further weights; dense@64 for cut vectors; dense+BM25 for
            their fusion; with /no-instruction behind it for queries encoded without theirs. Empty for BM25.
    """

    model: str
    mode: str
    metrics: dict[str, float]


class Change(Part):
    """A difference of means, its 95 % interval and the randomisation test's p as `metrics.compare` has them; 0.01 is one point."""

    value: float
    low: float
    high: float
    p: float | None = None


class Difference(Part):
    """A system against another one, over the same queries. `base_mode` is named only where it is not `mode`."""

    model: str
    base: str
    mode: str
    base_mode: str = ""
    metrics: dict[str, Change]


class GroupChange(Part):
    """`Change` of the headline metric within a group; no interval for fewer than 10 queries."""

    model: str
    base: str
    mode: str
    value: float
    low: float | None = None
    high: float | None = None


class Group(Part):
    """Queries that have something in common: `by` is type, origin, document, language or length.

    Attributes:
        values: "model mode" → mean of the headline metric.
    """

    by: str
    name: str
    queries: int
    values: dict[str, float]
    changes: list[GroupChange]


class GateResult(Part):
    """One gate for one model: what was wanted, what was measured, and the verdict.

    Attributes:
        wanted: the gate in words.
        got: the difference; `low` and `high` its 95 % interval.
        remark: why it failed, or what a reader should know although it passed.
    """

    gate: str
    eval_set: str
    model: str
    base: str
    mode: str
    metric: str
    wanted: str
    got: float
    low: float
    high: float
    p: float | None
    passed: bool
    remark: str = ""


class Evaluation(Part):
    """One eval set's results. evaluation.json is the first set's, with those of the others in `further_sets`.

    Attributes:
        name: of the eval set.
        data: SHA-256 of its files, as far as it is in BEIR's layout, by name.
        metric: the headline metric, nDCG at the largest cutoff.
        differences: each later model against the first one, in each mode that both have.
        within_model: what a variant costs or gains: cut vectors, no instruction, fusion, m3's other modes, each
            against the same model's plain one.
        against_bm25: every model in every plain mode against BM25.
        per_query: "model mode" → metric → one value for each of `query_ids`.
        ranks: "model mode" → rank of the first relevant passage of each query, 0 where none was within `depth`.
    """

    name: str = ""
    eval_set: str
    data: dict[str, str] = {}
    passages: int
    queries: int
    queries_without_judgement: int
    judgements: int
    cutoffs: tuple[int, ...]
    metric: str = ""
    depth: int = 0
    models: dict[str, dict[str, Any]]
    rows: list[Row]
    differences: list[Difference]
    within_model: list[Difference] = []
    against_bm25: list[Difference] = []
    groups: list[Group] = []
    resamples: int = metrics.RESAMPLES
    seed: int = SEED
    seconds: dict[str, float]
    gates: list[GateResult] = []
    further_sets: list[Evaluation] = []
    query_ids: list[str] = Field(exclude=True, repr=False)
    per_query: dict[str, dict[str, list[float]]] = Field(exclude=True, repr=False)
    ranks: dict[str, list[int]] = Field(default_factory=dict, exclude=True, repr=False)


class _Stored(Evaluation):
    """What a page needs of an evaluation that lies on disk."""

    eval_set: str = ""
    judgements: int = 0
    further_sets: list[_Stored] = []  # type: ignore[assignment]
    query_ids: list[str] = []
    per_query: dict[str, dict[str, list[float]]] = {}


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `path` holds; empty where there is no such file. Fields that this version does not know may be there.

    Raises:
        InputError: it is not JSON, or not an evaluation.
    """
    if not path.is_file():
        return {}
    found = read_json(path)
    try:
        _Stored.model_validate(found)
    except ValidationError as e:
        wrong = [x for x in e.errors(include_url=False) if x["type"] != "extra_forbidden"]
        if wrong:
            field = ".".join(map(str, wrong[0]["loc"]))
            raise InputError(
                f"not an evaluation: {field or 'the file'}: {wrong[0]['msg']}", where=path, fix="evaluate again"
            ) from e
    return dict(found)


def stale_set(evaluation: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The run's own held-out set that `evaluation` was measured on, if its files are others now; else "".

    Args:
        evaluation: evaluation.json, run: run.json of the same folder. What older versions wrote has no SHA-256 to compare.
    """
    now = run.get("stages", {}).get("export", {}).get("outputs", {})
    for e in (evaluation, *evaluation.get("further_sets", [])):
        name, data = Path(e.get("eval_set", "")).name, e.get("data", {})
        if name in ("eval", "dev") and now and any(now.get(f"{name}/{file}") != sha for file, sha in data.items()):
            return name
    return ""


def label(model: str, mode: str) -> str:
    """How a system is named where one string must do."""
    return f"{model} {mode}".strip()


def is_variant(mode: str) -> bool:
    """Cut vectors, or queries without their instruction: what a reader chose to compare within a model."""
    return mode.startswith("dense@") or mode.endswith(BARE)


def plain_mode(mode: str) -> str:
    """What a variant is compared with inside its model; empty if it is itself a plain one.

    >>> plain_mode("sum/no-instruction"), plain_mode("dense@64"), plain_mode("sum"), plain_mode("dense")
    ('sum', 'dense', 'dense', '')
    """
    if mode.endswith(BARE):
        return mode.removesuffix(BARE)
    if mode.endswith(FUSED):
        return mode.removesuffix(FUSED)
    return "dense" if mode not in ("dense", "") else ""
