"""`choose.rules`: the user's own conditions, in SQL over the columns of 6-scores.parquet (polars)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from factory.hybrid import Scorer
from factory.presets import Verdict
from factory.records import InputError, Pair
from factory.retrieve import Exclusions, Search, Target, mine_block
from factory.settings import Rule


def by_rules(scores: pa.Table, rules: Sequence[Rule]) -> Verdict:
    """The first rule whose condition holds decides: reject, with its reason, or keep. What none names is kept.

    A condition over a missing value does not hold, as in SQL.

    Raises:
        InputError: a condition is not SQL, names an unknown column, or is no condition.
    """
    n = len(scores)
    reasons, open_ = np.full(n, "", object), np.ones(n, bool)
    for number, rule in enumerate(rules):
        holds = _holds(scores, rule.when, f"choose.rules[{number}]") & open_
        if rule.then == "reject":
            reasons[holds] = rule.reason or rule.when
        open_ &= ~holds
    nothing = np.zeros(n, bool)
    return Verdict(reasons, nothing, nothing)


def check_rules(rules: Sequence[Rule], sources: Sequence[str]) -> None:
    """See, before there are scores, that each condition can be read.

    Args:
        sources: that candidates will come from; their columns depend on them.

    Raises:
        InputError: as `by_rules`.
    """
    by_rules(_example(sources), rules)


def _example(sources: Sequence[str]) -> pa.Table:
    """The scores of one question and two candidates, as mining and scoring make them."""
    pair = Pair(id="", passage_id="", query="q", target_id="0", target_text="a", duplicate_group="0", split="train")
    targets = [Target(name, name, name, "train", name) for name in "012"]
    queries, answers = np.ones((1, 1), np.float32), np.ones((3, 1), np.float32)
    searches: dict[str, Search] = dict.fromkeys(sources, lambda *_: (np.ones((1, 3)), np.array([[0, 1, 2]])))
    mined = mine_block(range(1), [pair], targets, queries, answers, searches, 2, Exclusions([pair], targets))
    return Scorer([pair], targets, queries, answers).table(mined)


def _holds(scores: pa.Table, condition: str, where: str) -> np.ndarray:
    import polars as pl

    try:
        frame = pl.from_arrow(scores)
        found = pl.SQLContext(scores=frame, eager=True).execute(f"SELECT ({condition}) AS holds FROM scores")["holds"]
    except pl.exceptions.ColumnNotFoundError as e:
        name = str(e).splitlines()[0]
        raise InputError(
            f"{condition!r} names a column that is not there: {name}",
            where=where,
            fix=f"columns: {', '.join(scores.column_names)}",
        ) from e
    except pl.exceptions.PolarsError as e:
        raise InputError(f"{condition!r} is not an SQL condition: {str(e).splitlines()[0]}", where=where) from e
    if found.dtype != pl.Boolean or len(found) != len(scores):
        raise InputError(f"{condition!r} gives {found.dtype}, expected true or false for each row", where=where)
    return found.fill_null(False).to_numpy()
