"""The file of an integration's answers: an SQLite table, beside the queues or in the user's state folder.

The file belongs to an integration of a lake, and so do its answers: a run deletes those that only
itself, or an unfinished run whose posts it has labelled, asked for. Several processes may have the
file open, so it is never unlinked.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.queues import digest

# Answers that nobody asked for in so many seconds are deleted when the store is opened.
UNUSED_SECONDS = 30 * 86_400.0
# Answers kept for equal texts later in the run, a kilobyte or two each; the oldest go first.
_KEPT = 2_000_000
# How long one process waits for another that writes to the same file.
_BUSY_SECONDS = 60.0
# Added to the table of older versions, whose answers then belong to no run and go when they were not used for long.
_COLUMNS = ("run", "kind", "first", "last")
# An unfinished run of the same kind, within the dates of this one: this one labels whatever that had selected.
_COVERED = "kind = ? AND first >= ? AND last <= ?"


@dataclass(frozen=True)
class RunScope:
    """Which posts a run labels, and so what its answers are for.

    `kind` stands for all of the selection but its dates, from `first` to `last`. Where a run of a
    kind is `whole`, it labels everything that another of that kind within these dates would have.
    """

    run_id: str = ""
    kind: str = ""
    first: str = ""
    last: str = ""
    whole: bool = True
    retry_rejected: bool = False

    @property
    def dates(self) -> tuple[str, str]:
        return self.first, self.last

    @property
    def covers(self) -> tuple[str, str, str]:
        return self.kind, self.first, self.last


def store_path(lake: Lake, integration: str) -> str:
    if lake.is_local:
        return os.path.join(os.path.abspath(lake.root), "queues", "responses", f"{integration}.db")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(
        state, "label-backfill", "responses", f"{digest([lake.root.rstrip('/')])}-{integration}.db"
    )


def remove_answers(lake: Lake, integration: str, scope: RunScope) -> None:
    """What a complete run has left that was killed before it could delete its answers."""
    path = store_path(lake, integration)
    if not os.path.exists(path):
        return
    with closing(open_responses(path, time.time())) as database:
        try:
            delete_staged(database, scope)
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot delete answers in {path} ({error}); check the disk"
            ) from error


def open_responses(path: str, now: float) -> sqlite3.Connection:
    """The file, made or brought to the present columns. `now` is seconds since the epoch."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        database = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            _prepare(database, now)
        except BaseException:
            database.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"cannot keep answers in {path} ({error}); check the folder") from error
    return database


def _prepare(database: sqlite3.Connection, now: float) -> None:
    with _transaction(database):
        database.execute(
            "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, body BLOB NOT NULL)"
        )
        known = {row[1] for row in database.execute("PRAGMA table_info(responses)")}
        for name in _COLUMNS:
            if name not in known:
                database.execute(
                    f"ALTER TABLE responses ADD COLUMN {name} TEXT NOT NULL DEFAULT ''"
                )
        if "used" not in known:
            database.execute("ALTER TABLE responses ADD COLUMN used REAL NOT NULL DEFAULT 0")
            database.execute("UPDATE responses SET used = ?", (now,))
        database.execute("CREATE INDEX IF NOT EXISTS by_scope ON responses (kind, first, last)")
        database.execute("CREATE INDEX IF NOT EXISTS by_use ON responses (used)")
        database.execute("DELETE FROM responses WHERE used < ?", (now - UNUSED_SECONDS,))


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # Some errors have rolled it back already. The first error is the one to report.
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def find(database: sqlite3.Connection, key: str) -> tuple[Any, ...] | None:
    """Body, run, kind, first, last, and when it was last used."""
    found: tuple[Any, ...] | None = database.execute(
        "SELECT body, run, kind, first, last, used FROM responses WHERE key = ?", (key,)
    ).fetchone()
    return found


def insert(database: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], sweep: bool) -> None:
    with _transaction(database):
        # Two Rays on one machine may have asked the same, for different posts.
        database.executemany(
            "INSERT INTO responses (key, body, run, kind, first, last, used) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET body = excluded.body, run = excluded.run, used = excluded.used, "
            "kind = iif(kind = excluded.kind AND first >= excluded.first AND last <= excluded.last, kind, ''), "
            "first = excluded.first, last = excluded.last",
            rows,
        )
        if sweep:
            database.execute(
                "DELETE FROM responses WHERE rowid <= (SELECT max(rowid) FROM responses) - ?",
                (_KEPT,),
            )


def note_use(database: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    with _transaction(database):
        database.executemany(
            "UPDATE responses SET kind = ?, first = ?, last = ?, used = ? WHERE key = ?", rows
        )


def forget(database: sqlite3.Connection, rows: Sequence[tuple[str, str]]) -> None:
    with _transaction(database):
        database.executemany("DELETE FROM responses WHERE key = ? AND run <> ?", rows)


def delete_staged(database: sqlite3.Connection, scope: RunScope) -> None:
    """Deletes what only runs asked for whose labels are staged now, which are all that `scope` covers."""
    with _transaction(database):
        if not scope.whole:
            database.execute(
                f"DELETE FROM responses WHERE run = ? AND {_COVERED}", (scope.run_id, *scope.covers)
            )
        elif database.execute(
            f"SELECT 1 FROM responses WHERE NOT ({_COVERED}) LIMIT 1", scope.covers
        ).fetchone():
            database.execute(f"DELETE FROM responses WHERE {_COVERED}", scope.covers)
        else:
            database.execute("DELETE FROM responses")  # of the whole table, which takes no time
    if not database.execute("SELECT 1 FROM responses LIMIT 1").fetchone():
        # While another process reads, this fails: the free pages are reused, and the file stays large.
        with suppress(sqlite3.Error):
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
