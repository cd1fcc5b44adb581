"""What `backfill.toml` may say about a local model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from datasets.boundary.settings import check_numbers
from datasets.errors import ConfigError

if TYPE_CHECKING:
    from actors.integrations import Classifier
    from actors.models.classifier import Decide


@dataclass(frozen=True)
class ModelSettings:
    """One table for all back ends; loading says what a back end needs of it.

    `model` is a hub id or a folder, `revision` a commit, tag or branch of the hub; for the backend
    embedding-head they name the sentence encoder, which otherwise is the one that comes along.
    `labels` maps the model's own labels to outputs of the integration, `hypotheses` outputs to
    sentences for a zero-shot model. `token_budget` is the padded tokens of one forward pass.
    `gpu` is the part of a GPU that one actor takes, at most a whole one; `threads` what one takes
    without a GPU.
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
            self, ModelSettings, zero=("token_budget",), most={"gpu": 1.0, "threads": 4096}
        )
        if self.max_tokens < 8:
            raise ValueError("max_tokens must be at least 8")


def local_classifier(
    backend: str,
    settings: ModelSettings,
    integration: str,
    names: Sequence[str],
    required: Sequence[str],
    decide: Decide,
) -> Classifier:
    """Loads the model that the settings name. Raises ConfigError for what does not load or fit."""
    from actors.models.backends import Outputs, load_model
    from actors.models.classifier import ModelClassifier

    outputs = Outputs(tuple(names), tuple(required))
    return ModelClassifier(load_model(backend, settings, integration, outputs), outputs, decide)


def check_local(backend: str, settings: ModelSettings, integration: str) -> None:
    """What can be said without loading a model: the files that the settings name are there."""
    if backend == "llm":
        return
    from actors.models.heads import built_in

    if backend == "embedding-head":
        head = settings.heads or str(built_in(integration))
        if not os.path.exists(head):
            raise ConfigError(
                f"there is no head {head}; check heads in backfill.toml, or train one"
            )
    elif not settings.model:
        raise ConfigError(
            f'the backend "{backend}" of {integration} needs a model in backfill.toml'
        )
    if backend == "checkpoint" and not os.path.exists(settings.checkpoint or ""):
        raise ConfigError(
            f"there is no checkpoint {settings.checkpoint}; check checkpoint in backfill.toml"
        )
