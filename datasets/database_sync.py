"""Filling the database from the lake: what the ledger of loaded label files lacks, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from datasets.database import (
    Database,
    RowsRefused,
    create_label_table,
    forget_labels,
    load_labels,
    loaded_files,
)
from datasets.errors import BadFile, FileGone
from datasets.labels.reading import PREFIX, Labels, read_labels
from datasets.lake import Lake
from datasets.posts import OnBadFile, raise_bad_file


@dataclass(frozen=True)
class OnFill:
    """Whom to tell while label files are loaded: how many rows are loaded so far, which files cannot be
    used (and stay missing, unless that raises), and of a file how many of its rows have no URI.
    """

    rows: Callable[[int], None] = lambda _: None
    bad_file: OnBadFile = raise_bad_file
    nameless: Callable[[str, int], None] = lambda _, __: None


def missing_files(lake: Lake, labels: Labels, database: Database, *, ours_only: bool) -> list[str]:
    """Label files of the lake that the database has not loaded; `ours_only` leaves out the group's history."""
    loaded = loaded_files(database, labels.integration)
    return [
        path
        for files in lake.partitions(labels.integration).values()
        for path in files
        if path not in loaded and not (ours_only and not path.rpartition("/")[2].startswith(PREFIX))
    ]


def fill(
    lake: Lake, labels: Labels, database: Database, *, ours_only: bool, tell: OnFill = OnFill()
) -> int:
    """Loads the missing label files, each in its own transaction; the number of rows."""
    create_label_table(database, labels.integration, labels.schema)
    return _load_missing(lake, labels, database, tell, ours_only=ours_only)


def rebuild(lake: Lake, labels: Labels, database: Database, tell: OnFill = OnFill()) -> int:
    """Empties an integration's table and fills it from the lake, in one transaction; the number of rows.

    Whatever ends it half-way, the table keeps the rows that it had.
    """
    # Not within the transaction: who makes tables in PostgreSQL keeps others from it until it ends.
    create_label_table(database, labels.integration, labels.schema)
    with database.transaction():
        forget_labels(database, labels.integration)
        return _load_missing(lake, labels, database, tell, ours_only=False)


def _load_missing(
    lake: Lake, labels: Labels, database: Database, tell: OnFill, *, ours_only: bool
) -> int:
    total = 0
    tried: set[str] = set()
    gone = True
    while gone:
        # Listed anew after a file has gone: what took its place may not have been there before.
        gone = False
        for path in missing_files(lake, labels, database, ours_only=ours_only):
            if path in tried:
                continue
            tried.add(path)
            try:
                files = _read(lake, labels, [path])
                total += _load(lake, labels, database, files, tell)
            except BadFile as error:
                tell.bad_file(error)
            else:
                gone = gone or not files
                tell.rows(total)
    return total


def load(
    lake: Lake, labels: Labels, database: Database, paths: Sequence[str], tell: OnFill = OnFill()
) -> int:
    """Loads label files in one transaction; the number of rows. Of a post that several have, the last one's row counts.

    Files that are gone are left out: a flush has put others in their place, with what they held.
    Rows without a URI are no labels and are left out. Raises BadFile for a file with rows that the
    database cannot store.
    """
    return _load(lake, labels, database, _read(lake, labels, paths), tell)


def _read(lake: Lake, labels: Labels, paths: Sequence[str]) -> dict[str, pa.Table]:
    """Of the files that are still there, their rows."""
    files = {}
    for path in paths:
        with suppress(FileGone):
            files[path] = read_labels(lake, labels, path)
    return files


def _load(
    lake: Lake, labels: Labels, database: Database, files: Mapping[str, pa.Table], tell: OnFill
) -> int:
    if not files:
        return 0
    nameless: dict[str, int] = {path: rows["uri"].null_count for path, rows in files.items()}

    try:
        load_labels(database, labels.integration, files)
    except RowsRefused as error:
        if len(files) > 1:  # one by one, to know which
            return sum(
                _load(lake, labels, database, {path: rows}, tell) for path, rows in files.items()
            )
        raise BadFile(lake.show(*files), str(error)) from error

    for path, count in nameless.items():
        if count:
            tell.nameless(lake.show(path), count)
    return sum(map(len, files.values())) - sum(nameless.values())
