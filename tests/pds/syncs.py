"""Runs `pds sync` in this process, and reads the lake and the database that it leaves."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from backfill.repos.sync import SyncOptions, SyncResult, sync
from backfill.workspace import open_workspace
from pds.settings import PdsSettings
from tests.pds.repos import Made
from tests.pds.servers import Network

QUICK = PdsSettings(
    host_qps=500,
    limited_seconds=0.3,
    trouble_seconds=0.1,
    retry_seconds=0.05,
    connect_seconds=2,
    read_seconds=2,
)


def run(root: Path, net: Network, *dids: str, **options: Any) -> SyncResult:
    """One `pds sync` in this process."""
    settings = options.pop("settings", QUICK)
    options = {"allow_insecure_hosts": True, "plc_url": net.plc.origin, **options}
    workspace = open_workspace(
        str(root), options.pop("database_url", None), None, None, debug=False
    )
    return sync(workspace, SyncOptions(dids, settings=settings, **options), io.StringIO())


def lake_rows(root: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(root.glob("raw_sync/create/*/cache/partition_date=*/*.parquet")):
        found = pq.ParquetFile(path).read().to_pylist()
        assert {row["record_type"] for row in found} == {path.parts[-4]}
        rows += [{**row, "day": path.parent.name.removeprefix("partition_date=")} for row in found]
    return rows


def uris(root: Path) -> list[str]:
    return sorted(row["uri"] for row in lake_rows(root))


def states(root: Path) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{root}/backfill.db?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return {row["did"]: dict(row) for row in connection.execute("SELECT * FROM pds_repos")}


def statuses(root: Path) -> dict[str, str]:
    return {did: row["status"] for did, row in states(root).items()}


def files(root: Path) -> dict[str, float]:
    """Everything under the lake's data and when it was written."""
    return {
        str(path): path.stat().st_mtime_ns for path in root.glob("raw_sync/**/*") if path.is_file()
    }


def uris_of(*repos: Made | tuple[Made, Mapping[str, Any]]) -> list[str]:
    found = []
    for entry in repos:
        made, records = entry if isinstance(entry, tuple) else (entry, None)
        assert records is not None
        found += [f"at://{made.did}/{path}" for path in records]
    return sorted(found)
