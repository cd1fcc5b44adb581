"""A local model as a `Classifier`: turns its probabilities into an integration's labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.contract import Outcome
from actors.models.contract import Backend, LocalModel

if TYPE_CHECKING:
    from actors.models.settings import ModelSettings


def load_classifier(
    backend: str,
    settings: ModelSettings,
    integration: str,
    local: LocalModel,
) -> LocalClassifier:
    """Loads the model that the settings name.

    Raises ConfigError if it cannot be used.
    """
    from actors.models.backends import load_model

    return LocalClassifier(load_model(backend, settings, integration, local), local)


class LocalClassifier:
    """Applies the integration's `decide` to the probabilities of each text."""

    def __init__(self, backend: Backend, local: LocalModel) -> None:
        self.model = backend.model
        self.revision = backend.revision
        self.backend = backend
        self._local = local

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        rows: list[list[float]] = self.backend.scores(texts).tolist()
        return [self._outcome(row) for row in rows]

    def _outcome(self, row: Sequence[float]) -> Outcome:
        scores = {
            name: score
            for name, score in zip(self._local.outputs, row, strict=True)
            if not math.isnan(score)
        }
        return self._local.decide(scores)
