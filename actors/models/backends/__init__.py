"""The registry of back ends for local models.

To add one, write a module here with a subclass of `Backend`, assign the
class to `BACKEND` in that module, and add a line to `_REGISTRY`. A name in
`CommonBackend` makes it available to every integration with a local model;
an integration may also list it in its own settings.

Modules are imported only when their back end is used, and import inference
libraries such as torch only when a model is loaded, so that the driver
stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from actors.models.contract import Backend, LocalModel

if TYPE_CHECKING:
    from actors.models.settings import ModelSettings

# Back ends that every integration with a local model offers.
CommonBackend = Literal["embedding-head", "transformer"]

# Name in `backfill.toml` → module.
_REGISTRY = {
    "embedding-head": "actors.models.backends.embedding_head",
    "transformer": "actors.models.backends.transformer",
    "zero-shot": "actors.models.backends.zero_shot",
    "checkpoint": "actors.models.backends.checkpoint",
}


def backend_names() -> tuple[str, ...]:
    """Every back end's name, in the order of the registry."""
    return tuple(_REGISTRY)


def check_model(backend: str, settings: ModelSettings, integration: str) -> None:
    """Checks the settings and files of a back end without loading a model.

    Raises ConfigError.
    """
    _backend(backend).check(settings, integration)


def load_model(
    backend: str,
    settings: ModelSettings,
    integration: str,
    local: LocalModel,
) -> Backend:
    """Loads the model that the settings name.

    Raises ConfigError if it cannot be used.
    """
    return _backend(backend)(settings, integration, local)


def _backend(name: str) -> type[Backend]:
    found: type[Backend] = importlib.import_module(_REGISTRY[name]).BACKEND
    return found
