"""`pds sync`: from users to verified records in the lake.

The driver decides and writes; fetchers of hosts ask, Ray tasks decode. What fetchers report as staged
is on durable storage; only the driver moves it into the lake (datasets/repos/raw_records.py) and keeps
the state, under a lock that dies with it, so it may be killed at any moment.
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
from backfill.repos.driver import Driver, SyncCounts
from backfill.repos.fetchers import HostFetchers
from backfill.repos.users import HostUsers, UserList, check_file, read_users
from backfill.repos.writer import Writer, say_outdated
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
    """Whom to sync (`dids`, `dids_file`, or everyone on `host`), and which of their records."""

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
        """0 everyone is synced or has an answer, 3 some are left for a transient reason."""
        if self.interrupted:
            return 130
        return 3 if self.counts.left or self.counts.not_listed else 0

    def as_dict(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "run_id": self.run_id,
            "users": counts.users,
            "statuses": dict(counts.statuses),
            "left": counts.left,
            "records": dict(counts.records),
            "skipped": counts.skipped,
            "unreadable_dates": counts.unreadable_dates,
            "malformed": counts.malformed,
            "bytes": counts.bytes,
            "invalid": [
                {"line": line.line, "did": line.did, "reason": line.reason}
                for line in counts.invalid
            ],
            "not_listed": counts.not_listed,
            "seconds": round(self.seconds, 3),
        }


def sync(workspace: Workspace, options: SyncOptions, stream: TextIO) -> SyncResult:
    """Everything that may refuse does so before anything is asked. Raises BackfillError."""
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
        _recover(workspace.lake, database, run_id, lock, progress)
        source = HostUsers(host) if host else UserList(read_users(options.dids, options.dids_file))
        trusted = [origin for origin in (plc_url, host) if origin]
        fetchers = _start_owners(workspace, options, trusted, run_id, stack)
        writer = Writer(workspace.lake, database, run_id, lock, options.settings, progress.say)
        wanted = covering(options.record_types, options.start, options.end)
        driver = Driver(
            database, fetchers, writer, progress, wanted, plc_url, options.settings.identity_hours
        )
        result.counts = driver.counts
        try:
            driver.run(source)
        except KeyboardInterrupt:
            result.interrupted = True
            progress.say("stopping; what is fetched is being saved")
            fetchers.close()
        writer.save()
        writer.flush()
        if result.interrupted:
            # What the fetchers had not told of yet.
            result.counts.count(
                _flush_staged(workspace.lake, database, f"{run_id}-last", lock, progress)
            )
    result.seconds = time.monotonic() - started
    return result


def user_origin(url: str, option: str) -> str:
    """A host that the user names may be anywhere, but it must be a host. Raises ConfigError."""
    remember_url(url)
    try:
        return origin_of(url if "://" in url else f"https://{url}", insecure=True)
    except RejectedRepo as error:
        raise ConfigError(f"{option}: {error}; give it as https://HOST") from error


def _recover(lake: Lake, database: Database, run_id: str, lock: Lock, progress: StatusLine) -> None:
    """Takes up what a killed run has left: an unfinished flush, and what it had staged."""
    create_tables(database)
    recover(lake, database, lock.ensure)
    if repos := _flush_staged(lake, database, f"{run_id}-0", lock, progress):
        progress.say(f"wrote the records of {len(repos):,} users, which an earlier run had fetched")


def _flush_staged(
    lake: Lake, database: Database, batch: str, lock: Lock, progress: StatusLine
) -> Sequence[RepoState]:
    receipts = staged(lake)
    written = flush(lake, database, receipts, batch, lock.ensure) if receipts else ()
    say_outdated(receipts, written, progress.say)
    return written


def _start_owners(
    workspace: Workspace, options: SyncOptions, trusted: list[str], run_id: str, stack: ExitStack
) -> HostFetchers:
    """Ray starts in this, the main thread: its processes are told to end with the thread that started them."""
    stack.enter_context(ray_running(workspace.ray_address, debug=workspace.debug))
    spool = _spool(workspace.lake, run_id)
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


def _spool(lake: Lake, run_id: str) -> str:
    """A folder for downloads; those of killed runs are removed. The lock keeps other runs out."""
    if lake.is_local:
        root = os.path.join(os.path.abspath(lake.root), _SPOOL)
    else:
        root = os.path.join(scratch_folder("spool"), digest([lake.root]))
    shutil.rmtree(root, ignore_errors=True)
    return os.path.join(root, run_id)
