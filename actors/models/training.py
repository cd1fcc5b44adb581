"""Training linear heads from hand labels: cross-validated, calibrated, the same from the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

from actors.models.heads import Head
from datasets.errors import ConfigError

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

# Inverse strengths of regularisation that cross-validation chooses from.
_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
_FOLDS = 5
# Cross-validation learns a class from some of its examples and is judged on the others.
_LEAST = 2
_ITERATIONS = 2000


@dataclass(frozen=True)
class Examples:
    """`targets`: output → what each text teaches it, from 0 to 1, NaN for nothing.

    Texts with a weight below 1 help to train and are never validated on: they stand for data of
    another kind than the head is made for.
    """

    features: npt.NDArray[np.float32]
    targets: Mapping[str, Floats]
    weights: Floats


@dataclass(frozen=True)
class Trained:
    """A head, and for each output the calibrated scores that texts got when they were not trained on."""

    head: Head
    strengths: Mapping[str, float]
    validated: Mapping[str, Floats]


def check_examples(
    targets: Mapping[str, Floats], weights: Floats, groups: Sequence[Sequence[str]], where: str
) -> None:
    """Raises ConfigError where there are too few examples of a class to cross-validate. `where` names the files.

    Only texts with a weight of 1 or more count. Outputs whose targets are all the same are not learnt.
    """
    own = weights >= 1
    few = {}
    for name in _learnt(targets):
        grouped = any(name in group for group in groups)
        few[name] = int((own & (targets[name] > 0)).sum())
        if not grouped:
            few[f"not {name}"] = int((own & (targets[name] < 1)).sum())
    few = {name: count for name, count in few.items() if count < _LEAST}
    if few:
        counts = ", ".join(f"{name} has {count}" for name, count in few.items())
        raise ConfigError(
            f"{where}: cross-validation needs at least {_LEAST} examples of each class with a weight of 1 or more, "
            f"and {counts}; label more, or take those labels out"
        )


def _learnt(targets: Mapping[str, Floats]) -> list[str]:
    return [
        name for name, target in targets.items() if len(np.unique(target[~np.isnan(target)])) > 1
    ]


def not_learnt(targets: Mapping[str, Floats]) -> list[str]:
    """Outputs that some texts have a target for, but all of them the same."""
    learnt = _learnt(targets)
    return [
        name
        for name, target in targets.items()
        if name not in learnt and not np.isnan(target).all()
    ]


def train(
    examples: Examples,
    groups: Sequence[Sequence[str]],
    layers: Sequence[int],
    encoder_sha256: str,
    seed: int,
) -> Trained:
    """One logistic regression an output, one multinomial a group. Outputs that nothing is known of are left out."""
    weights: dict[str, Floats] = {}
    biases: dict[str, float] = {}
    strengths: dict[str, float] = {}
    validated: dict[str, Floats] = {}
    known = _learnt(examples.targets)
    in_groups = {name for group in groups for name in group}
    for name in known:
        if name not in in_groups:
            weight, bias, strengths[name], validated[name] = _binary(examples, name, seed)
            weights[name], biases[name] = weight, bias
    kept = [tuple(name for name in group if name in known) for group in groups]
    for group in kept:
        if len(group) > 1:
            matrix, intercepts, strength, scores = _multinomial(examples, group, seed)
            for index, name in enumerate(group):
                weights[name], biases[name] = matrix[index], float(intercepts[index])
                strengths[name], validated[name] = strength, scores[:, index]
    names = tuple(name for name in examples.targets if name in weights)
    head = Head(
        names,
        tuple(group for group in kept if len(group) > 1),
        tuple(layers),
        encoder_sha256,
        np.stack([weights[name] for name in names]).astype(np.float32),
        np.array([biases[name] for name in names], np.float32),
    )
    return Trained(head, strengths, validated)


def _binary(examples: Examples, name: str, seed: int) -> tuple[Floats, float, float, Floats]:
    target = examples.targets[name]
    rows = np.flatnonzero(~np.isnan(target))
    x, y, w = examples.features[rows], target[rows], examples.weights[rows]
    tried = {strength: _validate_binary(x, y, w, strength, seed) for strength in _STRENGTHS}
    valid = w >= 1
    losses = {
        strength: _loss(y[valid], _sigmoid(scores[valid])) for strength, scores in tried.items()
    }
    best = min(losses, key=lambda strength: losses[strength])
    slope, shift = _platt(tried[best][valid], y[valid])
    model = _fit_soft(x, y, w, best)
    scores = np.full(len(target), np.nan)
    scores[rows[valid]] = _sigmoid(slope * tried[best][valid] + shift)
    return slope * model.coef_[0], float(slope * model.intercept_[0] + shift), best, scores


def _validate_binary(
    x: npt.NDArray[np.float32], y: Floats, w: Floats, strength: float, seed: int
) -> Floats:
    """The logit of each row by a model that has not seen it; NaN for rows that only help."""
    logits = np.full(len(y), np.nan)
    own, help_ = np.flatnonzero(w >= 1), np.flatnonzero(w < 1)
    sides = np.stack([y[own] > 0, y[own] < 1])
    for fit, held in _folds((y[own] >= 0.5).astype(int), sides, seed):
        rows = np.concatenate([own[fit], help_])
        logits[own[held]] = _fit_soft(x[rows], y[rows], w[rows], strength).decision_function(
            x[own[held]]
        )
    return logits


def _fit_soft(
    x: npt.NDArray[np.float32], y: Floats, w: Floats, strength: float
) -> LogisticRegression:
    """A target between 0 and 1 is a row of each class, weighted by it."""
    twice = np.concatenate([x, x])
    classes = np.concatenate([np.ones(len(y)), np.zeros(len(y))])
    weights = np.concatenate([w * y, w * (1 - y)])
    used = weights > 0
    return LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(
        twice[used], classes[used], weights[used]
    )


def _multinomial(
    examples: Examples, group: Sequence[str], seed: int
) -> tuple[Floats, Floats, float, Floats]:
    table = np.stack([examples.targets[name] for name in group], axis=1)
    rows = np.flatnonzero(~np.isnan(table).any(axis=1) & (np.nan_to_num(table).sum(axis=1) > 0))
    x, y, w = examples.features[rows], table[rows].argmax(axis=1), examples.weights[rows]
    own, help_ = np.flatnonzero(w >= 1), np.flatnonzero(w < 1)
    tried: dict[float, Floats] = {}
    for strength in _STRENGTHS:
        logits = np.zeros((len(y), len(group)))
        for fit, held in _folds(y[own], np.arange(len(group))[:, None] == y[own], seed):
            chosen = np.concatenate([own[fit], help_])
            weight, bias = _fit_group(x[chosen], y[chosen], w[chosen], strength)
            logits[own[held]] = x[own[held]] @ weight.T + bias
        tried[strength] = logits[own]
    losses = {strength: _group_loss(y[own], logits) for strength, logits in tried.items()}
    best = min(losses, key=lambda strength: losses[strength])
    heats = np.geomspace(0.3, 5, 60)
    heat = min(heats, key=lambda value: _group_loss(y[own], tried[best] / value))
    weight, bias = _fit_group(x, y, w, best)
    scores = np.full((len(table), len(group)), np.nan)
    scores[rows[own]] = _softmax(tried[best] / heat)
    return weight / heat, bias / heat, best, scores


def _fit_group(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], w: Floats, strength: float
) -> tuple[Floats, Floats]:
    """A row of weights and a bias for each class. Of two classes scikit-learn gives one row, their difference."""
    model = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(x, y, w)
    if len(model.classes_) > 2:
        return model.coef_, model.intercept_
    half = model.coef_[0] / 2, model.intercept_[0] / 2
    return np.stack([-half[0], half[0]]), np.array([-half[1], half[1]])


def _folds(
    classes: npt.NDArray[np.int64], kinds: Bits, seed: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Rows to learn from and rows to be judged on. Each of `kinds` (kind, row) is among those to learn from."""
    folds = min(_FOLDS, len(classes))
    few = np.bincount(classes).min() < folds or len(np.unique(classes)) < 2
    splitter = (KFold if few else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    found = list(splitter.split(np.zeros(len(classes)), classes))
    if all(kinds[:, fit].any(axis=1).all() for fit, _ in found):
        return found
    # Chance has put all of a rare kind into one fold.
    rarest = kinds[kinds.sum(axis=1).argmin()]
    counts = np.bincount(classes) if len(kinds) > 2 else np.array([rarest.sum()])
    splitter = StratifiedKFold(min(_FOLDS, int(counts.min())), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(classes)), classes if len(kinds) > 2 else rarest))


def _platt(logits: Floats, y: Floats) -> tuple[float, float]:
    """Slope and shift that make the sigmoid of held-out logits a probability."""
    model = _fit_soft(logits[:, None].astype(np.float32), y, np.ones(len(y)), 1e6)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _loss(y: Floats, p: Floats) -> float:
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def _group_loss(y: npt.NDArray[np.int64], logits: Floats) -> float:
    return float(-np.log(np.clip(_softmax(logits)[np.arange(len(y)), y], 1e-9, 1)).mean())
