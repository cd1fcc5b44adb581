"""`zero-shot`: a natural-language-inference model, and a hypothesis for each output."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from actors.models.arrays import Floats
from actors.models.contract import Backend, LocalModel
from actors.models.outputs import (
    OutputColumns,
    check_output,
    require_outputs,
)
from actors.models.settings import ModelSettings, required_model
from datasets.errors import ConfigError

if TYPE_CHECKING:
    import torch

_NAME = "zero-shot"
# How the labels of NLI models begin.
_ENTAILMENT = "entail"
_CONTRADICTION = "contradict"


class ZeroShot(Backend):
    """The score of an output is the probability that a text entails its hypothesis."""

    def __init__(
        self,
        settings: ModelSettings,
        integration: str,
        local: LocalModel,
    ) -> None:
        from actors.models.pretrained import TextRunner, load_pretrained
        from actors.models.torch_runtime import set_up_torch

        self.model = _checked_model(settings, local)
        device = set_up_torch(settings)
        loaded = load_pretrained(
            "AutoModelForSequenceClassification",
            self.model,
            settings.revision,
            device,
        )
        self.revision = f"{loaded.revision} hypotheses {_recipe(settings.hypotheses)}"
        self._network = loaded.network
        self._classes = _compared_classes(self.model, self._network.config.id2label)
        self._runner = TextRunner(loaded.tokenizer, self._forward, device, settings)

        self._hypotheses = list(settings.hypotheses.values())
        self._columns = OutputColumns(local, settings.hypotheses)

    @classmethod
    def check(cls, settings: ModelSettings, integration: str) -> None:
        required_model(settings, _NAME, integration)

    def scores(self, texts: Sequence[str]) -> Floats:
        count = len(self._hypotheses)
        premises = [text for text in texts for _ in range(count)]
        found = self._runner.run(premises, self._hypotheses * len(texts))
        return self._columns.arrange(found.reshape(len(texts), count))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self._network(input_ids=ids, attention_mask=mask).logits.float()
        return logits[:, self._classes].softmax(dim=1)[:, :1]


def _checked_model(settings: ModelSettings, local: LocalModel) -> str:
    if not settings.model or not settings.hypotheses:
        raise ConfigError(f'the backend "{_NAME}" needs a model and hypotheses in backfill.toml')
    require_outputs(local, settings.hypotheses, "hypotheses in backfill.toml")
    for name in sorted(settings.hypotheses):
        check_output(local, name, "hypotheses")
    return settings.model


def _recipe(hypotheses: Mapping[str, str]) -> str:
    """Part of the revision: with other hypotheses it is another classifier."""
    return hashlib.sha256(repr(sorted(hypotheses.items())).encode()).hexdigest()[:12]


def _compared_classes(model: str, labels: Mapping[int, str]) -> list[int]:
    """The class of entailment, then those it is compared with.

    With three labels, neutral is left out, as is usual for independent
    hypotheses.
    """
    names = {index: str(label).lower() for index, label in labels.items()}
    entailment = [index for index, name in names.items() if name.startswith(_ENTAILMENT)]
    if not entailment:
        raise ConfigError(
            f"{model} has no label 'entailment' ({', '.join(names.values())}); use an NLI model"
        )

    contradiction = [index for index, name in names.items() if name.startswith(_CONTRADICTION)]
    others = [index for index in names if index != entailment[0]]
    return [entailment[0], *(contradiction or others)]


BACKEND = ZeroShot
