"""Measures of a classifier's quality, with 95 % bootstrap intervals.

The measures are the usual ones, written for speed: the bootstrap computes
each a thousand times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_RESAMPLES = 1000

Array = npt.NDArray[Any]
# A measure of predictions or scores against the truth, both [rows].
Measure = Callable[[Array, Array], float]


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval that contains 95 % of the resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "not defined: all are the same"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(measure: Measure, truth: Array, found: Array, seed: int = 0) -> Estimate:
    """`measure(truth, found)` with its interval.

    Resamples for which it is NaN are left out.
    """
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
    """The share of rows where the prediction is right."""
    return float((truth == found).mean())


def macro_f1(truth: Array, found: Array) -> float:
    """The F1 score, averaged over the classes with equal weight."""
    in_truth, in_found, in_both = _class_counts(truth, found)
    return float((2 * in_both / (in_truth + in_found)).mean())


def auc(truth: Array, scores: Array) -> float:
    """The area under the ROC curve for a binary truth; NaN if it has only one class."""
    positive = truth == truth.max()
    count = int(positive.sum())
    others = int((~positive).sum())
    if not others:
        return float("nan")

    rank_sum = _ranks(scores)[positive].sum()
    return float((rank_sum - count * (count + 1) / 2) / (count * others))


def spearman(truth: Array, scores: Array) -> float:
    """Spearman's rank correlation, for graded truths.

    Ties share their mean rank.

    NaN if all values of one side are equal.
    """
    if len(truth) < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(_ranks(truth), _ranks(scores))[0, 1])


def kappa(truth: Array, found: Array) -> float:
    """Cohen's kappa: agreement beyond chance.

    NaN if both sides always say the same.
    """
    shares = [counts / len(truth) for counts in _class_counts(truth, found)]
    in_truth, in_found, in_both = shares
    chance = float((in_truth * in_found).sum())
    if chance >= 1:
        return float("nan")
    return float((in_both.sum() - chance) / (1 - chance))


def _class_counts(truth: Array, found: Array) -> tuple[Array, Array, Array]:
    """By class: rows of that class in the truth, in the predictions, and in both."""
    names, codes = np.unique(np.concatenate([truth, found]), return_inverse=True)
    truth_codes = codes[: len(truth)]
    found_codes = codes[len(truth) :]

    def counts(of: Array) -> Array:
        return np.bincount(of, minlength=len(names))

    return (
        counts(truth_codes),
        counts(found_codes),
        counts(truth_codes[truth == found]),
    )


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
