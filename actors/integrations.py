"""The registry of integrations.

To add one, write a module in `actors/classifiers/` and add a line to
`_REGISTRY`. Columns, tables, queues, command-line choices, settings and
status follow from it. Nothing heavy is imported here, because `--help`
reads the registry too.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from actors.contract import Classifier
from actors.models.contract import LocalModel
from datasets.boundary.secrets import remember_environment
from datasets.errors import ConfigError

if TYPE_CHECKING:
    from actors.remote.protocol import Remote
    from datasets.labels.reading import Labels


class Environment(dict[str, str]):
    """Environment variables of the driver on their way to the actors.

    Some are secrets, so its representation shows names only.
    """

    def __repr__(self) -> str:
        return f"Environment of {', '.join(sorted(self)) or 'nothing'}"

    __str__ = __repr__


# The resource that an actor of the integration mostly uses: one processor,
# the device of a local model (a GPU if there is one), or the quota of a
# remote API.
Placement = Literal["cpu", "model", "api"]


@dataclass(frozen=True)
class NoSettings:
    """For an integration that has no settings."""


@dataclass(frozen=True)
class Integration:
    """One classifier of posts, and the table of its labels.

    `columns` are its own label columns: name → float64, int64, bool or
    string. `settings` is a frozen dataclass: its fields are the keys and
    defaults of the integration's table in `backfill.toml`.

    `placement` decides from the settings what labels the posts:

    - `cpu`: the classifier that `make_classifier` returns. It runs once in
      each actor, and imports what it needs there.
    - `model`: the back end that the settings name, for the `local_model`
      that is declared here.
    - `api`: the API that `remote` returns, given the settings and the
      environment variables named in `environment`. It raises ConfigError if
      a variable that it needs is not set.

    `targets` returns what a row of hand labels teaches each output of the
    local model: a number from 0 to 1, or None for nothing. `unused` returns
    why a label in such a row is ignored, or None if none is.
    """

    name: str
    alias: str
    columns: Mapping[str, str]
    settings: type = NoSettings
    placement: Callable[[Any], Placement] = lambda settings: "cpu"
    make_classifier: Callable[[], Classifier] | None = None
    local_model: LocalModel | None = None
    remote: Callable[[Any, Environment], Remote] | None = None
    environment: tuple[str, ...] = ()
    targets: Callable[[Mapping[str, Any]], Mapping[str, float | None]] | None = None
    unused: Callable[[Mapping[str, Any]], str | None] | None = None

    def check_settings(self, settings: Any) -> None:
        """Raises ConfigError if the integration cannot run here with these settings.

        It runs in the driver before anything starts, and loads no model.
        """
        placement = self.placement(settings)
        if placement == "api" and self.remote:
            self.remote(settings, self.read_environment())
        if placement == "model":
            from actors.models.backends import check_model

            check_model(settings.backend, settings, self.name)

    def load(self, settings: Any) -> Classifier:
        """Loads the classifier that runs in this process.

        Raises ConfigError if it cannot.
        """
        if self.placement(settings) == "model":
            from actors.models.local_classifier import load_classifier

            assert self.local_model
            return load_classifier(settings.backend, settings, self.name, self.local_model)

        if self.make_classifier is None:
            raise ConfigError("this integration has no model of its own; it asks an API")
        return self.make_classifier()

    def read_environment(self) -> Environment:
        """The integration's environment variables that are set."""
        found = Environment(
            {name: os.environ[name] for name in self.environment if os.environ.get(name)}
        )
        remember_environment(found)
        return found

    @property
    def labels(self) -> Labels:
        from datasets.labels.reading import Labels
        from datasets.schemas import label_schema

        return Labels(self.name, label_schema(self.columns))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of its local model, if it has one."""
        return self.local_model.outputs if self.local_model else ()

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The mutually exclusive outputs of its local model."""
        return self.local_model.groups if self.local_model else ()


# The registry: one line per integration, in the order in which commands
# show them.
_REGISTRY = (
    "actors.classifiers.perspective",
    "actors.classifiers.sociopolitical",
    "actors.classifiers.ime",
    "actors.classifiers.valence",
    "actors.classifiers.intergroup",
)


@functools.cache
def _registry() -> tuple[Integration, ...]:
    return tuple(importlib.import_module(module).INTEGRATION for module in _REGISTRY)


def integrations() -> dict[str, Integration]:
    """Integrations by name, in the order of the registry."""
    return {integration.name: integration for integration in _registry()}


def resolve(name: str) -> Integration:
    """Finds an integration by its name, with or without `ml_inference_`, or by its alias.

    Raises ConfigError if there is none.
    """
    for integration in _registry():
        short = integration.name.removeprefix("ml_inference_")
        if name in (integration.name, short, integration.alias):
            return integration

    known = ", ".join(f"{i.name} ({i.alias})" for i in _registry())
    raise ConfigError(f"there is no integration {name!r}; the integrations are {known}")
