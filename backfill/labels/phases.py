"""The run, write and clear phases: input queue → output queue → lake and database → nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TextIO

import pyarrow as pa

from actors.buffer import LabelBuffer
from actors.flush_policy import FlushPolicy
from actors.integrations import Integration
from backfill.labels.post_filter import BadFiles, unlabelled
from backfill.labels.result import RunResult
from backfill.labels.run import label_all, recover
from backfill.workspace import Workspace, new_run_id
from datasets import queues
from datasets.database import label_count, open_database
from datasets.database_sync import OnFill, fill
from datasets.errors import BadFile, ConfigError
from datasets.labels import writing
from datasets.lake import Lake
from datasets.locking.locks import Lock
from datasets.posts import OnBadFile, Part, Selection, Sources, raise_bad_file, read_part, select


def run_queued(
    workspace: Workspace,
    chosen: Sequence[Integration],
    since: timedelta | None,
    limit: int | None,
    stream: TextIO,
) -> RunResult:
    """Labels what is in the input queues into the output queues. Posts that are done leave the input queue.

    `since` keeps to what was enqueued in that time before now.
    """
    after = _before(datetime.now(UTC), since) if since is not None else None

    def select_posts(on_found: Callable[[], None]) -> Mapping[str, Selection]:
        return {
            integration.name: _queued(workspace.lake, integration, after, limit, on_found)
            for integration in chosen
        }

    def remove_done(locks: Mapping[str, Lock]) -> None:
        for integration in chosen:
            if integration.name in locks:
                _remove_done(workspace.lake, integration, after, locks[integration.name].ensure)

    policy = FlushPolicy(
        workspace.config.run.flush_rows, workspace.config.run.flush_seconds, never=True
    )
    selection = {
        "integrations": [integration.name for integration in chosen],
        "enqueued_after": after.isoformat() if after else None,
        "limit": limit,
    }
    return label_all(
        workspace, chosen, select_posts, policy, "run phase", selection, stream, remove_done
    )


def _before(now: datetime, since: timedelta) -> datetime:
    """That time before now, or the first one that there is."""
    first = datetime.min.replace(tzinfo=UTC)
    return now - since if since < now - first else first


def _queued(
    lake: Lake,
    integration: Integration,
    after: datetime | None,
    limit: int | None,
    on_found: Callable[[], None] = lambda: None,
) -> Selection:
    return _unlabelled_of(
        lake, integration, queues.queued_posts(lake, integration.name, after), limit, on_found
    )


def _unlabelled_of(
    lake: Lake,
    integration: Integration,
    segments: Mapping[str, Sequence[str]],
    limit: int | None = None,
    on_found: Callable[[], None] = lambda: None,
) -> Selection:
    excluded = unlabelled(lake, [integration], retry_rejected=False)
    sources = Sources(segments)
    return select(
        lake, sources, excluded, limit=limit, on_bad=_raise_not_queued, on_found=on_found
    )[integration.name]


def _raise_not_queued(error: BadFile) -> None:
    """No flag goes on without a segment: what is done is removed from the queue, and what it holds is not known."""
    raise ConfigError(
        f"{error.path} holds no queued posts ({error.reason}); move it out of the queue and run the same command again"
    ) from error


def _remove_done(
    lake: Lake,
    integration: Integration,
    after: datetime | None,
    ensure: Callable[[], None] = lambda: None,
) -> None:
    """Keeps of each segment what would be labelled next time: passing failures, and what was over the limit.

    Of the segments that are there now: what is enqueued meanwhile stays. One of them is in memory at a time.
    """
    segments = queues.queued_posts(lake, integration.name, after)
    left: dict[str, list[Part]] = {}
    for part in _unlabelled_of(lake, integration, segments).parts:
        left.setdefault(part.path, []).append(part)

    kept: set[str] = set()
    for segment in chain.from_iterable(segments.values()):
        # What is left of another segment has its name: the same posts, enqueued in the same second.
        if segment in kept:
            continue
        posts = [table for part in left.get(segment, ()) for table in read_part(lake, part)]
        left_in = queues.requeue(
            lake, integration.name, segment, pa.concat_tables(posts) if posts else None, ensure
        )
        kept.update([left_in] if left_in else [])


@dataclass(frozen=True)
class Written:
    """What a write phase did: labels moved into the lake, and rows that the database then has.

    `nameless`: label file → rows without a URI, which the database leaves out.
    """

    moved: int
    in_database: int
    nameless: Mapping[str, int] = field(default_factory=dict)


def write(
    workspace: Workspace, chosen: Sequence[Integration], bad_files: BadFiles | None = None
) -> dict[str, Written]:
    """Staged labels into the lake, and into the database whatever label files of the lake it lacks.

    The output queues keep what they had, for the clear phase. Raises RetryableError where the
    database does not answer; the labels are in the lake then.
    """
    workspace.lake.check()
    run_id, bad_files = new_run_id(), bad_files or BadFiles()
    run = workspace.config.run
    policy = FlushPolicy(
        run.flush_rows, run.flush_seconds, keep=True, skip_bad_files=bad_files.skip
    )
    moved: dict[str, int] = {}
    nameless: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        for integration in chosen:
            labels = integration.labels
            lock = stack.enter_context(Lock(workspace.lake, integration.name, "run", run_id))
            waiting = writing.count_staged(
                workspace.lake, labels, writing.staged(workspace.lake, labels)
            )
            moved[integration.name] = sum(waiting.values())
            lock.ensure()
            buffer = LabelBuffer(
                workspace.lake, integration.name, run_id, workspace.database_url, policy
            )
            buffer.close()
            for error in buffer.skipped():
                bad_files(error)
        database = stack.enter_context(closing(open_database(workspace.database_url)))
        for integration in chosen:
            found = nameless[integration.name] = {}
            tell = OnFill(bad_file=bad_files, nameless=found.__setitem__)
            fill(workspace.lake, integration.labels, database, ours_only=False, tell=tell)
        return {
            name: Written(rows, label_count(database, name), nameless[name])
            for name, rows in moved.items()
        }


def clear(
    workspace: Workspace,
    chosen: Sequence[Integration],
    kinds: Sequence[queues.Kind],
    on_bad: OnBadFile = raise_bad_file,
) -> dict[str, int]:
    """Deletes the segments of the queues, labelled or not; how many, by the queue's folder.

    A flush that was cut off is finished first: half of it would stay in the lake, and posts have two rows.
    `on_bad` is given label files that this needs and that cannot be read.
    """
    cleared = {}
    for integration in chosen:
        name, run_id = integration.name, new_run_id()
        with ExitStack() as stack:
            locks = [stack.enter_context(Lock(workspace.lake, name, "run", run_id))]
            if "output" in kinds:
                recover(workspace.lake, integration.labels, run_id, on_bad=on_bad)
            locks.append(stack.enter_context(Lock(workspace.lake, name, "buffer", run_id, 60.0)))

            def ensure(locks: Sequence[Lock] = locks) -> None:
                for lock in locks:
                    lock.ensure()

            for kind in kinds:
                cleared[queues.folder(kind, name)] = queues.clear(
                    workspace.lake, kind, name, ensure
                )
    return cleared
