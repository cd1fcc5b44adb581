"""The two sides of a local model: what an integration needs, and what a back end provides."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.models.arrays import Floats
    from actors.models.settings import ModelSettings

# Probabilities by output → values of the integration's label columns.
Decide = Callable[[Mapping[str, float]], Mapping[str, Any]]


@dataclass(frozen=True)
class LocalModel:
    """What an integration needs of a local model, whichever back end runs it.

    `outputs` are the classes whose probabilities the model estimates. Every
    model must provide the `required` ones. `groups` are sets of mutually
    exclusive outputs. `decide` turns one text's probabilities into label
    columns; outputs that the model does not have are missing from its
    argument.
    """

    outputs: tuple[str, ...]
    required: tuple[str, ...]
    decide: Decide
    groups: tuple[tuple[str, ...], ...] = ()


class Backend(abc.ABC):
    """A model loaded by one back end.

    `model` and `revision` identify it in label rows: whatever changes the
    scores must change them.
    """

    model: str
    revision: str

    @abc.abstractmethod
    def __init__(
        self,
        settings: ModelSettings,
        integration: str,
        local: LocalModel,
    ) -> None:
        """Loads the model.

        Raises ConfigError, with an instruction, if it cannot be used.
        """

    @classmethod
    @abc.abstractmethod
    def check(cls, settings: ModelSettings, integration: str) -> None:
        """Checks settings and files without loading anything.

        Raises ConfigError.

        It runs in the driver, so it must not import torch or another
        inference library.
        """

    @abc.abstractmethod
    def scores(self, texts: Sequence[str]) -> Floats:
        """Returns probabilities as float32 [texts, outputs]; NaN for outputs the model lacks."""
