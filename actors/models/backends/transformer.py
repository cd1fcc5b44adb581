"""`transformer`: any sequence-classification model, by hub id and revision, or by folder."""

from __future__ import annotations

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

_NAME = "transformer"


class Transformer(Backend):
    """Scores are the model's own probabilities; `labels` maps its labels to outputs."""

    def __init__(
        self,
        settings: ModelSettings,
        integration: str,
        local: LocalModel,
    ) -> None:
        from actors.models.pretrained import TextRunner, load_pretrained
        from actors.models.torch_runtime import set_up_torch

        self.model = required_model(settings, _NAME, integration)
        device = set_up_torch(settings)
        loaded = load_pretrained(
            "AutoModelForSequenceClassification",
            self.model,
            settings.revision,
            device,
        )
        self.revision = loaded.revision
        self._network = loaded.network
        self._sigmoid = settings.activation == "sigmoid"
        self._runner = TextRunner(loaded.tokenizer, self._forward, device, settings)

        labels = [str(label) for _, label in sorted(self._network.config.id2label.items())]
        mapping = settings.labels or {name: name for name in labels if name in local.outputs}
        _check_mapping(self.model, labels, mapping, local)
        self._sources = [labels.index(label) for label in mapping]
        self._columns = OutputColumns(local, mapping.values())

    @classmethod
    def check(cls, settings: ModelSettings, integration: str) -> None:
        required_model(settings, _NAME, integration)

    def scores(self, texts: Sequence[str]) -> Floats:
        found = self._runner.run(texts)
        return self._columns.arrange(found[:, self._sources] if len(found) else found)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self._network(input_ids=ids, attention_mask=mask).logits.float()
        return logits.sigmoid() if self._sigmoid else logits.softmax(dim=1)


def _check_mapping(
    model: str,
    labels: Sequence[str],
    mapping: Mapping[str, str],
    local: LocalModel,
) -> None:
    for label, output in mapping.items():
        if label not in labels:
            raise ConfigError(f"labels: {model} has no label {label!r}; it has {', '.join(labels)}")
        check_output(local, output, "labels")

    outputs = set(mapping.values())
    require_outputs(local, outputs, f"labels of {model} in backfill.toml")


BACKEND = Transformer
