"""Results by kind of question: type, origin, document (where the set says so), language and length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from factory import metrics
from factory.evalset import ABOUT, EvalSet
from factory.evaluation import SEED, Difference, Group, GroupChange, label
from factory.languages import HAN, language

SHOWN = 30  # groups of a kind that are kept, the largest ones: a set may have thousands of documents
RESAMPLES = 2_000
FEWEST = 10  # queries from which an interval is told
UNKNOWN = "not said"


def groups(
    data: EvalSet, values: Mapping[tuple[str, str], np.ndarray], differences: Sequence[Difference]
) -> list[Group]:
    """Each group's mean for each system, and each of `differences` within it.

    Args:
        values: (model, mode) → the headline metric of each query.
    """
    pairs = [((d.model, d.mode), (d.base, d.mode)) for d in differences]
    table = np.column_stack([values[a] - values[b] for a, b in pairs]) if pairs else np.zeros((len(data.queries), 0))
    found = []
    for by, names in labels(data).items():
        shown = [name for name, _ in Counter(names).most_common(SHOWN)]
        for name in sorted(shown, key=_from) if by == "length" else shown:
            at = np.array([i for i, n in enumerate(names) if n == name])
            part = table[at]
            sure = metrics.compare(part, resamples=RESAMPLES, seed=SEED)[0] if len(at) >= FEWEST and pairs else None
            changes = [
                GroupChange(
                    model=d.model,
                    base=d.base,
                    mode=d.mode,
                    value=float(part[:, i].mean()),
                    low=None if sure is None else float(sure[i][0]),
                    high=None if sure is None else float(sure[i][1]),
                )
                for i, d in enumerate(differences)
            ]
            means = {label(*k): float(v[at].mean()) for k, v in values.items()}
            found.append(Group(by=by, name=name, queries=len(at), values=means, changes=changes))
    return found


def labels(data: EvalSet) -> dict[str, list[str]]:
    """Kind → the group of each query; a kind of which there is only one group is left out."""
    found = {by: [about.get(by, UNKNOWN) for about in data.about] for by in ABOUT if data.about}
    found["language"] = [language(q) for q in data.queries]
    found["length"] = length_classes(data.queries)
    return {by: names for by, names in found.items() if len(set(names)) > 1}


def length_classes(queries: Sequence[str]) -> list[str]:
    """Thirds of the queries by their characters; of both languages by their letters, a Chinese character counting as three."""
    mixed = len({language(q) for q in queries}) > 1
    unit, han = ("letters", 2) if mixed else ("characters", 0)
    sizes = np.array([len(q) + han * len(HAN.findall(q)) for q in queries])
    low, high = (int(x) for x in np.percentile(sizes, [100 / 3, 200 / 3], method="lower"))
    names = (f"up to {low} {unit}", f"{low + 1} to {high} {unit}", f"{high + 1} {unit} and more")
    return [names[int(n > low) + int(n > high)] for n in sizes]


def _from(name: str) -> int:
    """Where a class of lengths begins."""
    first = name.split()[0]
    return int(first) if first.isdigit() else 0
