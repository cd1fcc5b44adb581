"""Filling the database from the lake: what the ledger of loaded label files lacks, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from datasets.database import Database, create_label_table, load_labels, loaded_files
from datasets.label_files import PREFIX, Labels, read_labels
from datasets.lake import Lake


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
    lake: Lake, labels: Labels, database: Database, *, ours_only: bool, on_rows: Callable[[int], None] | None = None
) -> int:
    """Loads the missing label files, each in its own transaction; the number of rows."""
    create_label_table(database, labels.integration, labels.schema)
    total = 0
    for path in missing_files(lake, labels, database, ours_only=ours_only):
        total += load(lake, labels, database, [path])
        if on_rows:
            on_rows(total)
    return total


def load(lake: Lake, labels: Labels, database: Database, paths: Sequence[str]) -> int:
    """Loads label files that have no post in common, in one transaction; the number of rows."""
    files = {path: read_labels(lake, labels, path) for path in paths}
    load_labels(database, labels.integration, files)
    return sum(map(len, files.values()))
