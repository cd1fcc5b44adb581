"""The settings of local models in `backfill.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from datasets.boundary.settings import check_numbers
from datasets.errors import ConfigError


@dataclass(frozen=True)
class ModelSettings:
    """One table for all back ends. Each back end checks what it needs of it.

    `model` is a hub id or a folder, and `revision` a commit, tag or branch
    of the hub. For the back end embedding-head they name the sentence
    encoder; the default is the bundled one.

    `labels` maps the model's own labels to outputs of the integration.
    `hypotheses` maps outputs to sentences, for a zero-shot model.

    `token_budget` is the number of padded tokens of one forward pass, 0 for
    a default that suits the device. `gpu` is the share of a GPU that one
    actor reserves, at most 1; `threads` is the number of CPU threads that
    it uses without a GPU.
    """

    model: str | None = None
    revision: str | None = None
    heads: str | None = None
    checkpoint: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    activation: Literal["sigmoid", "softmax"] = "softmax"
    hypotheses: Mapping[str, str] = field(default_factory=dict)
    pooling: Literal["auto", "mean", "padded-mean"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_tokens: int = 512
    token_budget: int = 0
    gpu: float = 1.0
    threads: int = 1

    def __post_init__(self) -> None:
        check_numbers(
            self,
            ModelSettings,
            zero=("token_budget",),
            most={"gpu": 1.0, "threads": 4096},
        )
        if self.max_tokens < 8:
            raise ValueError("max_tokens must be at least 8")


def required_model(settings: ModelSettings, backend: str, integration: str) -> str:
    """The setting `model`. Raises ConfigError if it is not set."""
    if not settings.model:
        raise ConfigError(
            f'the backend "{backend}" of {integration} needs a model in backfill.toml'
        )
    return settings.model
