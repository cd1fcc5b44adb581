"""What is known of users and their repositories, in the database: tables `pds_repos` and `pds_identities`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pyarrow as pa

from datasets.database import Database, create_table
from datasets.repos.coverage import Coverage

STATUSES = (
    "ok", "not_found", "takendown", "suspended", "deactivated", "rate_limited", "unreachable", "corrupt",
    "too_large", "invalid_did",
)  # fmt: skip
# A status that the next sync may well change. The other refusals are answers.
PASSING = ("rate_limited", "unreachable")

# DIDs in one statement. SQLite allows 32,766 parameters, PostgreSQL 65,535.
_AT_ONCE = 1000
_PAGE = 20_000


@dataclass(frozen=True)
class RepoState:
    """A row of `pds_repos`. `status` and `error` are of the last attempt; the rest is of what the lake holds.

    `rev` and `cid` are those of the commit that was fetched last, `records` counts rows by record
    type, `skipped` those of other lexicons by collection, `bytes` is the size of the CAR. `batch`
    names the flush whose files hold the rows, `coverage` says which of the records they are.
    `synced_at` is when the status was found (UTC, ISO 8601), by a clock that may be set back: it is for
    people to read, and decides nothing.
    """

    did: str
    status: str = "ok"
    host: str | None = None
    handle: str | None = None
    rev: str | None = None
    cid: str | None = None
    error: str | None = None
    records: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    unreadable_dates: int = 0
    malformed: int = 0
    bytes: int = 0
    synced_at: str | None = None
    coverage: Coverage = field(default_factory=dict)
    batch: str | None = None

    def __post_init__(self) -> None:
        assert self.status in STATUSES, self.status

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RepoState:
        return RepoState(**{**values, "coverage": _ranges(values["coverage"])})


@dataclass(frozen=True)
class Identity:
    """Where a user's repository is, and what it is signed with (a did:key). `resolved_at` is in epoch seconds."""

    did: str
    host: str
    handle: str | None
    key: str
    resolved_at: int


_JSON = ("records", "skipped", "coverage")
_INTEGERS = ("unreadable_dates", "malformed", "bytes", "resolved_at")


def _schema(kind: type) -> pa.Schema:
    return pa.schema(
        [(f.name, pa.int64() if f.name in _INTEGERS else pa.string()) for f in fields(kind)]
    )


REPOS, IDENTITIES = _schema(RepoState), _schema(Identity)


def create_tables(database: Database) -> None:
    with database.transaction():
        create_table(database, "pds_repos", REPOS, "did")
        create_table(database, "pds_identities", IDENTITIES, "did")


def save_repos(database: Database, repos: Sequence[RepoState]) -> None:
    """Writes or replaces rows. Part of the transaction that is open."""
    if repos:
        database.upsert(
            "pds_repos", _table(REPOS, {repo.did: repo for repo in repos}.values()), "did"
        )


def save_identities(database: Database, identities: Sequence[Identity]) -> None:
    if identities:
        latest = {identity.did: identity for identity in identities}
        with database.transaction():
            database.upsert("pds_identities", _table(IDENTITIES, latest.values()), "did")


def load_repos(database: Database, dids: Iterable[str]) -> dict[str, RepoState]:
    rows = _rows(database, "pds_repos", REPOS, dids)
    return {row[0]: _repo(row) for row in rows}


def load_identities(
    database: Database, dids: Iterable[str], now: int, max_age: int
) -> dict[str, Identity]:
    """Those that were resolved in the `max_age` seconds before `now` (epoch seconds).

    One from the future was written by a clock that has been set back since, and has no age.
    """
    identities = (Identity(*row) for row in _rows(database, "pds_identities", IDENTITIES, dids))
    return {
        identity.did: identity
        for identity in identities
        if now - max_age <= identity.resolved_at <= now
    }


def all_repos(database: Database) -> Iterator[RepoState]:
    """Every row, in the order of the DIDs, a page at a time."""
    names, last = ", ".join(REPOS.names), ""
    while True:
        statement = f"SELECT {names} FROM pds_repos WHERE did > ? ORDER BY did LIMIT {_PAGE}"
        rows = database.execute(statement, (last,))
        yield from map(_repo, rows)
        if len(rows) < _PAGE:
            return
        last = rows[-1][0]


def batches(database: Database) -> set[str]:
    """The flushes whose files hold rows of some repository."""
    return {
        batch
        for (batch,) in database.execute(
            "SELECT DISTINCT batch FROM pds_repos WHERE batch IS NOT NULL"
        )
    }


def forget_batch(database: Database, batch: str) -> None:
    """Its files are gone from the lake: the next sync fetches these repositories again."""
    with database.transaction():
        database.execute(
            "UPDATE pds_repos SET batch = NULL, rev = NULL, coverage = '{}' WHERE batch = ?",
            (batch,),
        )


def with_status(repo: RepoState, status: str, error: str | None, synced_at: str) -> RepoState:
    """After an attempt that changed nothing in the lake."""
    return replace(repo, status=status, error=error, synced_at=synced_at)


def _table(schema: pa.Schema, values: Iterable[Any]) -> pa.Table:
    rows = list(values)
    columns = [
        [json.dumps(getattr(row, name)) if name in _JSON else getattr(row, name) for row in rows]
        for name in schema.names
    ]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def _rows(
    database: Database, table: str, schema: pa.Schema, dids: Iterable[str]
) -> Iterator[tuple[Any, ...]]:
    wanted, names = list(dids), ", ".join(schema.names)
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        yield from database.execute(
            f"SELECT {names} FROM {table} WHERE did IN ({', '.join('?' * len(some))})", some
        )


def _repo(row: Sequence[Any]) -> RepoState:
    values = {
        name: json.loads(value) if name in _JSON else value
        for name, value in zip(REPOS.names, row, strict=True)
    }
    return RepoState.from_json(values)


def _ranges(coverage: Mapping[str, Any]) -> Coverage:
    return {name: tuple((start, end) for start, end in ranges) for name, ranges in coverage.items()}
