"""IME: intergroup (us and them), moral (right and wrong, blame, duty), emotion (expressed feeling), other (none)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actors.integrations import Classifier, Integration
from actors.models.settings import ModelSettings, check_local, local_classifier

# In the order of the group's own checkpoints.
OUTPUTS = ("emotion", "intergroup", "moral", "other")
_THREE = OUTPUTS[:3]


@dataclass(frozen=True)
class Settings(ModelSettings):
    backend: Literal["embedding-head", "transformer", "zero-shot", "checkpoint"] = "embedding-head"


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    """Labels above 0.5; a post without any is `other`. A model without `other` gets it from the other three."""
    probabilities = {name: scores[name] for name in _THREE}
    none = 1.0
    for value in probabilities.values():
        none *= 1 - value
    probabilities["other"] = scores.get("other", none)
    labels = {name: int(value > 0.5) for name, value in probabilities.items()}
    if not any(labels.values()):
        labels["other"] = 1
    return {
        **{f"prob_{name}": value for name, value in probabilities.items()},
        **{f"label_{name}": value for name, value in labels.items()},
    }


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """From the columns `emotion`, `intergroup`, `moral`, or `label_emotion` …; other is none of the three."""
    values = {name: row.get(name, row.get(f"label_{name}")) for name in _THREE}
    known = all(value is not None for value in values.values())
    found = {name: None if value is None else float(value) for name, value in values.items()}
    return {**found, "other": float(not any(values.values())) if known else None}


def load(settings: Settings) -> Classifier:
    return local_classifier(settings.backend, settings, INTEGRATION.name, OUTPUTS, _THREE, decide)


def check(settings: Settings) -> None:
    check_local(settings.backend, settings, INTEGRATION.name)


INTEGRATION = Integration(
    name="ml_inference_ime",
    alias="i",
    columns={
        **{f"prob_{name}": "float64" for name in OUTPUTS},
        **{f"label_{name}": "int64" for name in OUTPUTS},
    },
    load=load,
    check=check,
    settings=Settings,
    placement=lambda settings: "model",
    outputs=OUTPUTS,
    targets=targets,
)
