"""`pds resolve`: hosts and signing keys of users, from their DID documents into the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from backfill.repos.sync import SyncOptions, user_origin
from backfill.repos.user_sync import UserResult, UserSync
from backfill.repos.users import InvalidLine, User, check_file, read_users
from backfill.workspace import Workspace
from datasets.database import Database, open_database
from datasets.lake import ensure_lake
from datasets.repos.state import Identity, create_tables, load_identities, save_identities
from pds.fetcher import HostFetcher
from pds.jobs import JobResult, Resolve, Resolved, Unfinished

_CHUNK = 500
_WINDOW = 2000
_TAKE_SECONDS = 1.0


@dataclass(frozen=True)
class Unresolved:
    """A user without an identity: the status that a sync would store, and why."""

    did: str
    status: str
    error: str
    transient: bool = False


OnFound = Callable[[Identity | Unresolved], None]


def resolve(workspace: Workspace, options: SyncOptions, on_found: OnFound) -> int:
    """Calls `on_found` for each user, as soon as the identity is known.

    Returns the number of users who are left for the next run.
    """
    plc_url = user_origin(options.plc_url, "--plc-url")
    check_file(options.dids_file)
    ensure_lake(workspace.lake)

    database = open_database(workspace.database_url)
    try:
        create_tables(database)
        resolver = _Resolver(options, database, plc_url, on_found)
        try:
            asyncio.run(resolver.run(read_users(options.dids, options.dids_file)))
        finally:
            resolver.save()
    finally:
        database.close()

    return resolver.unfinished


class _Resolver:
    def __init__(
        self, options: SyncOptions, database: Database, plc_url: str, on_found: OnFound
    ) -> None:
        self.unfinished = 0
        self._settings = options.settings
        self._insecure = options.allow_insecure_hosts
        self._database = database
        self._plc_url = plc_url
        self._on_found = on_found
        self._in_progress: set[str] = set()
        self._unsaved: list[Identity] = []

    async def run(self, users: Iterator[User | InvalidLine]) -> None:
        fetcher = HostFetcher(self._settings, [self._plc_url], insecure=self._insecure)
        more = True
        try:
            while more or self._in_progress:
                while more and len(self._in_progress) < _WINDOW:
                    some = list(islice(users, _CHUNK))
                    more = len(some) == _CHUNK
                    await fetcher.submit(self._begin(some))

                if self._in_progress:
                    for result in await fetcher.take(_TAKE_SECONDS):
                        self._handle(result)
        finally:
            await fetcher.close()

    def save(self) -> None:
        save_identities(self._database, self._unsaved)
        self._unsaved = []

    def _begin(self, some: list[User | InvalidLine]) -> list[Resolve]:
        """The jobs for users whose identity is not in the cache."""
        dids: dict[str, None] = {}
        for entry in some:
            if isinstance(entry, InvalidLine):
                reason = f"line {entry.line}: {entry.reason}"
                self._on_found(Unresolved(entry.did, "invalid_did", reason))
            elif entry.did not in self._in_progress:
                dids[entry.did] = None

        max_age = int(self._settings.identity_hours * 3600)
        cached = load_identities(self._database, dids, int(time.time()), max_age)

        jobs = []
        for did in dids:
            if did in cached:
                self._on_found(cached[did])
                continue

            step = UserSync(did, {}, self._plc_url, identity=None).begin()
            if isinstance(step, Resolve):
                self._in_progress.add(did)
                jobs.append(step)
            elif isinstance(step, UserResult):
                self._on_found(Unresolved(did, step.status, step.error or ""))
        return jobs

    def _handle(self, result: JobResult) -> None:
        match result:
            case Resolved(job, identity):
                self._in_progress.discard(job.did)
                self._unsaved.append(identity)
                self._on_found(identity)
            case Unfinished(job):
                self._in_progress.discard(job.did)
                self.unfinished += result.transient
                self._on_found(Unresolved(job.did, result.status, result.error, result.transient))

        if len(self._unsaved) >= _CHUNK:
            self.save()
