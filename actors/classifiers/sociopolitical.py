"""Whether a post is about politics or social issues, and its political lean in US terms."""

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

LEANS = ("left", "right", "moderate", "unclear")
OUTPUTS = ("sociopolitical", *LEANS)


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    """The likeliest lean; `unclear` if the post is not sociopolitical or the model has no lean."""
    is_sociopolitical = scores["sociopolitical"] >= 0.5
    leans = {name: scores[name] for name in LEANS if name in scores}

    lean = "unclear"
    if is_sociopolitical and leans:
        lean = max(leans, key=lambda name: leans[name])
    return {
        "is_sociopolitical": is_sociopolitical,
        "political_ideology_label": lean,
    }


def complete(labels: dict[str, Any]) -> dict[str, Any]:
    """Makes an LLM's labels consistent: only sociopolitical posts have a lean."""
    if labels["is_sociopolitical"]:
        return labels
    return {**labels, "political_ideology_label": "unclear"}


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Reads `is_sociopolitical`, and for sociopolitical posts `political_ideology_label`."""
    is_sociopolitical = row.get("is_sociopolitical")
    lean = row.get("political_ideology_label")
    has_lean = is_sociopolitical and lean in LEANS

    found = {name: float(name == lean) if has_lean else None for name in LEANS}
    found["sociopolitical"] = None if is_sociopolitical is None else float(is_sociopolitical)
    return found


def unused(row: Mapping[str, Any]) -> str | None:
    """Why a row's lean is ignored, if it is."""
    lean = row.get("political_ideology_label")
    if lean is None:
        return None
    if lean not in LEANS:
        return f"political_ideology_label is {str(lean)[:40]!r}, and not one of {', '.join(LEANS)}"
    if not row.get("is_sociopolitical") and lean != "unclear":
        return (
            "political_ideology_label is given and is_sociopolitical is not true: "
            "only such posts teach a lean"
        )
    return None


def remote(settings: LocalOrLlmSettings, environment: Environment) -> Remote:
    """The LLM that answers with both labels."""
    properties = {
        "is_sociopolitical": {"type": "boolean"},
        "political_ideology_label": {
            "type": "string",
            "enum": list(LEANS),
        },
    }
    return chat_remote(settings, environment, "sociopolitical", properties, complete)


INTEGRATION = Integration(
    name="ml_inference_sociopolitical",
    alias="s",
    columns={
        "is_sociopolitical": "bool",
        "political_ideology_label": "string",
    },
    settings=LocalOrLlmSettings,
    placement=local_or_llm,
    local_model=LocalModel(OUTPUTS, OUTPUTS[:1], decide, groups=(LEANS,)),
    remote=remote,
    environment=ENVIRONMENT,
    targets=targets,
    unused=unused,
)
