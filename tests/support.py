"""Small lakes for tests, and what is true of a labelled one."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent
VALENCE = "ml_inference_valence_classifier"
DAY = "2024-10-01"
_LETTERS = "234567abcdefghijklmnopqrstuvwxyz"
_TEXT = "the my great awful love hate happy sad not never very so cats rain vote late win :) :( 😀 BAD GOOD but kind of"
_WORDS = _TEXT.split(" ")


def make_uri(number: int) -> str:
    rng = random.Random(number)
    did, rkey = ("".join(rng.choices(_LETTERS, k=k)) for k in (24, 11))
    return f"at://did:plc:{did}/app.bsky.feed.post/3k{rkey}"


def make_text(number: int) -> str:
    rng = random.Random(number)
    return " ".join(rng.choices(_WORDS, k=rng.randint(3, 20)))


def post(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "uri": make_uri(number),
        "text": make_text(number),
        "preprocessing_timestamp": f"{DAY}-12:00:00",
        **changes,
    }


def write_partition(
    root: Path | str,
    dataset: str,
    day: str,
    rows: Sequence[Mapping[str, Any]],
    name: str = "part-0",
    tier: str = "cache",
) -> Path:
    folder = Path(root) / dataset / tier / f"partition_date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    kinds = {
        "uri": pa.string(),
        "text": pa.string(),
        "preprocessing_timestamp": pa.string(),
        "was_successfully_labeled": pa.bool_(),
    }
    names = list(rows[0]) if rows else ["uri", "text", "preprocessing_timestamp"]
    columns = {key: pa.array([row[key] for row in rows], kinds.get(key)) for key in names}
    pq.write_table(pa.table(columns), path)
    return path


def write_posts(
    root: Path | str,
    day: str,
    rows: Sequence[Mapping[str, Any]],
    name: str = "part-0",
    tier: str = "cache",
) -> Path:
    return write_partition(root, "preprocessed_posts", day, rows, name, tier)


def make_lake(
    root: Path,
    posts_per_day: int = 40,
    days: Iterable[str] = (DAY, "2024-10-02"),
    *,
    first: int = 0,
) -> dict[str, set[str]]:
    """A lake of whole posts, the first of them number `first`; partition date → its URIs."""
    uris: dict[str, set[str]] = {}
    number = first
    for day in days:
        rows = [post(number + n) for n in range(posts_per_day)]
        number += posts_per_day
        write_posts(root, day, rows)
        uris[day] = {row["uri"] for row in rows}
    return uris


def lake_labels(root: Path | str, integration: str = VALENCE) -> list[dict[str, Any]]:
    """Every label row of both tiers, with its `partition_date`."""
    rows = []
    for path in sorted(Path(root).glob(f"{integration}/*/partition_date=*/*.parquet")):
        day = path.parent.name.removeprefix("partition_date=")
        rows += [{**row, "partition_date": day} for row in pq.ParquetFile(path).read().to_pylist()]
    return rows


def database_labels(root: Path | str, integration: str = VALENCE) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{root}/backfill.db?mode=ro", uri=True)) as connection:
        return connection.execute(
            f'SELECT uri, text, was_successfully_labeled FROM "{integration}"'
        ).fetchall()


def queue_files(root: Path | str) -> list[str]:
    """Files in the queues, and of the files with answers those that hold some."""
    return [
        str(path)
        for path in Path(root).glob("queues/**/*")
        if path.is_file() and not _is_empty_store(path)
    ]


def _is_empty_store(path: Path) -> bool:
    if path.parent.name != "responses":
        return False
    if path.suffix != ".db":
        return True  # beside a store
    with closing(sqlite3.connect(path)) as connection:
        return not connection.execute("SELECT count(*) FROM responses").fetchone()[0]


def assert_labelled_once(
    root: Path | str, uris: Mapping[str, Iterable[str]], integration: str = VALENCE
) -> None:
    """Each URI once in its own partition of the lake and once in the database; nothing in the queues."""
    expected = sorted((day, uri) for day, these in uris.items() for uri in these)
    assert (
        sorted((row["partition_date"], row["uri"]) for row in lake_labels(root, integration))
        == expected
    )
    assert sorted(row[0] for row in database_labels(root, integration)) == sorted(
        uri for _, uri in expected
    )
    assert queue_files(root) == []


def cli_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", *arguments]


def cli_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("BACKFILL_", "RAY_ADDRESS"))
    }
    return {**clean, **(more or {})}


def run_cli(
    *arguments: str, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The command line as a user calls it, in a process of its own."""
    return subprocess.run(
        cli_command(*arguments),
        cwd=ROOT,
        env=cli_environment(env),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
