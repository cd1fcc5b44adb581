"""The database: a copy of the labels that answers SQL, in SQLite or PostgreSQL. Every statement of ours is here.

The lake is the source of truth. `label_files` is the ledger: a label file stands in it exactly if
its rows are in the table of its integration, because both are written in one transaction. What the
database lacks is therefore the lake's files minus the ledger, however it came to lack them.

A text may hold U+0000. SQLite keeps it; PostgreSQL cannot, so there it becomes U+FFFD. The lake
has the original.
"""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from datasets.boundary.secrets import redact, remember_url
from datasets.errors import ConfigError, RetryableError

# Seconds to wait for another process's transaction before the database counts as locked.
LOCK_SECONDS = 30
# Rows that are Python objects at a time, and rows of one INSERT.
_PYTHON_ROWS, _STATEMENT_ROWS = 8192, 64
_SQL_TYPES = {
    pa.float64(): "DOUBLE PRECISION",
    pa.int64(): "BIGINT",
    pa.bool_(): "BOOLEAN",
    pa.string(): "TEXT",
}
_RUNS = pa.schema(
    [
        (name, pa.string())
        for name in ("run_id", "command", "selection", "started_at", "finished_at")
    ]
    + [("counts", pa.string()), ("versions", pa.string()), ("exit_code", pa.int64())]
)
_LABEL_FILES = pa.schema(
    [("path", pa.string()), ("integration", pa.string()), ("num_rows", pa.int64())]
)
_SAFE_NAME = re.compile(r"^[a-z_][a-z0-9_]*$")

Row = Mapping[str, Any]


class RowsRefused(ConfigError):
    """The database is well, but it cannot store these rows."""


class Database(Protocol):
    """One connection. Failures are ConfigError (refused) or RetryableError (locked, gone)."""

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def upsert(self, table: str, rows: pa.Table, key: str) -> None:
        """Inserts, or replaces where `key` is there already. Part of the transaction that is open.

        Of rows with the same key the last counts; rows whose key is null are left out.
        """

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. One within another may fail by itself, and is only kept if the outer one is."""

    def close(self) -> None: ...


def open_database(url: str) -> Database:
    """`sqlite:///path` (relative) and `sqlite:////path` (absolute), or `postgresql://…`."""
    remember_url(url)
    database: Database
    if url.startswith("sqlite:///"):
        database = _Sqlite(url.removeprefix("sqlite:///"))
    elif url.startswith(("postgresql://", "postgres://")):
        database = _Postgres(url)
    elif not url:
        raise ConfigError(
            "a lake on S3 needs a database elsewhere; set --database-url or BACKFILL_DATABASE_URL, "
            "to postgresql://… or, for runs on one machine, to sqlite:///backfill.db"
        )
    else:
        # Where the password is in something that is no URL, nobody can tell.
        shown = redact(url) if "://" in url else "what is given as the database"
        raise ConfigError(
            f"{shown} is not a database address; use sqlite:///PATH or postgresql://…"
        )
    with database.transaction():
        create_table(database, "runs", _RUNS, "run_id")
        create_table(database, "label_files", _LABEL_FILES, "path")
    return database


def is_there(url: str) -> bool:
    """Whether opening it would open something, not make it. A server that is down is there."""
    return bool(url) and (
        not url.startswith("sqlite:///") or os.path.exists(url.removeprefix("sqlite:///"))
    )


def create_label_table(database: Database, integration: str, labels: pa.Schema) -> None:
    with database.transaction():
        create_table(database, integration, labels, "uri")


def load_labels(database: Database, integration: str, files: Mapping[str, pa.Table]) -> None:
    """All rows of label files, by their paths, and the ledger's lines about them, in one transaction."""
    counts = [len(rows) for rows in files.values()]
    lines = pa.table([list(files), [integration] * len(files), counts], schema=_LABEL_FILES)
    with database.transaction():
        database.upsert(integration, pa.concat_tables(files.values()), "uri")
        database.upsert("label_files", lines, "path")


def loaded_files(database: Database, integration: str) -> set[str]:
    rows = database.execute("SELECT path FROM label_files WHERE integration = ?", (integration,))
    return {path for (path,) in rows}


def label_count(database: Database, integration: str) -> int:
    """Rows in an integration's table, which must exist."""
    return int(database.execute(f'SELECT count(*) FROM "{_checked(integration)}"')[0][0])


def forget_labels(database: Database, integration: str) -> None:
    """Empties an integration's table and its part of the ledger, for a rebuild."""
    with database.transaction():
        database.execute(f'DELETE FROM "{_checked(integration)}"')
        database.execute("DELETE FROM label_files WHERE integration = ?", (integration,))


def record_run(database: Database, run: Row) -> None:
    """Writes or replaces a row of `runs`; `selection`, `counts` and `versions` are JSON objects. No secret gets in."""
    values = [
        redact(json.dumps(value)) if isinstance(value, dict) else value
        for value in (run.get(n) for n in _RUNS.names)
    ]
    with database.transaction():
        database.upsert("runs", pa.table([[value] for value in values], schema=_RUNS), "run_id")


def last_runs(database: Database, limit: int = 10) -> list[dict[str, Any]]:
    """The latest runs first."""
    columns = ", ".join(_RUNS.names)
    rows = database.execute(
        f"SELECT {columns} FROM runs ORDER BY started_at DESC, run_id DESC LIMIT {int(limit)}"
    )
    runs = [dict(zip(_RUNS.names, row, strict=True)) for row in rows]
    for run in runs:
        for name in ("selection", "counts", "versions"):
            run[name] = json.loads(run[name]) if run[name] else {}
    return runs


def create_table(database: Database, table: str, schema: pa.Schema, key: str) -> None:
    columns = ", ".join(
        f'"{_checked(field.name)}" {_SQL_TYPES[field.type]}{" PRIMARY KEY" if field.name == key else ""}'
        for field in schema
    )
    database.execute(f'CREATE TABLE IF NOT EXISTS "{_checked(table)}" ({columns})')


def _by_key(rows: pa.Table, key: str) -> pa.Table:
    """The rows that an upsert has to write, in the order of `key`."""
    if rows[key].null_count:
        rows = rows.filter(pc.is_valid(rows[key]))
    rows = rows.sort_by(key)  # stable: rows with the same key stay in their order
    if len(rows) < 2:
        return rows

    keys = rows[key].combine_chunks()
    last = pc.not_equal(keys[:-1], keys[1:])
    if last.false_count:
        rows = rows.filter(pa.concat_arrays([last, pa.array([True])]))
    return rows


def _checked(name: str) -> str:
    """Names of tables and columns come from the registry; this keeps it that way."""
    if not _SAFE_NAME.match(name):
        raise ValueError(f"{name!r} cannot be the name of a table or a column")
    return name


def _on_conflict(columns: Iterable[str], key: str) -> str:
    updates = ", ".join(f'"{name}" = excluded."{name}"' for name in columns if name != key)
    return f'ON CONFLICT ("{key}") DO UPDATE SET {updates}'


class _Sqlite:
    def __init__(self, path: str) -> None:
        self._shown = path
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            # WAL lets readers go on during a write. With synchronous=NORMAL a power cut may take the
            # last transactions, ledger lines included, and the lake gives them back.
            self._connection.executescript(
                "PRAGMA page_size = 16384; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                "PRAGMA cache_size = -16384;"
            )
        except (sqlite3.Error, OSError) as error:
            raise self._translated(error) from error

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def upsert(self, table: str, rows: pa.Table, key: str) -> None:
        # Columns with one value for all rows stand in the statement: binding a value costs as
        # much as storing it, and six of a label row's columns are the same for a whole flush.
        constants = {name: _literal(rows[name]) for name in rows.column_names if name != key}
        bound = [name for name in rows.column_names if constants.get(name) is None]
        row = f"({', '.join(constants.get(name) or '?' for name in rows.column_names)})"
        names = ", ".join(f'"{_checked(name)}"' for name in rows.column_names)

        def insert(count: int) -> str:
            every = ", ".join([row] * count)
            return f'INSERT INTO "{_checked(table)}" ({names}) VALUES {every} {_on_conflict(rows.column_names, key)}'

        # A statement of one row costs a quarter more time a row than one of some dozens.
        width = len(bound)
        most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // width
        size = max(1, min(_STATEMENT_ROWS, most)) * width
        # In the order of the key, neighbours go into the same page of the index.
        ordered = _by_key(rows.select(bound), key)
        try:
            for start in range(0, len(ordered), _PYTHON_ROWS):
                few = ordered.slice(start, _PYTHON_ROWS)
                values = list(
                    chain.from_iterable(
                        zip(*(few[name].to_pylist() for name in bound), strict=True)
                    )
                )
                whole = len(values) - len(values) % size
                self._connection.executemany(insert(size // width), _cut(values[:whole], size))
                self._connection.executemany(insert(1), _cut(values[whole:], width))
        except sqlite3.Error as error:
            raise self._translated(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        begin, commit, rollback = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
        if self._connection.in_transaction:
            begin, commit, rollback = (
                "SAVEPOINT inner",
                "RELEASE inner",
                "ROLLBACK TO inner; RELEASE inner",
            )
        self.execute(begin)
        try:
            yield
            self.execute(commit)
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if self._connection.in_transaction:
                for statement in rollback.split("; "):
                    self._connection.execute(statement)
            raise

    def close(self) -> None:
        self._connection.close()

    def _translated(self, error: Exception) -> ConfigError | RetryableError:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return RetryableError(
                f"the database {self._shown} is locked by another process; close it there and run the command again",
                kind="database_locked",
            )
        if "full" in str(error):
            return ConfigError(
                f"the disk of the database {self._shown} is full; free some space and run again"
            )
        if isinstance(error, sqlite3.DataError | sqlite3.IntegrityError):
            return RowsRefused(f"the database {self._shown} cannot store these rows ({error})")
        return ConfigError(
            f"the database {self._shown} cannot be used ({error}); check the file and its folder, or set --database-url"
        )


def _cut(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _literal(column: pa.ChunkedArray) -> str | None:
    """The SQL literal of the one value that all rows have, None where there are several or it cannot be one."""
    if (
        pa.types.is_floating(column.type)
        or len(column) < 2
        or len(distinct := pc.unique(column)) > 1
    ):
        return None
    value = distinct[0].as_py()
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(int(value))
    return None if "\x00" in value else "'" + value.replace("'", "''") + "'"


class _Postgres:
    def __init__(self, url: str) -> None:
        import psycopg

        self._psycopg = psycopg
        self._url = url
        _check_postgres_url(url)
        try:
            # A server that vanishes without a word is noticed within a minute.
            self._connection = psycopg.connect(
                url, autocommit=True, connect_timeout=10,
                keepalives_idle=30, keepalives_interval=10, keepalives_count=3, tcp_user_timeout=60_000,
            )  # fmt: skip
            # The lake is the source of truth: a crash of the server may take the last transactions,
            # ledger lines included, and they are loaded again.
            self._connection.execute("SET synchronous_commit = off")
            self._connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
        except psycopg.Error as error:
            raise self._translated(error) from error

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            if statement.startswith("CREATE TABLE"):
                # Of two that make a table at once, PostgreSQL fails one, IF NOT EXISTS or not.
                self._connection.execute("SELECT pg_advisory_xact_lock(72150)")
            cursor = self._connection.execute(
                cast(Any, statement.replace("?", "%s")), parameters or None
            )
            return cursor.fetchall() if cursor.description else []
        except self._psycopg.Error as error:
            raise self._translated(error) from error

    def upsert(self, table: str, rows: pa.Table, key: str) -> None:
        names = ", ".join(f'"{_checked(name)}"' for name in rows.column_names)
        table = _checked(table)
        incoming = _checked(f"incoming_{table}")
        data = _csv(_by_key(rows, key))
        try:
            try:
                # Nearly always all rows are new. Then COPY needs no second table.
                with self._connection.transaction():
                    self._copy(f'"{table}" ({names})', data)
            except self._psycopg.errors.UniqueViolation:
                # One for the whole transaction: the lock of a table that is dropped stays until its end,
                # and the server has some thousands of them.
                made = f'CREATE TEMP TABLE IF NOT EXISTS "{incoming}" ON COMMIT DROP AS '
                self._connection.execute(cast(Any, f'{made}SELECT {names} FROM "{table}" LIMIT 0'))
                self._copy(f'"{incoming}" ({names})', data)
                merge = f'INSERT INTO "{table}" ({names}) SELECT {names} FROM "{incoming}" '
                self._connection.execute(cast(Any, merge + _on_conflict(rows.column_names, key)))
                self._connection.execute(cast(Any, f'TRUNCATE "{incoming}"'))
        except self._psycopg.Error as error:
            raise self._translated(error) from error

    def _copy(self, target: str, data: memoryview) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(cast(Any, f"COPY {target} FROM STDIN (FORMAT csv)")) as copy,
        ):
            copy.write(data)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            with self._connection.transaction():
                yield
        except self._psycopg.Error as error:
            raise self._translated(error) from error

    def close(self) -> None:
        self._connection.close()

    def _translated(self, error: Exception) -> ConfigError | RetryableError:
        shown = redact(self._url)
        reason = redact((str(error).strip().splitlines() or [type(error).__name__])[0])
        errors = self._psycopg.errors
        refused = (
            errors.InvalidPassword,
            errors.InvalidAuthorizationSpecification,
            errors.InvalidCatalogName,
        )
        if isinstance(
            error,
            self._psycopg.DataError | self._psycopg.IntegrityError | errors.ProgramLimitExceeded,
        ):
            return RowsRefused(f"the database {shown} cannot store these rows ({reason})")
        if isinstance(error, self._psycopg.OperationalError) and not isinstance(error, refused):
            return RetryableError(
                f"the database {shown} does not answer ({reason}); start it, or set --database-url",
                kind="database_down",
            )
        return ConfigError(
            f"the database {shown} refuses ({reason}); check --database-url and its rights"
        )


def _check_postgres_url(url: str) -> None:
    """Raises ConfigError where libpq takes a part of the password for something else, and would show it."""
    import psycopg

    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        int(parts.get("port") or 0)
    except (psycopg.Error, ValueError):
        parts = None
    if parts is None or any("@" in str(parts.get(name, "")) for name in ("host", "dbname")):
        raise ConfigError(
            "the database address cannot be read; write special characters of its password as %XX "
            "(% as %25, @ as %40, / as %2F, a space as %20), in --database-url or BACKFILL_DATABASE_URL"
        ) from None


def _csv(rows: pa.Table) -> memoryview:
    """Null as nothing, text in quotes: what COPY … CSV takes for null and for an empty string."""
    columns = [
        pc.replace_substring(rows[field.name], "\x00", "\ufffd")
        if pa.types.is_string(field.type)
        else rows[field.name]
        for field in rows.schema
    ]
    sink = io.BytesIO()
    pa_csv.write_csv(
        pa.table(columns, rows.column_names), sink, pa_csv.WriteOptions(include_header=False)
    )
    return sink.getbuffer()
