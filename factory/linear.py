"""A logistic model that a person can read: standardised features, their weights in plain words, stored as JSON."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Self

import numpy as np

from factory.modelfiles import read_json
from factory.presets import Columns
from factory.settings import Part
from factory.workspace import write_json


class Coefficient(Part):
    """`weight` is per standard deviation of the feature: e to its power is what one deviation does to the odds."""

    feature: str
    mean: float
    scale: float
    weight: float


class Linear(Part):
    """Logit = intercept + the sum of weight × (value − mean) / scale."""

    coefficients: tuple[Coefficient, ...]
    intercept: float

    def logits(self, x: Columns) -> np.ndarray:
        """(rows,); NaN, where there is no such value, counts as the mean."""
        found = np.full(len(next(iter(x.values()))), self.intercept)
        for c in self.coefficients:
            found += c.weight * (np.where(np.isnan(x[c.feature]), c.mean, x[c.feature]) - c.mean) / c.scale
        return found

    def in_words(self) -> list[str]:
        """The coefficients as sentences, the heaviest first."""
        heavy = sorted(self.coefficients, key=lambda c: -abs(c.weight))
        return [
            f"{c.feature} higher by {c.scale:.3g} multiplies the odds that the candidate answers the question by {np.exp(c.weight):.2f}"
            for c in heavy
            if abs(c.weight) >= 0.01
        ]

    def save(self, path: Path) -> None:
        """As JSON, with the coefficients in words too."""
        write_json(path, self.model_dump(mode="json") | {"in_words": self.in_words()})

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The model that `save` wrote; None where the file says why there is none."""
        stored = read_json(path)
        return None if "missing" in stored else cls.model_validate({k: v for k, v in stored.items() if k != "in_words"})


class Standard:
    """Features on one scale: mean 0, standard deviation 1; those without spread are left out.

    Attributes:
        x: (rows, features) float64.
    """

    def __init__(self, found: Columns):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a column without any value
            self.names = [name for name, values in found.items() if np.nanstd(values) > 1e-9]
        self.means = {name: float(np.nanmean(found[name])) for name in self.names}
        self.scales = {name: float(np.nanstd(found[name])) for name in self.names}
        rows = len(next(iter(found.values())))
        columns = [np.nan_to_num((found[n] - self.means[n]) / self.scales[n]) for n in self.names]
        self.x = np.column_stack(columns) if columns else np.zeros((rows, 0))

    def coefficients(self, weights: np.ndarray) -> tuple[Coefficient, ...]:
        both = zip(self.names, weights, strict=True)
        return tuple(Coefficient(feature=n, mean=self.means[n], scale=self.scales[n], weight=float(w)) for n, w in both)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -60, 60))))
