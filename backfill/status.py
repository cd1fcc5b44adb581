"""The state of a lake: queues, coverage, last runs, and how far the database is behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from actors.integrations import Integration, integrations
from backfill.config import Workspace, new_run_id
from backfill.scope import BadFiles
from datasets import queues
from datasets.database import create_label_table, forget_labels, is_there, label_count, last_runs, open_database
from datasets.errors import BackfillError, ConfigError
from datasets.label_files import Coverage, coverage
from datasets.lake import POSTS
from datasets.locks import Lock
from datasets.mirror import fill, missing_files
from datasets.posts import Sources, no_uris, select


@dataclass
class Status:
    """`coverage`: integration → date → posts, labelled, rejected. `behind`: label rows that the database lacks."""

    queues: dict[str, dict[str, int]] = field(default_factory=dict)
    coverage: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    behind: dict[str, int] = field(default_factory=dict)
    database_error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        rejected = {name: dict(reasons) for name, reasons in self.rejected.items()}
        return {**self.__dict__, "rejected": rejected}


def status(place: Workspace, start: str | None, end: str | None, bad_files: BadFiles) -> Status:
    """Reads only. Staged labels count as in the output queue, not as coverage."""
    lake = place.lake
    if not lake.exists(""):
        raise ConfigError(f"there is no data folder {lake.root}; set --data-dir or BACKFILL_DATA_DIR")
    found = Status()
    posts = select(lake, Sources(lake.partitions(POSTS, start, end)), {"": no_uris}, on_bad=bad_files)[""].by_date()
    for name, integration in integrations().items():
        labelled = coverage(lake, integration.labels, start, end, bad_files)
        found.queues[name] = {kind: queues.count(lake, kind, name) for kind in ("input", "output")}
        found.rejected[name] = sum((Counter(day.reasons) for day in labelled.values()), Counter())
        none = Coverage(0, 0, {})
        found.coverage[name] = {
            day: {
                "posts": posts.get(day, 0),
                "labelled": labelled.get(day, none).labelled,
                "rejected": labelled.get(day, none).rejected,
            }
            for day in sorted(posts.keys() | labelled.keys())
        }
    _read_database(place, found)
    return found


def _read_database(place: Workspace, found: Status) -> None:
    if not is_there(place.database_url):
        return
    try:
        with closing(open_database(place.database_url)) as database:
            found.runs = last_runs(database)
            for name, integration in integrations().items():
                files = missing_files(place.lake, integration.labels, database, ours_only=False)
                found.behind[name] = sum(map(place.lake.num_rows, files))
    except BackfillError as error:
        found.database_error = str(error)


def rebuild_database(place: Workspace, say: Callable[[str], None]) -> dict[str, int]:
    """Empties the label tables and fills them from the lake; rows by integration."""
    place.lake.check()
    rows = {}
    with closing(open_database(place.database_url)) as database:
        for name, integration in integrations().items():
            with Lock(place.lake, name, "run", new_run_id()):
                create_label_table(database, name, integration.labels.schema)
                forget_labels(database, name)
                _fill(place, integration, database, say)
                rows[name] = label_count(database, name)
    return rows


def _fill(place: Workspace, integration: Integration, database: Any, say: Callable[[str], None]) -> None:
    def on_rows(rows: int) -> None:
        say(f"{integration.name}: {rows:,} rows")

    fill(place.lake, integration.labels, database, ours_only=False, on_rows=on_rows)
