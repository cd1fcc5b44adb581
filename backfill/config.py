"""Reads and validates `backfill.toml`."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.integrations import Integration, integrations
from backfill.addresses import file_at
from datasets.boundary.settings import check_numbers
from datasets.errors import ConfigError
from pds.settings import PdsSettings

DEFAULT_CONFIG = "backfill.toml"
# Settings whose value may be the path of a file or a folder.
_PATHS = ("model", "heads", "checkpoint")


@dataclass(frozen=True)
class RunSettings:
    """The table `[run]`.

    A flush writes `flush_rows` staged labels, or fewer once the oldest is `flush_seconds` old.
    `block_rows` and `api_block_rows` are posts of a block: what one actor processes at a time.
    `api_actors` is the number of actors of an integration that asks an API.
    """

    flush_rows: int = 100_000
    flush_seconds: float = 300.0
    block_rows: int = 8192
    api_block_rows: int = 64
    api_actors: int = 1

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Config:
    """A validated configuration. `integrations` holds the settings that differ, by name."""

    run: RunSettings = RunSettings()
    pds: PdsSettings = field(default_factory=PdsSettings)
    integrations: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, integration: Integration) -> Any:
        """An instance of `integration.settings`: as configured, or the defaults."""
        return self.integrations.get(integration.name, integration.settings())


def load_config(path: str | None) -> Config:
    """The configuration in `path`, or in `backfill.toml` of the working directory if that exists.

    Raises ConfigError, which names the table and the setting, for an invalid file.
    """
    if path is None and not os.path.exists(DEFAULT_CONFIG):
        return Config()
    path = path or DEFAULT_CONFIG
    document = _read_toml(path)

    unknown = set(document) - {"run", "pds", "integrations"}
    if unknown:
        raise ConfigError(
            f"{path}: there is no table [{min(unknown)}]; use [run], [pds] and [integrations.NAME]"
        )

    known = integrations()
    settings = {}
    for name, table in document.get("integrations", {}).items():
        if name not in known:
            raise ConfigError(
                f"{path}: there is no integration {name!r}; the integrations are {', '.join(known)}"
            )
        settings[name] = _build(known[name].settings, table, f"{path} [integrations.{name}]")

    return Config(
        run=_build(RunSettings, document.get("run", {}), f"{path} [run]"),
        pds=_build(PdsSettings, document.get("pds", {}), f"{path} [pds]"),
        integrations=settings,
    )


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"the config file {path} cannot be read ({error.strerror}); check --config"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}); mend that line") from error


def _build(kind: type, table: Any, where: str) -> Any:
    """An instance of the dataclass `kind` from a TOML table. `where` begins its error messages."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")

    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in table.items():
        if key not in names:
            raise ConfigError(
                f"{where}: there is no setting {key!r}; "
                f"the settings are {', '.join(names) or 'none'}"
            )
        if not _has_type(value, hints[key]):
            expected = _type_name(hints[key])
            raise ConfigError(f"{where}: {key} = {value!r} is not of the type {expected}")

    # An LLM's `model` is a name that its endpoint knows, also if a file here has the same.
    paths = _PATHS if table.get("backend") != "llm" else ()
    files = {key: file_at(value) for key, value in table.items() if key in paths}
    try:
        return kind(**{**table, **files})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a TOML value fits a type annotation. An integer is a float; a bool is no integer."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)

    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, option) for option in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(
            _has_type(entry, arguments[1]) for entry in value.values()
        )
    if origin in (tuple, list):
        return isinstance(value, list) and all(_has_type(entry, arguments[0]) for entry in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    if origin is None:
        return getattr(hint, "__name__", str(hint))
    return str(hint)
