"""What a command works with: the lake, the database, Ray's address and the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex

from backfill.addresses import database_at, lake_at
from backfill.config import Config, load_config
from datasets.lake import Lake


@dataclass(frozen=True)
class Workspace:
    """`ray_address` is None if Ray is to be started on this machine.

    `database_url` is empty for a lake on S3 unless one was given: commands that need a database
    then ask for it.
    """

    lake: Lake
    database_url: str
    ray_address: str | None = None
    config: Config = field(default_factory=Config)
    debug: bool = False


def open_workspace(
    data_dir: str,
    database_url: str | None,
    ray_address: str | None,
    config: str | None,
    *,
    debug: bool,
) -> Workspace:
    """Makes a workspace of the command line's options.

    Raises ConfigError for an invalid configuration file, and for a lake or a database whose address
    is invalid or would not outlive the command.
    """
    lake = lake_at(data_dir)
    if database_url is None:
        database_url = f"sqlite:///{lake.root}/backfill.db" if lake.is_local else ""
    return Workspace(
        lake=lake,
        database_url=database_at(database_url),
        ray_address=ray_address or None,
        config=load_config(config),
        debug=debug,
    )


def new_run_id() -> str:
    """Sorts by time, to a four-thousandth of a second, and differs between runs of the same moment.

    Its order decides whose file goes where two runs wrote the same posts (backfill/overtaken.py).
    """
    now = datetime.now(UTC)
    fraction = now.microsecond * 4096 // 1_000_000
    return f"{now:%Y%m%dT%H%M%S}-{fraction:03x}{token_hex(2)[:3]}"
