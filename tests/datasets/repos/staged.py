"""Staged repositories of three users, and what of them is in the lake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.lake import Lake
from datasets.repos.coverage import RECORD_TYPES, RecordCoverage, covering
from datasets.repos.record_schemas import STAGED_SCHEMA, record_schema
from datasets.repos.staging import StagingReceipt, acknowledge, stage_rows
from datasets.repos.state import RepoState
from tests.pds.repos import make_did

# Record key → its type and its day.
Records = Mapping[str, tuple[str, str]]

FIRST: Records = {
    "a": ("post", "2024-10-01"),
    "b": ("post", "2024-10-02"),
    "c": ("like", "2024-10-01"),
}

SECOND: Records = {"b": ("post", "2024-10-02"), "d": ("post", "2024-10-03")}


def rows(did: str, records: Records, rev: str) -> pa.Table:
    columns = {name: [None] * len(records) for name in STAGED_SCHEMA.names} | {
        "uri": [f"at://{did}/{key}" for key in records],
        "author": [did] * len(records),
        "record_type": [kind for kind, _ in records.values()],
        "partition_date": [day for _, day in records.values()],
        "rev": [rev] * len(records),
        "verified": [True] * len(records),
    }
    return pa.table(
        [pa.array(columns[f.name], f.type) for f in STAGED_SCHEMA], schema=STAGED_SCHEMA
    )


ALL = covering(RECORD_TYPES, None, None)


def stage(
    lake: Lake,
    name: str,
    repos: Mapping[str, Records],
    rev: str = "r1",
    at: str = "2026-01-01",
    replaces: Mapping[str, str] | None = None,
    coverage: RecordCoverage = ALL,
) -> StagingReceipt:
    states = [
        RepoState(did, rev=rev, synced_at=at, coverage=coverage, records={"x": len(records)})
        for did, records in repos.items()
    ]
    tables = [rows(did, records, rev) for did, records in repos.items()]
    stage_rows(lake, f"{name}.0", pa.concat_tables(tables))
    receipt = StagingReceipt(name, (f"{name}.0",), tuple(states), replaces or {})
    acknowledge(lake, receipt)
    return receipt


def in_lake(root: Path) -> dict[str, set[tuple[str, str, str]]]:
    """DID → (key, type, day) of its rows; fails if a row is there twice or out of place."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for path in root.glob("raw_sync/create/*/cache/partition_date=*/*.parquet"):
        table = pq.ParquetFile(path).read()
        kind, day = path.parts[-4], path.parent.name.removeprefix("partition_date=")
        assert table.schema.equals(record_schema(kind))
        assert len(table) > 0, "an empty file was left"
        for row in table.select(["uri", "author", "record_type"]).to_pylist():
            entry = (row["uri"].rpartition("/")[2], kind, day)
            assert row["record_type"] == kind
            assert entry not in found.setdefault(row["author"], set()), f"{entry} is there twice"
            found[row["author"]].add(entry)
    return found


def as_found(records: Records) -> set[tuple[str, str, str]]:
    return {(key, kind, day) for key, (kind, day) in records.items()}


ALICE, BOB, CAROL = (make_did(n) for n in range(3))
