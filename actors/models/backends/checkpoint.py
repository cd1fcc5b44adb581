"""`checkpoint`: a fine-tuned encoder with a linear classifier, in one state dict.

Its keys are `model.*`, `classifier.weight` and `classifier.bias`. The
outputs of the classifier are those of the integration, in their order,
through a sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.models.arrays import Floats
from actors.models.contract import Backend, LocalModel
from actors.models.hashing import file_sha256
from actors.models.settings import ModelSettings, required_model
from datasets.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from actors.models.torch_runtime import Device

_NAME = "checkpoint"
_PADDED_LENGTH = 512
_CLASSIFIER = ("classifier.weight", "classifier.bias")


class Checkpoint(Backend):
    """The pooling `auto` is the encoder's own pooler if it has one, or else `padded-mean`.

    `padded-mean` is the mean over all 512 positions of a padded input,
    padding included. Models that were trained that way need it to give the
    same scores. It is slow: every post costs 512 tokens.
    """

    def __init__(
        self,
        settings: ModelSettings,
        integration: str,
        local: LocalModel,
    ) -> None:
        from actors.models.pretrained import TextRunner, load_pretrained
        from actors.models.tokenization import pad_token_id
        from actors.models.torch_runtime import set_up_torch

        model, path = _checked_files(settings)
        state = _read_state(path)
        device = set_up_torch(settings)
        loaded = load_pretrained("AutoModel", model, settings.revision, device)
        _load_encoder(loaded.network, state, path, model)
        self._network = loaded.network
        self._weight, self._bias = _classifier(state, path, local, device)

        self._pooling = _pooling(settings, loaded.network)
        self.model = f"{model} + {path.name}"
        self.revision = f"{file_sha256(path)[:12]} {self._pooling}"

        self._pad_id = pad_token_id(loaded.tokenizer)
        max_tokens = min(settings.max_tokens, _PADDED_LENGTH)
        self._runner = TextRunner(
            loaded.tokenizer,
            self._forward,
            device,
            settings,
            max_tokens,
        )

    @classmethod
    def check(cls, settings: ModelSettings, integration: str) -> None:
        required_model(settings, _NAME, integration)
        if not settings.checkpoint or not Path(settings.checkpoint).exists():
            raise _no_checkpoint(settings.checkpoint)

    def scores(self, texts: Sequence[str]) -> Floats:
        return self._runner.run(texts)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "padded-mean":
            ids, mask = _pad_to_full_length(ids, mask, self._pad_id)

        found = self._network(input_ids=ids, attention_mask=mask)
        pooled = _pool(found, mask, self._pooling)
        return (pooled.float() @ self._weight.T + self._bias).sigmoid()


def _checked_files(settings: ModelSettings) -> tuple[str, Path]:
    if not settings.model or not settings.checkpoint:
        raise ConfigError(
            f'the backend "{_NAME}" needs a model and a checkpoint file in backfill.toml'
        )
    return settings.model, Path(settings.checkpoint)


def _no_checkpoint(path: object) -> ConfigError:
    return ConfigError(f"there is no checkpoint {path}; check checkpoint in backfill.toml")


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    state: Mapping[str, torch.Tensor]
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise _no_checkpoint(path) from error
    except Exception as error:  # unpickling other files raises errors of any kind
        raise ConfigError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); export it again"
        ) from error

    for key in _CLASSIFIER:
        if key not in state:
            raise ConfigError(
                f"the checkpoint {path} has no {key}; it must hold model.* and classifier.*"
            )
    return state


def _load_encoder(
    network: Any,
    state: Mapping[str, torch.Tensor],
    path: Path,
    model: str,
) -> None:
    encoder = {
        key.removeprefix("model."): value
        for key, value in state.items()
        if key.startswith("model.")
    }
    missing, unexpected = network.load_state_dict(encoder, strict=False)

    # Older versions of transformers saved `position_ids`, newer ones
    # compute them.
    if unexpected or any("position_ids" not in key for key in missing):
        key = (missing or unexpected)[0]
        raise ConfigError(f"{path} does not fit the encoder {model} ({key}); check model")


def _classifier(
    state: Mapping[str, torch.Tensor],
    path: Path,
    local: LocalModel,
    device: Device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [outputs, size] and bias [outputs], float32 on the device."""
    weight, bias = (state[key] for key in _CLASSIFIER)
    if len(bias) != len(local.outputs):
        names = ", ".join(local.outputs)
        raise ConfigError(f"{path} has {len(bias)} outputs, not {len(local.outputs)} ({names})")
    return weight.float().to(device.device), bias.float().to(device.device)


def _pooling(settings: ModelSettings, network: Any) -> str:
    if settings.pooling != "auto":
        return settings.pooling
    has_pooler = getattr(network, "pooler", None) is not None
    return "pooler" if has_pooler else "padded-mean"


def _pad_to_full_length(
    ids: torch.Tensor, mask: torch.Tensor, pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.functional import pad

    missing = (0, _PADDED_LENGTH - ids.shape[1])
    return pad(ids, missing, value=pad_id), pad(mask, missing, value=0)


def _pool(found: Any, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """[rows, size] from the output of an encoder."""
    from actors.models.torch_runtime import masked_mean

    pooled: torch.Tensor
    if pooling == "pooler":
        pooled = found.pooler_output
    elif pooling == "mean":
        pooled = masked_mean(found.last_hidden_state, mask)
    else:
        pooled = found.last_hidden_state.mean(dim=1)
    return pooled


BACKEND = Checkpoint
