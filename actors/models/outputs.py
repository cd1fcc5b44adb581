"""How what a model computes maps to the outputs of an integration."""

from __future__ import annotations

from collections.abc import Container, Iterable

import numpy as np

from actors.models.arrays import Floats
from actors.models.contract import LocalModel
from datasets.errors import ConfigError


def require_outputs(local: LocalModel, present: Container[str], where: str) -> None:
    """Raises ConfigError if a required output is not among those `present` in `where`."""
    for name in local.required:
        if name not in present:
            raise ConfigError(
                f"{where}: the output {name!r} is missing; "
                f"the outputs are {', '.join(local.outputs)}"
            )


def check_output(local: LocalModel, name: str, where: str) -> None:
    """Raises ConfigError if the integration has no output of this name."""
    if name not in local.outputs:
        raise ConfigError(f"{where}: there is no output {name!r}; use {', '.join(local.outputs)}")


class OutputColumns:
    """Arranges a model's columns in the order of the integration's outputs."""

    def __init__(self, local: LocalModel, names: Iterable[str]) -> None:
        """`names` are the outputs that the model's columns stand for, in their order."""
        self._columns = [local.outputs.index(name) for name in names]
        self._width = len(local.outputs)

    def arrange(self, found: Floats) -> Floats:
        """[rows, outputs] from [rows, the model's columns]; NaN for outputs it lacks."""
        arranged = np.full((len(found), self._width), np.nan, np.float32)
        if len(found):
            arranged[:, self._columns] = found
        return arranged
