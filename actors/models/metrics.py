"""How good a classifier is, with 95 % intervals by the bootstrap.

The measures are the usual ones, written for speed: the bootstrap asks for each of them a thousand times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_RESAMPLES = 1000

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that 95 % of resamples lie in."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "not defined: all are the same"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(
    measure: Callable[[Array, Array], float], truth: Array, found: Array, seed: int = 0
) -> Estimate:
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
    """The mean over the classes of twice what both have, of what each has."""
    has_truth, has_found, both = _class_counts(truth, found)
    return float((2 * both / (has_truth + has_found)).mean())


def auc(truth: Array, scores: Array) -> float:
    """Of a binary truth, by the ranks of the positive ones; NaN where there is only one class."""
    positive = truth == truth.max()
    count, rest = int(positive.sum()), int((~positive).sum())
    if not rest:
        return float("nan")
    return float((_ranks(scores)[positive].sum() - count * (count + 1) / 2) / (count * rest))


def spearman(truth: Array, scores: Array) -> float:
    """Rank correlation, for graded truths; ties share their mean rank. NaN where one side is all the same."""
    if len(truth) < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(_ranks(truth), _ranks(scores))[0, 1])


def kappa(truth: Array, found: Array) -> float:
    """Cohen's: agreement beyond chance; NaN where both always say the same."""
    has_truth, has_found, both = (counts / len(truth) for counts in _class_counts(truth, found))
    chance = float((has_truth * has_found).sum())
    return float((both.sum() - chance) / (1 - chance)) if chance < 1 else float("nan")


def _class_counts(truth: Array, found: Array) -> tuple[Array, Array, Array]:
    """By class: how often the truth has it, how often it was found, how often both."""
    names, codes = np.unique(np.concatenate([truth, found]), return_inverse=True)
    sides = (codes[: len(truth)], codes[len(truth) :], codes[: len(truth)][truth == found])
    has_truth, has_found, both = (np.bincount(side, minlength=len(names)) for side in sides)
    return has_truth, has_found, both


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
