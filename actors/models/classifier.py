"""A local model as a Classifier: probabilities become the labels of an integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from actors.integrations import Outcome

if TYPE_CHECKING:
    from actors.models.backends import Model, Outputs

Decide = Callable[[Mapping[str, float]], Mapping[str, Any]]


class ModelClassifier:
    """`decide` takes the probabilities of one text, by output, without those that the model has not."""

    def __init__(self, model: Model, outputs: Outputs, decide: Decide) -> None:
        self.model, self.revision = model.model, model.revision
        self._model, self._names, self._decide = model, outputs.names, decide

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        found = self._model.scores(texts).tolist()
        return [
            self._decide({n: v for n, v in zip(self._names, row, strict=True) if not math.isnan(v)})
            for row in found
        ]
