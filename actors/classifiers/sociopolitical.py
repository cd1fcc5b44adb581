"""Whether a post is about politics or social issues, and its lean in terms of the United States."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.integrations import Classifier, Environment, Integration
from actors.models.settings import check_local, local_classifier
from actors.remote.chat import ENVIRONMENT, LocalOrLlmSettings, chat_remote, local_or_llm

if TYPE_CHECKING:
    from actors.remote.protocol import Remote

LEANS = ("left", "right", "moderate", "unclear")
OUTPUTS = ("sociopolitical", *LEANS)


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    """The likeliest lean; unclear where the post is not sociopolitical, or the model has no lean."""
    about = scores["sociopolitical"] >= 0.5
    leans = {name: scores[name] for name in LEANS if name in scores}
    lean = max(leans, key=lambda name: leans[name]) if about and leans else "unclear"
    return {"is_sociopolitical": about, "political_ideology_label": lean}


def complete(labels: dict[str, Any]) -> dict[str, Any]:
    return (
        labels if labels["is_sociopolitical"] else {**labels, "political_ideology_label": "unclear"}
    )


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What a labelled row teaches each output; None where it says nothing."""
    about, lean = row.get("is_sociopolitical"), row.get("political_ideology_label")
    known = about and lean in LEANS
    return {
        "sociopolitical": None if about is None else float(about),
        **{name: float(name == lean) if known else None for name in LEANS},
    }


def unused(row: Mapping[str, Any]) -> str | None:
    about, lean = row.get("is_sociopolitical"), row.get("political_ideology_label")
    if lean is None:
        return None
    if lean not in LEANS:
        return f"political_ideology_label is {str(lean)[:40]!r}, and not one of {', '.join(LEANS)}"
    if not about and lean != "unclear":
        return "political_ideology_label is given and is_sociopolitical is not true: only such posts teach a lean"
    return None


def remote(settings: LocalOrLlmSettings, environment: Environment) -> Remote:
    properties = {
        "is_sociopolitical": {"type": "boolean"},
        "political_ideology_label": {"type": "string", "enum": list(LEANS)},
    }
    return chat_remote(settings, environment, "sociopolitical", properties, complete)


def load(settings: LocalOrLlmSettings) -> Classifier:
    return local_classifier(
        settings.backend, settings, INTEGRATION.name, OUTPUTS, OUTPUTS[:1], decide
    )


def check(settings: LocalOrLlmSettings) -> None:
    check_local(settings.backend, settings, INTEGRATION.name)


INTEGRATION = Integration(
    name="ml_inference_sociopolitical",
    alias="s",
    columns={"is_sociopolitical": "bool", "political_ideology_label": "string"},
    load=load,
    check=check,
    settings=LocalOrLlmSettings,
    placement=local_or_llm,
    remote=remote,
    environment=ENVIRONMENT,
    outputs=OUTPUTS,
    groups=(LEANS,),
    targets=targets,
    unused=unused,
)
