from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest

from datasets import database as db
from datasets.database import Database, open_database
from datasets.database_sync import OnFill, fill, load, missing_files, rebuild
from datasets.errors import BadFile, ConfigError, RetryableError
from datasets.labels.reading import Labels
from datasets.labels.writing import stage
from datasets.lake import Lake
from datasets.schemas import label_schema, staged_schema
from tests.support import DAY, post, write_partition

LABELS = Labels(
    "ml_inference_x",
    label_schema({"score": "float64", "label": "int64", "flag": "bool", "kind": "string"}),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = (
        f"sqlite:///{tmp_path}/x.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    opened = open_database(url)
    with opened.transaction():
        for table in ("ml_inference_x", "runs", "label_files"):
            opened.execute(f"DROP TABLE IF EXISTS {table}")
    opened.close()
    opened = open_database(url)
    db.create_label_table(opened, "ml_inference_x", LABELS.schema)
    yield opened
    opened.close()


def rows(numbers: range, **changes: Any) -> pa.Table:
    made = [
        {
            **post(n),
            "score": n / 8,
            "label": n,
            "flag": n % 2 == 0,
            "kind": f"k{n}",
            "was_successfully_labeled": True,
            **changes,
        }
        for n in numbers
    ]
    return pa.Table.from_pylist(made, schema=LABELS.schema)


def stored(database: Database) -> list[tuple[Any, ...]]:
    names = ", ".join(LABELS.schema.names)
    return [
        tuple(
            bool(v) if n in ("flag", "was_successfully_labeled") and v is not None else v
            for n, v in zip(LABELS.schema.names, row, strict=True)
        )
        for row in database.execute(f"SELECT {names} FROM ml_inference_x ORDER BY uri")
    ]


def expected(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.sort_by("uri").to_pylist()]


@pytest.mark.parametrize("count", [1, 64, 100, 8192 + 65])
def test_rows_come_back_as_they_went_in(database: Database, count: int) -> None:
    """Also where they fill several INSERTs, or several times what is made Python objects at once, and a rest."""
    table = rows(range(count))
    db.load_labels(database, "ml_inference_x", {"f": table})
    assert stored(database) == expected(table)


def test_loading_again_replaces_by_uri(database: Database) -> None:
    db.load_labels(database, "ml_inference_x", {"f": rows(range(10))})
    db.load_labels(
        database,
        "ml_inference_x",
        {"g": rows(range(5, 15), score=9.5, reason="it's new", kind=None)},
    )
    table = pa.concat_tables(
        [rows(range(5)), rows(range(5, 15), score=9.5, reason="it's new", kind=None)]
    )
    assert stored(database) == expected(table)
    assert db.loaded_files(database, "ml_inference_x") == {"f", "g"}
    assert db.label_count(database, "ml_inference_x") == 15


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quo\"te's",
        "a\\nb\\",
        "line\nbreak\r\n,comma",
        "עברית",
        "😀",
        "\\N",
        "NULL",
        "x" * 20_000,
        "%s ? ;--",
    ],
)
def test_texts_are_stored_unchanged(database: Database, text: str) -> None:
    # Alone, in one statement with others, and as the value that all rows share.
    table = pa.concat_tables(
        [
            rows(range(1), text=text),
            rows(range(1, 4)),
            rows(range(4, 6), text=text, reason=text, kind=text),
        ]
    )
    db.load_labels(database, "ml_inference_x", {"f": table})
    db.load_labels(
        database, "ml_inference_x", {"g": rows(range(6, 9), text=text, reason=text, kind=text)}
    )
    assert stored(database) == expected(
        pa.concat_tables([table, rows(range(6, 9), text=text, reason=text, kind=text)])
    )


def test_nul_is_kept_where_the_database_can_and_replaced_where_it_cannot(
    database: Database,
) -> None:
    db.load_labels(database, "ml_inference_x", {"f": rows(range(3), text="a\x00b", kind="\x00")})
    kept = "a\x00b" if isinstance(database, db._Sqlite) else "a\ufffdb"
    assert [row[1] for row in stored(database)] == [kept] * 3


def test_a_failed_load_leaves_neither_rows_nor_a_line_in_the_ledger(database: Database) -> None:
    broken = rows(range(5)).append_column("no_such_column", pa.array([1] * 5))
    with pytest.raises(ConfigError):
        db.load_labels(database, "ml_inference_x", {"f": broken})
    assert (stored(database), db.loaded_files(database, "ml_inference_x")) == ([], set())
    db.load_labels(database, "ml_inference_x", {"f": rows(range(5))})
    assert len(stored(database)) == 5


def test_of_rows_with_one_uri_the_last_counts_and_rows_without_are_no_labels(
    database: Database, tmp_path: Path
) -> None:
    """History that others wrote: both databases end with the same rows, whichever are there already."""
    history = [
        {"uri": uri, "text": text, "was_successfully_labeled": True}
        for uri, text in (
            ("b", "1"),
            (None, "2"),
            ("a", "3"),
            ("b", "4"),
            (None, "5"),
            ("", "6"),
            ("a", "7"),
        )
    ]
    lake, nameless = Lake(str(tmp_path / "lake")), dict[str, int]()
    first = write_partition(lake.root, "ml_inference_x", DAY, history, name="history")
    write_partition(
        lake.root,
        "ml_inference_x",
        "2024-10-02",
        [{"uri": "b", "text": "8"}, {"uri": "c", "text": "9"}],
    )
    assert (
        fill(lake, LABELS, database, ours_only=False, tell=OnFill(nameless=nameless.__setitem__))
        == 7
    )
    found = database.execute("SELECT uri, text FROM ml_inference_x ORDER BY uri")
    assert found == [("", "6"), ("a", "7"), ("b", "8"), ("c", "9")]
    assert nameless == {str(first): 2}
    assert missing_files(lake, LABELS, database, ours_only=False) == []


def test_the_last_of_many_repeats_counts_however_the_rows_lie_in_memory(database: Database) -> None:
    chunks = [rows(range(40), label=number) for number in range(50)]
    db.load_labels(database, "ml_inference_x", {"f": pa.concat_tables(chunks)})
    assert stored(database) == expected(rows(range(40), label=49))
    db.load_labels(
        database,
        "ml_inference_x",
        {"g": rows(range(3)).set_column(0, "uri", pa.nulls(3, pa.string()))},
    )
    assert db.label_count(database, "ml_inference_x") == 40


def test_a_rebuild_that_ends_half_way_loses_nothing(database: Database, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    write_partition(lake.root, "ml_inference_x", DAY, rows(range(4)).to_pylist(), name="labels-1")
    bad = write_partition(
        lake.root, "ml_inference_x", DAY, rows(range(4, 8)).to_pylist(), name="labels-2"
    )
    fill(lake, LABELS, database, ours_only=False)
    before, ledger = stored(database), db.loaded_files(database, "ml_inference_x")
    bad.write_bytes(b"PAR1")
    with pytest.raises(BadFile, match=r"labels-2\.parquet"):
        rebuild(lake, LABELS, database)
    assert (stored(database), db.loaded_files(database, "ml_inference_x")) == (before, ledger)
    skipped: list[BadFile] = []
    assert rebuild(lake, LABELS, database, OnFill(bad_file=skipped.append)) == 4
    assert [error.path for error in skipped] == [str(bad)]
    assert stored(database) == expected(rows(range(4)))
    assert missing_files(lake, LABELS, database, ours_only=False) == [
        str(bad.relative_to(lake.root))
    ]


def test_a_rebuild_merges_any_number_of_files_with_the_same_posts(
    database: Database, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path))
    for n in range(200):
        write_partition(
            tmp_path,
            "ml_inference_x",
            DAY,
            rows(range(3), label=n).to_pylist(),
            name=f"part-{n:03}",
        )
    rebuild(lake, LABELS, database)
    assert stored(database) == expected(rows(range(3), label=199))


def test_transactions_within_one_another_fail_alone_and_are_kept_together(
    database: Database,
) -> None:
    with suppress(ZeroDivisionError), database.transaction():
        with database.transaction():
            db.load_labels(database, "ml_inference_x", {"a": rows(range(1))})
        with suppress(ZeroDivisionError), database.transaction():
            db.load_labels(database, "ml_inference_x", {"b": rows(range(1, 2))})
            raise ZeroDivisionError
        assert db.loaded_files(database, "ml_inference_x") == {"a"}
        raise ZeroDivisionError
    assert db.loaded_files(database, "ml_inference_x") == set()


def test_a_file_whose_rows_postgresql_cannot_store_is_named(
    postgres_url: str, tmp_path: Path
) -> None:
    """A key may have 2,704 bytes in its index. Others of the same load are stored."""
    lake = Lake(str(tmp_path))
    too_long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=9000))
    good = write_partition(tmp_path, "ml_inference_x", DAY, rows(range(3)).to_pylist(), name="a")
    bad = write_partition(tmp_path, "ml_inference_x", DAY, [{"uri": too_long}], name="b")
    with closing(open_database(postgres_url)) as database:
        database.execute("DROP TABLE IF EXISTS ml_inference_x")
        db.create_label_table(database, "ml_inference_x", LABELS.schema)
        with pytest.raises(
            BadFile, match=r"b\.parquet: the database .* cannot store these rows"
        ) as caught:
            load(lake, LABELS, database, [str(path.relative_to(tmp_path)) for path in (good, bad)])
        assert "does not answer" not in str(caught.value)
        assert db.label_count(database, "ml_inference_x") == 3


def test_runs_are_recorded_and_replaced(database: Database) -> None:
    run = {"run_id": "b", "command": "run", "selection": {"start": DAY}, "started_at": "2026-01-02"}
    db.record_run(database, {"run_id": "a", "command": "run", "started_at": "2026-01-01"})
    db.record_run(database, run)
    db.record_run(database, {**run, "exit_code": 3, "counts": {"x": {"labelled": 5}}})
    latest, earlier = db.last_runs(database)
    assert (latest["run_id"], latest["exit_code"], latest["counts"], latest["selection"]) == (
        "b",
        3,
        {"x": {"labelled": 5}},
        {"start": DAY},
    )
    assert (earlier["run_id"], earlier["exit_code"], earlier["counts"]) == ("a", None, {})


def test_the_database_is_filled_with_what_its_ledger_lacks(
    database: Database, tmp_path: Path
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    ours = rows(range(4)).to_pylist()
    write_partition(lake.root, "ml_inference_x", DAY, ours, name="labels-run-1")
    write_partition(
        lake.root, "ml_inference_x", DAY, [{"uri": "history"}], name="part-0", tier="active"
    )
    assert fill(lake, LABELS, database, ours_only=True) == 4
    assert fill(lake, LABELS, database, ours_only=True) == 0
    assert [
        path.rpartition("/")[2] for path in missing_files(lake, LABELS, database, ours_only=False)
    ] == ["part-0.parquet"]
    assert fill(lake, LABELS, database, ours_only=False) == 1
    assert db.label_count(database, "ml_inference_x") == 5
    db.forget_labels(database, "ml_inference_x")
    assert fill(lake, LABELS, database, ours_only=False) == 5


class Flushing(Lake):
    """A lake in which another process puts a file in the place of one that was just listed."""

    def partitions(
        self, dataset: str, start: str | None = None, end: str | None = None
    ) -> dict[str, list[str]]:
        found = super().partitions(dataset, start, end)
        folder = f"{dataset}/cache/partition_date={DAY}"
        if self.exists(f"{folder}/labels-r1-1.parquet"):
            self.write_parquet(f"{folder}/labels-r2-1.0.parquet", rows(range(2)))
            self.delete(f"{folder}/labels-r1-1.parquet")
        return found


def test_a_label_file_that_another_run_replaces_while_the_database_is_filled_does_not_stop_it(
    database: Database, tmp_path: Path
) -> None:
    for name, numbers in {"labels-r1-1": range(2), "labels-r1-2": range(2, 4)}.items():
        write_partition(tmp_path, "ml_inference_x", DAY, rows(numbers).to_pylist(), name=name)
    assert fill(Flushing(str(tmp_path)), LABELS, database, ours_only=True) == 4
    assert len(stored(database)) == 4
    assert missing_files(Lake(str(tmp_path)), LABELS, database, ours_only=True) == []


def test_a_file_that_a_later_flush_has_replaced_is_not_waited_for(
    database: Database, tmp_path: Path
) -> None:
    """The next flush of a retry replaces what the one before has left of a file with rejected rows."""
    write_partition(tmp_path, "ml_inference_x", DAY, rows(range(2)).to_pylist(), name="labels-r1-1")
    lake = Lake(str(tmp_path))
    (there,) = lake.partitions("ml_inference_x")[DAY]
    assert load(lake, LABELS, database, [there, there.replace("r1-1", "r1-1.0")]) == 2
    assert load(lake, LABELS, database, [there.replace("r1-1", "r1-1.0")]) == 0


def test_a_locked_sqlite_database_is_retryable_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LOCK_SECONDS", 0.1)
    open_database(f"sqlite:///{tmp_path}/x.db").close()
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RetryableError, match=r"x\.db is locked by another process"):
            open_database(f"sqlite:///{tmp_path}/x.db")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match=r"x\.db cannot be used"):
        open_database(f"sqlite:///{tmp_path}/x.db")


def test_a_server_that_is_down_is_retryable_and_keeps_the_password_to_itself() -> None:
    with pytest.raises(RetryableError) as raised:
        open_database("postgresql://me:s3cret@127.0.0.1:1/labels")
    assert "s3cret" not in str(raised.value)
    assert "postgresql://me:***@127.0.0.1:1/labels does not answer" in str(raised.value)


def test_an_unknown_address_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"mysql://me:\*\*\*@host/x is not a database address"):
        open_database("mysql://me:s3cret@host/x")


def test_a_name_that_is_no_name_never_reaches_sql(tmp_path: Path) -> None:
    with (
        closing(open_database(f"sqlite:///{tmp_path}/x.db")) as database,
        pytest.raises(ValueError, match="cannot be the name"),
    ):
        db.label_count(database, 'x"; DROP TABLE runs; --')


def test_staged_rows_are_not_in_the_lake_yet(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    table = rows(range(2)).append_column("partition_date", pa.array([DAY] * 2))
    stage(lake, LABELS, "batch", table.cast(staged_schema(LABELS.schema)))
    with closing(open_database(f"sqlite:///{tmp_path}/x.db")) as database:
        assert fill(lake, LABELS, database, ours_only=False) == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_buffers_that_start_at_once_fill_the_same_tables(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = (
        f"sqlite:///{tmp_path}/x.db"
        if kind == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    with closing(open_database(url)) as opened, opened.transaction():
        for table in ("ml_inference_x", "runs", "label_files"):
            opened.execute(f"DROP TABLE IF EXISTS {table}")
    for n in range(8):
        write_partition(
            tmp_path,
            "ml_inference_x",
            DAY,
            rows(range(n * 10, n * 10 + 10)).to_pylist(),
            f"labels-{n}",
        )
    together = Barrier(8)

    def fill_at_once(_: int) -> int:
        together.wait()
        with closing(open_database(url)) as opened:
            return fill(Lake(str(tmp_path)), LABELS, opened, ours_only=True)

    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(fill_at_once, range(8)))
    assert max(loaded) == 80
    with closing(open_database(url)) as opened:
        assert db.label_count(opened, "ml_inference_x") == 80
        assert missing_files(Lake(str(tmp_path)), LABELS, opened, ours_only=True) == []


def test_a_lake_on_s3_is_told_to_bring_a_database() -> None:
    with pytest.raises(ConfigError, match="set --database-url or BACKFILL_DATABASE_URL"):
        open_database("")
    assert not db.is_there("")
