"""Whether a post is about an interaction between groups that are seen as distinct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.integrations import Environment, Integration
from actors.models.contract import LocalModel
from actors.remote.chat import (
    ENVIRONMENT,
    LocalOrLlmSettings,
    chat_remote,
    local_or_llm,
)

if TYPE_CHECKING:
    from actors.remote.protocol import Remote

OUTPUTS = ("intergroup",)


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    """Label 1 from a probability of 0.5."""
    return {"label": int(scores["intergroup"] >= 0.5)}


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Reads the column `label`."""
    label = row.get("label")
    return {"intergroup": None if label is None else float(label)}


def remote(settings: LocalOrLlmSettings, environment: Environment) -> Remote:
    """The LLM that answers with the label."""
    properties = {"label": {"type": "integer", "enum": [0, 1]}}
    return chat_remote(settings, environment, "intergroup", properties)


INTEGRATION = Integration(
    name="ml_inference_intergroup",
    alias="g",
    columns={"label": "int64"},
    settings=LocalOrLlmSettings,
    placement=local_or_llm,
    local_model=LocalModel(OUTPUTS, OUTPUTS, decide),
    remote=remote,
    environment=ENVIRONMENT,
    targets=targets,
)
