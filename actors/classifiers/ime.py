"""IME: intergroup (us and them), moral (blame, duty), emotion (expressed feeling), other (none)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actors.integrations import Integration
from actors.models.backends import CommonBackend
from actors.models.contract import LocalModel
from actors.models.settings import ModelSettings

# In the order of the research group's checkpoints.
OUTPUTS = ("emotion", "intergroup", "moral", "other")
_REQUIRED = ("emotion", "intergroup", "moral")


@dataclass(frozen=True)
class Settings(ModelSettings):
    """A local model of any back end."""

    backend: Literal[CommonBackend, "zero-shot", "checkpoint"] = "embedding-head"


def decide(scores: Mapping[str, float]) -> dict[str, Any]:
    """Labels are the outputs above 0.5; a post without any is `other`.

    For a model without the output `other`, its probability is that of none
    of the three.
    """
    probabilities = {name: scores[name] for name in _REQUIRED}
    none_of_them = math.prod(1 - value for value in probabilities.values())
    probabilities["other"] = scores.get("other", none_of_them)

    labels = {name: int(value > 0.5) for name, value in probabilities.items()}
    if not any(labels.values()):
        labels["other"] = 1

    columns: dict[str, Any] = {f"prob_{name}": value for name, value in probabilities.items()}
    columns |= {f"label_{name}": value for name, value in labels.items()}
    return columns


def targets(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Reads the columns `emotion`, `intergroup`, `moral`, or `label_emotion` and so on.

    `other` is known if all three are.
    """
    values = {name: row.get(name, row.get(f"label_{name}")) for name in _REQUIRED}
    found = {name: None if value is None else float(value) for name, value in values.items()}

    all_known = all(value is not None for value in values.values())
    found["other"] = float(not any(values.values())) if all_known else None
    return found


INTEGRATION = Integration(
    name="ml_inference_ime",
    alias="i",
    columns={
        **{f"prob_{name}": "float64" for name in OUTPUTS},
        **{f"label_{name}": "int64" for name in OUTPUTS},
    },
    settings=Settings,
    placement=lambda settings: "model",
    local_model=LocalModel(OUTPUTS, _REQUIRED, decide),
    targets=targets,
)
