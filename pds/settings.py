"""What a sync is allowed to take, of hosts and of this machine."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.boundary.settings import check_numbers

MIB = 1024**2
PLC_DIRECTORY = "https://plc.directory"


@dataclass(frozen=True)
class PdsSettings:
    """The table `[pds]` of the config file. Per host: `host_qps` requests a second, `in_flight` requests at a time.

    A request that fails is tried `attempts` times, at first `retry_seconds` apart and then longer.
    A download may have `max_repo_bytes`, `request_seconds` of waiting for the host in all,
    `read_seconds` for each piece, and after `slow_seconds` must have had `slow_bytes` a second.
    `spool_bytes` of downloads lie on disk at a time. A host that limits us without saying until when
    rests for `limited_seconds`, one in trouble for `trouble_seconds` at first; after `patience` rests
    without one answer between them, its users are left for the next run.
    """

    host_qps: float = 9.0
    in_flight: int = 6
    max_repo_bytes: int = 2048 * MIB
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    request_seconds: float = 1800.0
    slow_seconds: float = 30.0
    slow_bytes: int = 1024
    spool_bytes: int = 8192 * MIB
    limited_seconds: float = 300.0
    trouble_seconds: float = 5.0
    patience: int = 2
    attempts: int = 3
    retry_seconds: float = 1.0
    identity_hours: float = 24.0
    flush_rows: int = 2_000_000
    flush_seconds: float = 900.0

    def __post_init__(self) -> None:
        check_numbers(self, zero=("patience", "identity_hours"))
