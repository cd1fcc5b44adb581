"""Training examples, and whether there are enough of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.models.training.arrays import Doubles, Features
from datasets.errors import ConfigError

# Cross-validation trains on some examples of a class and validates on
# others.
_MIN_PER_CLASS = 2


@dataclass(frozen=True)
class Examples:
    """`features` [texts, features]; `targets` [texts] by output: from 0 to 1, NaN if unknown.

    Texts with a weight below 1 are auxiliary: they are trained on and never
    validated on, because they are data of another kind than the head is
    made for.
    """

    features: Features
    targets: Mapping[str, Doubles]
    weights: Doubles


def check_examples(
    targets: Mapping[str, Doubles],
    weights: Doubles,
    groups: Sequence[Sequence[str]],
    where: str,
) -> None:
    """Raises ConfigError if a class has too few examples to cross-validate.

    `where` names the files. Only texts with a weight of 1 or more count.
    Outputs whose targets are all equal are ignored, because they are not
    learned.
    """
    counts: dict[str, int] = {}
    own = weights >= 1
    for name in learned(targets):
        counts[name] = int((own & (targets[name] > 0)).sum())
        if not any(name in group for group in groups):
            counts[f"not {name}"] = int((own & (targets[name] < 1)).sum())

    few = [f"{name} has {count}" for name, count in counts.items() if count < _MIN_PER_CLASS]
    if few:
        raise ConfigError(
            f"{where}: cross-validation needs at least {_MIN_PER_CLASS} examples of each class "
            f"with a weight of 1 or more, and {', '.join(few)}; label more, or remove those labels"
        )


def learned(targets: Mapping[str, Doubles]) -> list[str]:
    """The outputs that a head can learn: those with at least two different targets."""
    return [name for name, target in targets.items() if len(np.unique(_known(target))) > 1]


def not_learned(targets: Mapping[str, Doubles]) -> list[str]:
    """The outputs that have targets, but all of them equal."""
    return [name for name, target in targets.items() if len(np.unique(_known(target))) == 1]


def _known(target: Doubles) -> Doubles:
    return target[~np.isnan(target)]
