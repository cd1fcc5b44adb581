"""What a command works with: the lake, the database, Ray, and the settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_hex

from backfill.addresses import database_at, lake_at
from backfill.config import Config, load_config
from datasets.lake import Lake


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


def open_workspace(
    data_dir: str,
    database_url: str | None,
    ray_address: str | None,
    config: str | None,
    *,
    debug: bool,
) -> Workspace:
    """Raises ConfigError for a config file that does not fit, and for a place that would not last or is none."""
    lake = lake_at(data_dir)
    if database_url is None:
        database_url = f"sqlite:///{lake.root}/backfill.db" if lake.is_local else ""
    return Workspace(
        lake, database_at(database_url), ray_address or None, load_config(config), debug
    )


def new_run_id() -> str:
    """Sorts by time, and differs between runs of the same second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{token_hex(3)}"
