"""What the database knows about users' repositories: tables `pds_repos` and `pds_identities`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pyarrow as pa

from datasets.database import Database, create_table
from datasets.repos.coverage import RecordCoverage

STATUSES = (
    "ok",
    "not_found",
    "takendown",
    "suspended",
    "deactivated",
    "rate_limited",
    "unreachable",
    "corrupt",
    "too_large",
    "invalid_did",
)
# The next sync may well succeed. All other refusals are answers.
TRANSIENT_STATUSES = ("rate_limited", "unreachable")

# DIDs in one statement. SQLite allows 32,766 parameters, PostgreSQL 65,535.
_DIDS_PER_STATEMENT = 1000
_PAGE = 20_000


@dataclass(frozen=True)
class RepoState:
    """A row of `pds_repos`.

    `status`, `error` and `synced_at` are about the last attempt, the rest about the lake.

    did               the user
    status, error     one of STATUSES, and the reason if it is not `ok`
    host, handle      from the DID document
    rev, cid          of the commit that was fetched last
    records           rows in the lake, by record type
    skipped           records of other lexicons, by collection
    unreadable_dates  records whose date could not be read
    malformed         records with a missing or wrong value
    bytes             size of the CAR
    synced_at         when the status was found (UTC, ISO 8601). For people to read only: clocks can
                      be set back, so nothing is decided by it
    coverage          which of the records the lake holds
    batch             the flush whose files hold the rows; None if the lake holds nothing
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
    coverage: RecordCoverage = field(default_factory=dict)
    batch: str | None = None

    def __post_init__(self) -> None:
        assert self.status in STATUSES, self.status

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RepoState:
        coverage = {
            name: tuple((start, end) for start, end in ranges)
            for name, ranges in values["coverage"].items()
        }
        return RepoState(**{**values, "coverage": coverage})


@dataclass(frozen=True)
class Identity:
    """A user's PDS and signing key (a did:key). `resolved_at` is in epoch seconds."""

    did: str
    host: str
    handle: str | None
    key: str
    resolved_at: int


_JSON = ("records", "skipped", "coverage")
_INTEGERS = ("unreadable_dates", "malformed", "bytes", "resolved_at")


def _schema(kind: type) -> pa.Schema:
    names = [field.name for field in fields(kind)]
    return pa.schema([(name, pa.int64() if name in _INTEGERS else pa.string()) for name in names])


REPOS = _schema(RepoState)
IDENTITIES = _schema(Identity)


def create_tables(database: Database) -> None:
    with database.transaction():
        create_table(database, "pds_repos", REPOS, "did")
        create_table(database, "pds_identities", IDENTITIES, "did")


def save_repos(database: Database, repos: Sequence[RepoState]) -> None:
    """Inserts or replaces rows, within the transaction that is open."""
    if not repos:
        return

    latest = {repo.did: repo for repo in repos}
    database.upsert("pds_repos", _table(REPOS, latest.values()), "did")


def save_identities(database: Database, identities: Sequence[Identity]) -> None:
    """Inserts or replaces rows, in a transaction of its own."""
    if not identities:
        return

    latest = {identity.did: identity for identity in identities}
    with database.transaction():
        database.upsert("pds_identities", _table(IDENTITIES, latest.values()), "did")


def load_repos(database: Database, dids: Iterable[str]) -> dict[str, RepoState]:
    rows = _rows(database, "pds_repos", REPOS, dids)
    return {row[0]: _repo(row) for row in rows}


def load_identities(
    database: Database, dids: Iterable[str], now: int, max_age: int
) -> dict[str, Identity]:
    """Identities that were resolved in the `max_age` seconds before `now` (epoch seconds).

    One from the future is left out: it was written before the clock was set back, so its age is
    unknown.
    """
    rows = _rows(database, "pds_identities", IDENTITIES, dids)
    identities = (Identity(*row) for row in rows)
    return {
        identity.did: identity
        for identity in identities
        if now - max_age <= identity.resolved_at <= now
    }


def all_repos(database: Database) -> Iterator[RepoState]:
    """Every row, ordered by DID. Reads a page of rows at a time."""
    names = ", ".join(REPOS.names)
    last = ""

    while True:
        statement = f"SELECT {names} FROM pds_repos WHERE did > ? ORDER BY did LIMIT {_PAGE}"
        rows = database.execute(statement, (last,))
        yield from map(_repo, rows)

        if len(rows) < _PAGE:
            return
        last = rows[-1][0]


def batches(database: Database) -> set[str]:
    """The flushes whose files hold rows of some repository."""
    statement = "SELECT DISTINCT batch FROM pds_repos WHERE batch IS NOT NULL"
    return {batch for (batch,) in database.execute(statement)}


def forget_batch(database: Database, batch: str) -> None:
    """For a batch whose files left the lake: the next sync fetches its repositories again."""
    statement = "UPDATE pds_repos SET batch = NULL, rev = NULL, coverage = '{}' WHERE batch = ?"
    with database.transaction():
        database.execute(statement, (batch,))


def with_status(repo: RepoState, status: str, error: str | None, synced_at: str) -> RepoState:
    """The state after an attempt that changed nothing in the lake."""
    return replace(repo, status=status, error=error, synced_at=synced_at)


def _table(schema: pa.Schema, values: Iterable[Any]) -> pa.Table:
    rows = list(values)
    arrays = []

    for column in schema:
        cells = [getattr(row, column.name) for row in rows]
        if column.name in _JSON:
            cells = [json.dumps(cell) for cell in cells]
        arrays.append(pa.array(cells, column.type))

    return pa.table(arrays, schema=schema)


def _rows(
    database: Database, table: str, schema: pa.Schema, dids: Iterable[str]
) -> Iterator[tuple[Any, ...]]:
    names = ", ".join(schema.names)
    wanted = list(dids)

    for start in range(0, len(wanted), _DIDS_PER_STATEMENT):
        some = wanted[start : start + _DIDS_PER_STATEMENT]
        marks = ", ".join("?" * len(some))
        statement = f"SELECT {names} FROM {table} WHERE did IN ({marks})"
        yield from database.execute(statement, some)


def _repo(row: Sequence[Any]) -> RepoState:
    values = dict(zip(REPOS.names, row, strict=True))
    for name in _JSON:
        values[name] = json.loads(values[name])

    return RepoState.from_json(values)
