"""The state of a lake: queues, coverage, last runs, and how far the database is behind."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from actors.integrations import integrations
from backfill.labels.post_filter import BadFiles
from backfill.labels.run import recover
from backfill.workspace import Workspace, new_run_id
from datasets import queues
from datasets.database import is_there, label_count, last_runs, open_database
from datasets.database_sync import OnFill, missing_files, rebuild
from datasets.errors import BackfillError, BadFile, ConfigError, FileGone
from datasets.labels.reading import Coverage, coverage
from datasets.lake import POSTS, Lake
from datasets.locking.locks import Lock
from datasets.posts import OnBadFile, Sources, no_uris, raise_bad_file, select


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


def status(workspace: Workspace, start: str | None, end: str | None, bad_files: BadFiles) -> Status:
    """Reads only. Staged labels count as in the output queue, not as coverage."""
    lake = workspace.lake
    if not lake.exists(""):
        raise ConfigError(
            f"there is no data folder {lake.root}; set --data-dir or BACKFILL_DATA_DIR"
        )
    found = Status()
    posts = select(
        lake, Sources(lake.partitions(POSTS, start, end)), {"": no_uris}, on_bad=bad_files
    )[""].by_date()
    for name, integration in integrations().items():
        labelled = coverage(lake, integration.labels, start, end, bad_files)
        found.queues[name] = {
            kind: queues.count(lake, kind, name, bad_files) for kind in ("input", "output")
        }
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
    _read_database(workspace, found, bad_files)
    return found


def _read_database(workspace: Workspace, found: Status, bad_files: BadFiles) -> None:
    if not is_there(workspace.database_url):
        return
    try:
        with closing(open_database(workspace.database_url)) as database:
            found.runs = last_runs(database)
            for name, integration in integrations().items():
                files = missing_files(workspace.lake, integration.labels, database, ours_only=False)
                found.behind[name] = sum(_rows(workspace.lake, path, bad_files) for path in files)
    except BadFile:
        raise
    except BackfillError as error:
        found.database_error = str(error)


def _rows(lake: Lake, path: str, bad_files: BadFiles) -> int:
    """None in a bad file, and none in one that a run has replaced meanwhile."""
    try:
        return lake.num_rows(path)
    except FileGone:
        return 0
    except BadFile as error:
        bad_files(error)
        return 0


def rebuild_database(
    workspace: Workspace,
    say: Callable[[str], None],
    on_bad: OnBadFile = raise_bad_file,
    on_nameless: Callable[[str, int], None] = lambda _, __: None,
) -> dict[str, int]:
    """Fills the label tables from the lake anew; rows by integration.

    Flushes that were cut off are finished first: until then, a post may have two rows in the lake.
    A table keeps the rows that it had where its rebuild does not get to its end.
    """
    workspace.lake.check()
    rows = {}
    with closing(open_database(workspace.database_url)) as database:
        for name, integration in integrations().items():
            told = OnFill(functools.partial(_say_rows, say, name), on_bad, on_nameless)
            run_id = new_run_id()
            with Lock(workspace.lake, name, "run", run_id):
                recover(workspace.lake, integration.labels, run_id, on_bad=on_bad)
                rebuild(workspace.lake, integration.labels, database, told)
                rows[name] = label_count(database, name)
                say(f"{name}: {rows[name]:,} rows in the database")
    return rows


def _say_rows(say: Callable[[str], None], name: str, rows: int) -> None:
    say(f"{name}: {rows:,} rows")
