"""The run, write and clear phases: input queue → output queue → lake and database → nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TextIO

import pyarrow as pa

from actors.buffer import FlushPolicy, LabelBuffer
from actors.integrations import Integration
from backfill.config import Workspace, new_run_id
from backfill.run import RunResult, label_all
from backfill.scope import BadFiles, unlabelled
from datasets import labels as store
from datasets import queues
from datasets.database import label_count, open_database
from datasets.errors import BadFile, ConfigError
from datasets.lake import Lake
from datasets.locks import Lock
from datasets.mirror import OnFill, fill
from datasets.posts import Selection, Sources, read_part, select


def run_queued(
    place: Workspace,
    chosen: Sequence[Integration],
    since: timedelta | None,
    limit: int | None,
    stream: TextIO,
) -> RunResult:
    """Labels what is in the input queues into the output queues. Posts that are done leave the input queue.

    `since` keeps to what was enqueued in that time before now.
    """
    after = datetime.now(UTC) - since if since is not None else None

    def find(on_found: Callable[[], None]) -> Mapping[str, Selection]:
        return {integration.name: _queued(place.lake, integration, after, limit, on_found) for integration in chosen}

    def remove_done() -> None:
        for integration in chosen:
            _remove_done(place.lake, integration, after)

    policy = FlushPolicy(place.config.run.flush_rows, place.config.run.flush_seconds, never=True)
    selection = {
        "integrations": [integration.name for integration in chosen],
        "enqueued_after": after.isoformat() if after else None,
        "limit": limit,
    }
    return label_all(place, chosen, find, policy, "run phase", selection, stream, remove_done)


def _queued(
    lake: Lake,
    integration: Integration,
    after: datetime | None,
    limit: int | None,
    on_found: Callable[[], None] = lambda: None,
) -> Selection:
    excluded = unlabelled(lake, [integration], retry_rejected=False)
    sources = Sources(queues.queued_posts(lake, integration.name, after))
    return select(lake, sources, excluded, limit=limit, on_bad=_raise_not_queued, on_found=on_found)[integration.name]


def _raise_not_queued(error: BadFile) -> None:
    """No flag goes on without a segment: what is done is removed from the queue, and what it holds is not known."""
    raise ConfigError(
        f"{error.path} holds no queued posts ({error.reason}); move it out of the queue and run the same command again"
    ) from error


def _remove_done(lake: Lake, integration: Integration, after: datetime | None) -> None:
    """Keeps of each segment what would be labelled next time: passing failures, and what was over the limit."""
    left: dict[str, list[pa.Table]] = {}
    for part in _queued(lake, integration, after, None).parts:
        left.setdefault(part.path, []).extend(read_part(lake, part))
    for segments in queues.queued_posts(lake, integration.name, after).values():
        for segment in segments:
            posts = left.get(segment)
            queues.requeue(lake, integration.name, segment, pa.concat_tables(posts) if posts else None)


@dataclass(frozen=True)
class Written:
    """What a write phase did: labels moved into the lake, and rows that the database then has.

    `nameless`: label file → rows without a URI, which the database leaves out.
    """

    moved: int
    in_database: int
    nameless: Mapping[str, int] = field(default_factory=dict)


def write(place: Workspace, chosen: Sequence[Integration], bad_files: BadFiles | None = None) -> dict[str, Written]:
    """Staged labels into the lake, and into the database whatever label files of the lake it lacks.

    The output queues keep what they had, for the clear phase. Raises RetryableError where the
    database does not answer; the labels are in the lake then.
    """
    place.lake.check()
    run_id, bad_files = new_run_id(), bad_files or BadFiles()
    run = place.config.run
    policy = FlushPolicy(run.flush_rows, run.flush_seconds, keep=True, skip_bad_files=bad_files.skip)
    moved: dict[str, int] = {}
    nameless: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        for integration in chosen:
            labels = integration.labels
            stack.enter_context(Lock(place.lake, integration.name, "run", run_id))
            waiting = [f"{labels.queue}/{name}.parquet" for name in store.staged(place.lake, labels)]
            moved[integration.name] = sum(map(place.lake.num_rows, waiting))
            LabelBuffer(place.lake, integration.name, run_id, place.database_url, policy).close()
        database = stack.enter_context(closing(open_database(place.database_url)))
        for integration in chosen:
            found = nameless[integration.name] = {}
            tell = OnFill(bad_file=bad_files, nameless=found.__setitem__)
            fill(place.lake, integration.labels, database, ours_only=False, tell=tell)
        return {name: Written(rows, label_count(database, name), nameless[name]) for name, rows in moved.items()}


def clear(place: Workspace, chosen: Sequence[Integration], kinds: Sequence[queues.Kind]) -> dict[str, int]:
    """Deletes the segments of the queues, labelled or not; how many, by the queue's folder."""
    cleared = {}
    for integration in chosen:
        name, run_id = integration.name, new_run_id()
        with Lock(place.lake, name, "run", run_id), Lock(place.lake, name, "buffer", run_id, 60.0):
            for kind in kinds:
                cleared[queues.folder(kind, integration.name)] = queues.clear(place.lake, kind, integration.name)
    return cleared
