"""`pds resolve`: where users' repositories are and what they are signed with, into the database's cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from backfill.repos.sync import SyncOptions, user_origin
from backfill.repos.user_sync import UserResult, UserSync
from backfill.repos.users import InvalidLine, User, check_file, read_users
from backfill.workspace import Workspace
from datasets.database import Database, open_database
from datasets.lake import ensure_lake
from datasets.repos.state import Identity, create_tables, load_identities, save_identities
from pds.fetcher import HostFetcher
from pds.jobs import Resolve, Resolved, Unfinished

_CHUNK, _WINDOW = 500, 2000


@dataclass(frozen=True)
class Unresolved:
    """A user without an identity: the status that a sync would give him, and why."""

    did: str
    status: str
    error: str
    transient: bool = False


OnFound = Callable[[Identity | Unresolved], None]


@dataclass
class _Run:
    options: SyncOptions
    database: Database
    plc_url: str
    on_found: OnFound
    under_way: set[str] = field(default_factory=set)
    fresh: list[Identity] = field(default_factory=list)
    left: int = 0

    def begin(self, some: list[User | InvalidLine]) -> list[Resolve]:
        for line in some:
            if isinstance(line, InvalidLine):
                self.on_found(
                    Unresolved(line.did, "invalid_did", f"line {line.line}: {line.reason}")
                )
        dids = dict.fromkeys(
            user.did for user in some if isinstance(user, User) and user.did not in self.under_way
        )
        max_age = int(self.options.settings.identity_hours * 3600)
        cached = load_identities(self.database, dids, int(time.time()), max_age)
        jobs = []
        for did in dids:
            step = UserSync(did, {}, self.plc_url, identity=None).begin()
            if did in cached:
                self.on_found(cached[did])
            elif isinstance(step, Resolve):
                self.under_way.add(did)
                jobs.append(step)
            elif isinstance(step, UserResult):
                self.on_found(Unresolved(did, step.status, step.error or ""))
        return jobs

    def take(self, result: object) -> None:
        match result:
            case Resolved(job, identity):
                self.under_way.discard(job.did)
                self.fresh.append(identity)
                self.on_found(identity)
            case Unfinished(job):
                self.under_way.discard(job.did)
                self.left += result.transient
                self.on_found(Unresolved(job.did, result.status, result.error, result.transient))
        if len(self.fresh) >= _CHUNK:
            self.save()

    def save(self) -> None:
        save_identities(self.database, self.fresh)
        self.fresh = []


def resolve(workspace: Workspace, options: SyncOptions, on_found: OnFound) -> int:
    """Tells each user's identity as it is known; the number of users left for a transient reason."""
    plc_url = user_origin(options.plc_url, "--plc-url")
    check_file(options.dids_file)
    ensure_lake(workspace.lake)
    database = open_database(workspace.database_url)
    try:
        create_tables(database)
        run = _Run(options, database, plc_url, on_found)
        try:
            asyncio.run(_ask(run, read_users(options.dids, options.dids_file)))
        finally:
            run.save()
        return run.left
    finally:
        database.close()


async def _ask(run: _Run, users: Iterator[User | InvalidLine]) -> None:
    fetcher = HostFetcher(
        run.options.settings, [run.plc_url], insecure=run.options.allow_insecure_hosts
    )
    more = True
    try:
        while more or run.under_way:
            while more and len(run.under_way) < _WINDOW:
                some = list(islice(users, _CHUNK))
                more = len(some) == _CHUNK
                await fetcher.submit(run.begin(some))
            if run.under_way:
                for result in await fetcher.take(1.0):
                    run.take(result)
    finally:
        await fetcher.close()
