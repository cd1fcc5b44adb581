"""Whether a post is about an interaction between groups that see themselves, or are seen, as distinct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.integrations import Classifier, Environment, Integration
from actors.models.settings import check_local, local_classifier
from actors.remote.chat import ENVIRONMENT, LocalOrLlmSettings, chat_remote, local_or_llm

if TYPE_CHECKING:
    from actors.remote.protocol import Remote

OUTPUTS = ("intergroup",)


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    return {"label": int(scores["intergroup"] >= 0.5)}


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    label = row.get("label")
    return {"intergroup": None if label is None else float(label)}


def remote(settings: LocalOrLlmSettings, environment: Environment) -> Remote:
    return chat_remote(
        settings, environment, "intergroup", {"label": {"type": "integer", "enum": [0, 1]}}
    )


def load(settings: LocalOrLlmSettings) -> Classifier:
    return local_classifier(settings.backend, settings, INTEGRATION.name, OUTPUTS, OUTPUTS, decide)


def check(settings: LocalOrLlmSettings) -> None:
    check_local(settings.backend, settings, INTEGRATION.name)


INTEGRATION = Integration(
    name="ml_inference_intergroup",
    alias="g",
    columns={"label": "int64"},
    load=load,
    check=check,
    settings=LocalOrLlmSettings,
    placement=local_or_llm,
    remote=remote,
    environment=ENVIRONMENT,
    outputs=OUTPUTS,
    targets=targets,
)
