"""What a command works with: the lake, the database, Ray, and the settings from `backfill.toml`."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

from actors.integrations import Integration, integrations
from backfill.addresses import database_at, file_at, lake_at
from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.settings import check_numbers
from pds.settings import PdsSettings

DEFAULT_CONFIG = "backfill.toml"
# Settings that may name a file or a folder.
_PATHS = ("model", "heads", "checkpoint")


@dataclass(frozen=True)
class RunSettings:
    """The table `[run]`. Rows are posts; `flush_seconds` is how old a staged label may get."""

    flush_rows: int = 100_000
    flush_seconds: float = 300.0
    block_rows: int = 8192
    api_block_rows: int = 64
    api_actors: int = 1

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Config:
    """`backfill.toml`, validated. An integration that it does not name has the defaults."""

    run: RunSettings = RunSettings()
    pds: PdsSettings = field(default_factory=PdsSettings)
    integrations: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, integration: Integration) -> Any:
        return self.integrations.get(integration.name, integration.settings())


@dataclass(frozen=True)
class Workspace:
    """Where a command works. `ray_address` None: Ray is started on this machine.

    `database_url` is empty where the lake is on S3 and none was given: what needs a database then asks for one.
    """

    lake: Lake
    database_url: str
    ray_address: str | None = None
    config: Config = Config()
    debug: bool = False


def workspace(
    data_dir: str, database_url: str | None, ray_address: str | None, config: str | None, *, debug: bool
) -> Workspace:
    """Raises ConfigError for a config file that does not fit, and for a place that would not last or is none."""
    lake = lake_at(data_dir)
    if database_url is None:
        database_url = f"sqlite:///{lake.root}/backfill.db" if lake.is_local else ""
    return Workspace(lake, database_at(database_url), ray_address or None, load_config(config), debug)


def new_run_id() -> str:
    """Sorts by time, to a four-thousandth of a second, and differs between runs of the same moment.

    Its order decides whose file goes where two runs wrote the same posts (backfill/overtaken.py).
    """
    now = datetime.now(UTC)
    fraction = now.microsecond * 4096 // 1_000_000
    return f"{now:%Y%m%dT%H%M%S}-{fraction:03x}{token_hex(2)[:3]}"


def load_config(path: str | None) -> Config:
    """The named file, which must exist, or `backfill.toml` here, which need not."""
    if path is None and not os.path.exists(DEFAULT_CONFIG):
        return Config()
    path = path or DEFAULT_CONFIG
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"the config file {path} cannot be read ({error.strerror}); check --config") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}); mend that line") from error
    unknown = set(document) - {"run", "pds", "integrations"}
    if unknown:
        raise ConfigError(f"{path}: there is no table [{min(unknown)}]; use [run], [pds] and [integrations.NAME]")
    known = integrations()
    settings = {}
    for name, table in document.get("integrations", {}).items():
        if name not in known:
            raise ConfigError(f"{path}: there is no integration {name!r}; the integrations are {', '.join(known)}")
        settings[name] = _build(known[name].settings, table, f"{path} [integrations.{name}]")
    run, pds = document.get("run", {}), document.get("pds", {})
    return Config(_build(RunSettings, run, f"{path} [run]"), _build(PdsSettings, pds, f"{path} [pds]"), settings)


def _build(kind: type, table: Any, where: str) -> Any:
    """An instance of the dataclass `kind` from a TOML table whose keys and types fit its fields."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for key, value in table.items():
        if key not in names:
            raise ConfigError(f"{where}: there is no setting {key!r}; the settings are {', '.join(names) or 'none'}")
        if not _is_a(value, hints[key]):
            raise ConfigError(f"{where}: {key} = {value!r} is not of the type {_shown(hints[key])}")
    paths = _PATHS if table.get("backend") != "llm" else ()
    files = {key: file_at(value) for key, value in table.items() if key in paths}
    try:
        return kind(**{**table, **files})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _is_a(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_is_a(entry, typing.get_args(hint)[1]) for entry in value.values())
    if origin in (tuple, list):
        return isinstance(value, list) and all(_is_a(entry, typing.get_args(hint)[0]) for entry in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
