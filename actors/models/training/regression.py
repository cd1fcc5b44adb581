"""Logistic regressions: fitting, folds for cross-validation, calibration and losses."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

from actors.models.training.arrays import (
    Booleans,
    Doubles,
    Features,
    Indices,
)

_FOLDS = 5
_MAX_ITERATIONS = 2000
# Calibration is hardly regularized.
_CALIBRATION_STRENGTH = 1e6


def fit_binary(x: Features, y: Doubles, weights: Doubles, strength: float) -> LogisticRegression:
    """Fits targets between 0 and 1: each row counts as one of each class, weighted by its target.

    `strength` is the inverse strength of the regularization.
    """
    doubled = np.concatenate([x, x])
    classes = np.concatenate([np.ones(len(y)), np.zeros(len(y))])
    shares = np.concatenate([weights * y, weights * (1 - y)])

    used = shares > 0
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    return model.fit(doubled[used], classes[used], shares[used])


def fit_multinomial(
    x: Features, y: Indices, weights: Doubles, strength: float
) -> tuple[Doubles, Doubles]:
    """Fits exclusive classes.

    Returns weights [classes, features] and biases [classes].
    """
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(x, y, weights)
    if len(model.classes_) > 2:
        return model.coef_, model.intercept_

    # For two classes scikit-learn returns only the difference between them.
    half_weight = model.coef_[0] / 2
    half_bias = model.intercept_[0] / 2
    return np.stack([-half_weight, half_weight]), np.array([-half_bias, half_bias])


def cross_validation_folds(
    classes: Indices, kinds: Booleans, seed: int
) -> list[tuple[Indices, Indices]]:
    """Rows to train on and rows to validate on, for each fold.

    `kinds` [kinds, rows] marks the rows that belong to each kind; every
    training part contains rows of each kind.
    """
    folds = min(_FOLDS, len(classes))
    counts = np.bincount(classes)
    cannot_stratify = counts.min() < folds or len(np.unique(classes)) < 2
    splitter = (KFold if cannot_stratify else StratifiedKFold)(
        folds, shuffle=True, random_state=seed
    )
    found = list(splitter.split(np.zeros(len(classes)), classes))
    if all(kinds[:, fit].any(axis=1).all() for fit, _ in found):
        return found

    # By chance, one fold holds all rows of a rare kind: stratify by kind,
    # with fewer folds.
    if len(kinds) > 2:
        strata = classes
        folds = min(_FOLDS, int(counts.min()))
    else:
        strata = kinds[kinds.sum(axis=1).argmin()]
        folds = min(_FOLDS, int(strata.sum()))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(classes)), strata))


def calibrate(logits: Doubles, y: Doubles) -> tuple[float, float]:
    """Platt scaling: slope and shift that turn held-out logits into calibrated ones."""
    column = logits[:, None].astype(np.float32)
    model = fit_binary(column, y, np.ones(len(y)), _CALIBRATION_STRENGTH)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def sigmoid(logits: Doubles) -> Doubles:
    return np.asarray(1 / (1 + np.exp(-logits)))


def softmax(logits: Doubles) -> Doubles:
    """Over the last axis of [rows, classes]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_loss(y: Doubles, probabilities: Doubles) -> float:
    """The mean log loss of targets between 0 and 1."""
    p = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def multinomial_log_loss(y: Indices, logits: Doubles) -> float:
    """The mean log loss of class indices `y` [rows], from logits [rows, classes]."""
    probabilities = softmax(logits)[np.arange(len(y)), y]
    return float(-np.log(np.clip(probabilities, 1e-9, 1)).mean())
