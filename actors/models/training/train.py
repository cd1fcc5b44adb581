"""Training linear heads: cross-validated, calibrated, and the same from the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.models.heads import Head
from actors.models.training.arrays import Doubles, Features, Indices
from actors.models.training.examples import Examples, learned
from actors.models.training.regression import (
    calibrate,
    cross_validation_folds,
    fit_binary,
    fit_multinomial,
    log_loss,
    multinomial_log_loss,
    sigmoid,
    softmax,
)

# Inverse strengths of regularization that cross-validation chooses from.
_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
# Temperatures that calibrate a group's logits.
_TEMPERATURES = np.geomspace(0.3, 5, 60)


@dataclass(frozen=True)
class TrainedHead:
    """A head, and by output the regularization chosen for it and its validated scores.

    `validated` holds the calibrated scores [texts] of texts that the model
    had not been trained on, NaN for the others.
    """

    head: Head
    strengths: Mapping[str, float]
    validated: Mapping[str, Doubles]


@dataclass(frozen=True)
class _Fit:
    """One regression: weights [features] or [classes, features], and scores of all texts."""

    weight: Doubles
    bias: Doubles
    strength: float
    scores: Doubles


def train(
    examples: Examples,
    groups: Sequence[Sequence[str]],
    layers: Sequence[int],
    encoder_sha256: str,
    seed: int,
) -> TrainedHead:
    """Fits one logistic regression per output, and a multinomial one per group of outputs.

    Outputs that cannot be learned are left out of the head.
    """
    known = learned(examples.targets)
    kept = [tuple(name for name in group if name in known) for group in groups]
    kept = [group for group in kept if len(group) > 1]
    grouped = {name for group in groups for name in group}

    fits = {name: _fit_output(examples, name, seed) for name in known if name not in grouped}
    for group in kept:
        fits |= _fit_group(examples, group, seed)

    names = tuple(name for name in examples.targets if name in fits)
    head = Head(
        names,
        tuple(kept),
        tuple(layers),
        encoder_sha256,
        np.stack([fits[name].weight for name in names]).astype(np.float32),
        np.array([float(fits[name].bias) for name in names], np.float32),
    )
    return TrainedHead(
        head,
        {name: fit.strength for name, fit in fits.items()},
        {name: fit.scores for name, fit in fits.items()},
    )


def _fit_output(examples: Examples, name: str, seed: int) -> _Fit:
    target = examples.targets[name]
    rows = np.flatnonzero(~np.isnan(target))
    x = examples.features[rows]
    y = target[rows]
    weights = examples.weights[rows]
    own = weights >= 1

    logits = {s: _validate_binary(x, y, weights, s, seed) for s in _STRENGTHS}
    losses = {s: log_loss(y[own], sigmoid(logits[s][own])) for s in _STRENGTHS}
    best = min(losses, key=lambda strength: losses[strength])

    slope, shift = calibrate(logits[best][own], y[own])
    scores = np.full(len(target), np.nan)
    scores[rows[own]] = sigmoid(slope * logits[best][own] + shift)

    model = fit_binary(x, y, weights, best)
    return _Fit(
        slope * model.coef_[0],
        slope * model.intercept_[0] + shift,
        best,
        scores,
    )


def _validate_binary(
    x: Features,
    y: Doubles,
    weights: Doubles,
    strength: float,
    seed: int,
) -> Doubles:
    """The logit of each row by a model that was not trained on it; NaN for auxiliary rows."""
    logits = np.full(len(y), np.nan)
    own = np.flatnonzero(weights >= 1)
    auxiliary = np.flatnonzero(weights < 1)
    sides = np.stack([y[own] > 0, y[own] < 1])

    for fit, held_out in cross_validation_folds((y[own] >= 0.5).astype(int), sides, seed):
        rows = np.concatenate([own[fit], auxiliary])
        model = fit_binary(x[rows], y[rows], weights[rows], strength)
        logits[own[held_out]] = model.decision_function(x[own[held_out]])
    return logits


def _fit_group(examples: Examples, group: Sequence[str], seed: int) -> dict[str, _Fit]:
    table = np.stack([examples.targets[name] for name in group], axis=1)
    has_class = np.nan_to_num(table).sum(axis=1) > 0
    rows = np.flatnonzero(~np.isnan(table).any(axis=1) & has_class)
    x = examples.features[rows]
    y = table[rows].argmax(axis=1)
    weights = examples.weights[rows]
    own = np.flatnonzero(weights >= 1)

    logits = {s: _validate_group(x, y, weights, s, len(group), seed)[own] for s in _STRENGTHS}
    losses = {s: multinomial_log_loss(y[own], logits[s]) for s in _STRENGTHS}
    best = min(losses, key=lambda strength: losses[strength])

    def loss_at(temperature: float) -> float:
        return multinomial_log_loss(y[own], logits[best] / temperature)

    temperature = min(_TEMPERATURES, key=loss_at)
    scores = np.full((len(table), len(group)), np.nan)
    scores[rows[own]] = softmax(logits[best] / temperature)

    weight, bias = fit_multinomial(x, y, weights, best)
    return {
        name: _Fit(
            weight[n] / temperature,
            bias[n] / temperature,
            best,
            scores[:, n],
        )
        for n, name in enumerate(group)
    }


def _validate_group(
    x: Features,
    y: Indices,
    weights: Doubles,
    strength: float,
    classes: int,
    seed: int,
) -> Doubles:
    """Logits [rows, classes] by a model that was not trained on the row; 0 for auxiliary rows."""
    logits = np.zeros((len(y), classes))
    own = np.flatnonzero(weights >= 1)
    auxiliary = np.flatnonzero(weights < 1)
    kinds = np.arange(classes)[:, None] == y[own]

    for fit, held_out in cross_validation_folds(y[own], kinds, seed):
        rows = np.concatenate([own[fit], auxiliary])
        weight, bias = fit_multinomial(x[rows], y[rows], weights[rows], strength)
        logits[own[held_out]] = x[own[held_out]] @ weight.T + bias
    return logits
