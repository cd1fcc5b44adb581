"""Limits of a sync: on hosts, and on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.boundary.settings import check_numbers

MIB = 1024**2
PLC_DIRECTORY = "https://plc.directory"


@dataclass(frozen=True)
class PdsSettings:
    """The table `[pds]` of the configuration file.

    host_qps         requests per second to each host
    in_flight        concurrent requests to each host
    max_repo_bytes   a larger repository is rejected
    connect_seconds  time limit of a connection attempt
    read_seconds     time limit of each read
    request_seconds  total time that one request may wait for the host
    slow_seconds,    after the former, a download must have averaged the latter per second
      slow_bytes
    spool_bytes      downloads on disk at a time
    limited_seconds  pause after a 429 that does not say for how long
    trouble_seconds  first pause of a host that fails; later ones are longer
    patience         pauses in a row, without an answer in between, after which a host is given up:
                     its users are left for the next run
    attempts         requests for one job
    retry_seconds    wait before the first retry; later ones are longer
    identity_hours   how long a resolved identity is cached
    flush_rows,      staged rows are flushed to the lake at this number or at this age
      flush_seconds
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
