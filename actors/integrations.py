"""The registry of integrations. A new one is a file in `actors/classifiers/` and a line here.

Columns, tables, queues, choices on the command line, settings and status follow from it. Nothing
heavy is imported here: `--help` reads the registry too.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from datasets.boundary.secrets import remember_environment
from datasets.errors import ConfigError, RejectedPost, RetryableError

if TYPE_CHECKING:
    from actors.remote.protocol import Remote
    from datasets.labels.reading import Labels


class Environment(dict[str, str]):
    """Values from the driver's environment on their way to the actors. Some are secrets: it shows none of them."""

    def __repr__(self) -> str:
        return f"Environment of {', '.join(sorted(self)) or 'nothing'}"

    __str__ = __repr__


# What became of one post: its values for the integration's own columns, or why there are none.
Outcome = Mapping[str, Any] | RejectedPost | RetryableError
# What an actor of the integration mostly uses: one processor; a model's device, which is a GPU where
# there is one; or someone else's quota.
Placement = Literal["cpu", "model", "api"]


class Classifier(Protocol):
    """A loaded model, or the client of one. `model` and `revision` go into every label row."""

    model: str
    revision: str

    def classify(self, texts: Sequence[str]) -> Sequence[Outcome]:
        """One outcome a text, in the order of the texts.

        A post's failure is an outcome. Raises FatalError where no post can be labelled. Any other
        exception is taken for the fault of one of the texts, which is then searched for.
        """


@dataclass(frozen=True)
class NoSettings:
    """For an integration that has nothing to set."""


def _no_check(settings: Any) -> None:
    return None


def _no_load(settings: Any) -> Classifier:
    raise ConfigError("this integration has no model of its own; it asks an API")


@dataclass(frozen=True)
class Integration:
    """`columns` are the label columns of its own: name → float64, int64, bool or string.

    `load` runs once in each actor and imports what it needs there. `check` runs in the driver
    before anything starts and raises ConfigError. `settings` is a frozen dataclass: its fields are
    the keys that the integration's table in `backfill.toml` may have, and their defaults.

    Where `placement` is `api`, `remote` takes the place of `load` and of `check`: it says which API
    is asked, from the settings and the environment variables named in `environment`, and raises
    ConfigError where one that it needs is not set.

    `outputs` are what a local model has to tell apart, `groups` those of them that exclude each
    other, and `targets` what a row of hand labels teaches each: that is what heads are trained by.
    `unused` says why a label of such a row teaches nothing, None where all do.
    """

    name: str
    alias: str
    columns: Mapping[str, str]
    load: Callable[[Any], Classifier] = _no_load
    settings: type = NoSettings
    check: Callable[[Any], None] = _no_check
    placement: Callable[[Any], Placement] = lambda settings: "cpu"
    remote: Callable[[Any, Environment], Remote] | None = None
    environment: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    targets: Callable[[Mapping[str, Any]], Mapping[str, float | None]] | None = None
    unused: Callable[[Mapping[str, Any]], str | None] | None = None

    def read_environment(self) -> Environment:
        found = Environment(
            {name: os.environ[name] for name in self.environment if os.environ.get(name)}
        )
        remember_environment(found)
        return found

    def check_settings(self, settings: Any) -> None:
        """Raises ConfigError where the integration cannot run as it is set, here and now."""
        self.check(settings)
        if self.placement(settings) == "api" and self.remote:
            self.remote(settings, self.read_environment())

    @property
    def labels(self) -> Labels:
        from datasets.labels.reading import Labels
        from datasets.schemas import label_schema

        return Labels(self.name, label_schema(self.columns))


# The registry: one line an integration, in the order in which commands show them.
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
    """Name → integration, in the order of the registry."""
    return {integration.name: integration for integration in _registry()}


def resolve(name: str) -> Integration:
    """By name, with or without its `ml_inference_`, or by alias. Raises ConfigError for any other."""
    for integration in _registry():
        if name in (
            integration.name,
            integration.name.removeprefix("ml_inference_"),
            integration.alias,
        ):
            return integration
    known = ", ".join(f"{i.name} ({i.alias})" for i in _registry())
    raise ConfigError(f"there is no integration {name!r}; the integrations are {known}")
