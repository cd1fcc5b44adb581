"""Whether a post is about an interaction between groups that see themselves, or are seen, as distinct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from actors.integrations import Classifier, Environment, Integration, Placement
from actors.llm import ENVIRONMENT, LlmSettings, chat_remote
from actors.models.settings import ModelSettings, check_local, local_classifier

if TYPE_CHECKING:
    from actors.remote import Remote

OUTPUTS = ("intergroup",)


@dataclass(frozen=True)
class Settings(ModelSettings, LlmSettings):
    backend: Literal["embedding-head", "transformer", "zero-shot", "llm"] = "embedding-head"


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    return {"label": int(scores["intergroup"] >= 0.5)}


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    label = row.get("label")
    return {"intergroup": None if label is None else float(label)}


def remote(settings: Settings, environment: Environment) -> Remote:
    return chat_remote(settings, environment, "intergroup", {"label": {"type": "integer", "enum": [0, 1]}})


def placement(settings: Settings) -> Placement:
    return "api" if settings.backend == "llm" else "model"


def load(settings: Settings) -> Classifier:
    return local_classifier(settings.backend, settings, INTEGRATION.name, OUTPUTS, OUTPUTS, decide)


def check(settings: Settings) -> None:
    check_local(settings.backend, settings, INTEGRATION.name)


INTEGRATION = Integration(
    name="ml_inference_intergroup",
    alias="g",
    columns={"label": "int64"},
    load=load,
    check=check,
    settings=Settings,
    placement=placement,
    remote=remote,
    environment=ENVIRONMENT,
    outputs=OUTPUTS,
    targets=targets,
)
