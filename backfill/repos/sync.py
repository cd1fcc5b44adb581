"""`pds sync`: from users to verified records in the lake.

The driver decides and writes, fetchers send requests, Ray tasks decode. What fetchers report as
staged is on durable storage. Only the driver moves it into the lake (datasets/repos/flush.py) and
updates the database. It holds a lock that ends with its process, so it may be killed at any moment.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TextIO

from backfill.ray_session import ray_running
from backfill.repos.counts import SyncCounts
from backfill.repos.driver import Driver
from backfill.repos.fetchers import HostFetchers
from backfill.repos.users import HostUsers, UserList, check_file, read_users
from backfill.repos.writer import Writer, report_outdated
from backfill.status_line import StatusLine
from backfill.workspace import Workspace, new_run_id
from datasets.boundary.secrets import remember_url
from datasets.database import Database, open_database
from datasets.errors import ConfigError
from datasets.lake import Lake, ensure_lake
from datasets.locking.locks import Lock
from datasets.queues import digest
from datasets.repos.coverage import RECORD_TYPES, covering
from datasets.repos.flush import flush, recover
from datasets.repos.staging import staged
from datasets.repos.state import RepoState, create_tables
from datasets.scratch import scratch_folder
from pds.addresses import origin_of
from pds.errors import RejectedRepo
from pds.settings import PLC_DIRECTORY, PdsSettings

LOCK = "raw_sync"
_SPOOL = ".spool"


@dataclass(frozen=True)
class SyncOptions:
    """The users to sync (`dids` and `dids_file`, or all users of `host`), and which records.

    `start` and `end` are inclusive days (YYYY-MM-DD, UTC) of `createdAt`; None means no limit.
    """

    dids: tuple[str, ...] = ()
    dids_file: str | None = None
    host: str | None = None
    record_types: tuple[str, ...] = RECORD_TYPES
    start: str | None = None
    end: str | None = None
    plc_url: str = PLC_DIRECTORY
    allow_insecure_hosts: bool = False
    settings: PdsSettings = field(default_factory=PdsSettings)


@dataclass
class SyncResult:
    run_id: str
    counts: SyncCounts
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 if every user has a final status, 3 if some are left for the next run."""
        if self.interrupted:
            return 130
        return 3 if self.counts.unfinished or self.counts.not_listed else 0

    def as_dict(self) -> dict[str, Any]:
        counts = self.counts
        invalid = [
            {"line": line.line, "did": line.did, "reason": line.reason} for line in counts.invalid
        ]
        return {
            "run_id": self.run_id,
            "users": counts.users,
            "statuses": dict(counts.statuses),
            "left": counts.unfinished,
            "records": dict(counts.records),
            "skipped": counts.skipped,
            "unreadable_dates": counts.unreadable_dates,
            "malformed": counts.malformed,
            "bytes": counts.bytes,
            "invalid": invalid,
            "not_listed": counts.not_listed,
            "seconds": round(self.seconds, 3),
        }


def sync(workspace: Workspace, options: SyncOptions, stream: TextIO) -> SyncResult:
    """Syncs users and shows progress on `stream`. Raises BackfillError.

    Options are checked before the first request is sent and before anything is written.
    """
    started = time.monotonic()
    plc_url = user_origin(options.plc_url, "--plc-url")
    host = user_origin(options.host, "--host") if options.host else None
    check_file(options.dids_file)
    ensure_lake(workspace.lake)

    run_id = new_run_id()
    result = SyncResult(run_id, SyncCounts())
    with ExitStack() as stack:
        lock = stack.enter_context(Lock(workspace.lake, LOCK, "run", run_id))
        database = open_database(workspace.database_url)
        stack.callback(database.close)
        progress = StatusLine(stream)
        stack.callback(progress.close)

        flusher = _StagedFlusher(workspace.lake, database, lock, progress)
        flusher.recover(run_id)

        trusted = [origin for origin in (plc_url, host) if origin]
        fetchers = _start_fetchers(workspace, options, trusted, run_id, stack)
        writer = Writer(workspace.lake, database, run_id, lock, options.settings, progress.say)
        driver = Driver(
            database,
            fetchers,
            writer,
            progress,
            covering(options.record_types, options.start, options.end),
            plc_url,
            options.settings.identity_hours,
        )
        result.counts = driver.counts
        result.interrupted = _run(driver, _users(options, host), fetchers, progress)

        writer.save()
        writer.flush()
        if result.interrupted:
            # Repositories that were staged and not yet reported to the driver.
            result.counts.add_fetched(flusher.flush(f"{run_id}-last"))

    result.seconds = time.monotonic() - started
    return result


def user_origin(url: str, option: str) -> str:
    """The origin of a host that the user named. It may have any address. Raises ConfigError."""
    remember_url(url)
    try:
        return origin_of(url if "://" in url else f"https://{url}", insecure=True)
    except RejectedRepo as error:
        raise ConfigError(f"{option}: {error}; give it as https://HOST") from error


def _users(options: SyncOptions, host: str | None) -> UserList | HostUsers:
    if host:
        return HostUsers(host)
    return UserList(read_users(options.dids, options.dids_file))


def _run(
    driver: Driver,
    users: UserList | HostUsers,
    fetchers: HostFetchers,
    progress: StatusLine,
) -> bool:
    """Whether the user interrupted it. The fetchers are stopped then."""
    try:
        driver.run(users)
    except KeyboardInterrupt:
        progress.say("stopping; what is fetched is being saved")
        fetchers.close()
        return True

    return False


@dataclass(frozen=True)
class _StagedFlusher:
    """Flushes what is staged and was not reported to this run's driver."""

    lake: Lake
    database: Database
    lock: Lock
    progress: StatusLine

    def recover(self, run_id: str) -> None:
        """Completes what a killed run left: an unfinished flush, then its staged repositories."""
        create_tables(self.database)
        recover(self.lake, self.database, self.lock.ensure)

        if repos := self.flush(f"{run_id}-0"):
            self.progress.say(
                f"wrote the records of {len(repos):,} users, which an earlier run had fetched"
            )

    def flush(self, batch: str) -> Sequence[RepoState]:
        receipts = staged(self.lake)
        if not receipts:
            return ()

        written = flush(self.lake, self.database, receipts, batch, self.lock.ensure)
        report_outdated(receipts, written, self.progress.say)
        return written


def _start_fetchers(
    workspace: Workspace,
    options: SyncOptions,
    trusted: list[str],
    run_id: str,
    stack: ExitStack,
) -> HostFetchers:
    """Must be called in the main thread: Ray's processes end with the thread that started them."""
    stack.enter_context(ray_running(workspace.ray_address, debug=workspace.debug))

    spool = _new_spool(workspace.lake, run_id)
    stack.callback(shutil.rmtree, spool, ignore_errors=True)

    fetchers = HostFetchers(
        options.settings,
        trusted,
        workspace.lake,
        run_id,
        spool,
        insecure=options.allow_insecure_hosts,
    )
    stack.callback(fetchers.close)
    return fetchers


def _new_spool(lake: Lake, run_id: str) -> str:
    """A path for downloads. Deletes those of killed runs; the lock excludes runs that are alive."""
    if lake.is_local:
        root = os.path.join(os.path.abspath(lake.root), _SPOOL)
    else:
        root = os.path.join(scratch_folder("spool"), digest([lake.root]))

    shutil.rmtree(root, ignore_errors=True)
    return os.path.join(root, run_id)
