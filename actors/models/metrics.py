"""How good a classifier is, with 95 % intervals by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

_RESAMPLES = 1000

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that 95 % of resamples lie in."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(measure: Callable[[Array, Array], float], truth: Array, found: Array, seed: int = 0) -> Estimate:
    """`measure(truth, found)` with its interval. Resamples on which it is not defined do not count."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, len(truth), len(truth))
        value = measure(truth[rows], found[rows])
        if not np.isnan(value):
            values.append(value)
    low, high = np.percentile(values, [2.5, 97.5]) if values else (np.nan, np.nan)
    return Estimate(float(measure(truth, found)), float(low), float(high))


def accuracy(truth: Array, found: Array) -> float:
    return float((truth == found).mean())


def macro_f1(truth: Array, found: Array) -> float:
    return float(f1_score(truth, found, average="macro", zero_division=0))


def auc(truth: Array, scores: Array) -> float:
    """Of a binary truth; NaN where there is only one class."""
    return float(roc_auc_score(truth, scores)) if len(np.unique(truth)) == 2 else float("nan")


def spearman(truth: Array, scores: Array) -> float:
    """Rank correlation, for graded truths; ties share their mean rank."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(_ranks(truth), _ranks(scores))[0, 1])


def kappa(truth: Array, found: Array) -> float:
    """Cohen's: agreement beyond chance."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(cohen_kappa_score(truth, found))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
