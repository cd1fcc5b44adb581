"""The loop of a sync: takes users, gives jobs to fetchers, passes their results to the writer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from backfill.progress import format_seconds
from backfill.repos.counts import UNCHANGED, SyncCounts
from backfill.repos.fetchers import HostFetchers
from backfill.repos.relocation import Decision, RelocationProbe
from backfill.repos.user_sync import UserResult, UserSync
from backfill.repos.users import HostUsers, InvalidLine, User, UserList
from backfill.repos.writer import Writer
from backfill.status_line import StatusLine
from datasets.database import Database
from datasets.repos.coverage import RecordCoverage
from datasets.repos.state import Identity, RepoState, load_identities, load_repos, with_status
from datasets.timestamps import iso_milliseconds, utc_now
from pds.jobs import (
    Job,
    JobResult,
    ListedRepo,
    ListRepos,
    RepoPage,
    Resolve,
    Resolved,
    Staged,
    Unchanged,
    Unfinished,
)

# Users in progress. A paused host can have this many of them before it delays other hosts; they are
# freed when the host is given up.
WINDOW = 50_000
# Users whose rows are looked up at a time.
_CHUNK = 500
_TAKE_SECONDS = 0.5
_PAUSES_SECONDS = 5.0


class Driver:
    """`wanted` is what the lake shall hold of each user; `identity_hours` limits the cache's age."""

    def __init__(
        self,
        database: Database,
        fetchers: HostFetchers,
        writer: Writer,
        progress: StatusLine,
        wanted: RecordCoverage,
        plc_url: str,
        identity_hours: float,
    ) -> None:
        self.counts = SyncCounts()
        self._database = database
        self._fetchers = fetchers
        self._writer = writer
        self._progress = progress
        self._wanted = wanted
        self._plc_url = plc_url
        self._identity_seconds = int(identity_hours * 3600)

        self._users: dict[str, UserSync] = {}
        self._relocation: RelocationProbe[tuple[UserSync, Unfinished]] = RelocationProbe()
        self._pauses_text = ""
        self._pauses_read = 0.0

    def run(self, source: UserList | HostUsers) -> None:
        """Returns when every user of `source` has a result."""
        while True:
            self._refill(source)
            if not self._users and source.done:
                return

            for result in self._fetchers.take(_TAKE_SECONDS):
                self._handle(result, source)

            self._writer.write_due()
            self._progress.show(self._status())

    def _refill(self, source: UserList | HostUsers) -> None:
        if job := source.next_job():
            self._fetchers.submit([job])

        while len(self._users) + _CHUNK <= WINDOW:
            some = source.take(_CHUNK)
            if not some:
                return
            self._begin(some, source.host)

    def _begin(
        self, some: Sequence[User | InvalidLine | ListedRepo], listing_host: str | None
    ) -> None:
        users: dict[str, User | ListedRepo] = {}
        for entry in some:
            if isinstance(entry, InvalidLine):
                self._reject(entry)
            elif not self._is_in_progress(entry.did):
                users[entry.did] = entry

        states = load_repos(self._database, users)
        now = int(time.time())
        identities = load_identities(self._database, users, now, self._identity_seconds)

        jobs: list[Job] = []
        for did, entry in users.items():
            user = UserSync(
                did,
                self._wanted,
                self._plc_url,
                before=states.get(did),
                identity=identities.get(did),
                listed=entry if isinstance(entry, ListedRepo) else None,
                listing_host=listing_host,
            )
            self._users[did] = user
            jobs += self._next(user, user.begin())

        self._fetchers.submit(jobs)

    def _is_in_progress(self, did: str) -> bool:
        """A user who is named again is skipped until the rows of the first time are in the lake."""
        return did in self._users or did in self._writer.staged

    def _reject(self, line: InvalidLine) -> None:
        self.counts.add_invalid(line)
        state = RepoState(line.did, "invalid_did", error=line.reason, synced_at=_now())
        self._writer.add_state(state)

    def _handle(self, result: JobResult, source: UserList | HostUsers) -> None:
        match result:
            case Staged():
                self._on_staged(result)
            case Resolved():
                self._on_resolved(result)
            case Unchanged(job):
                self._finish(self._users[job.did], UserResult(UNCHANGED))
            case RepoPage() if isinstance(source, HostUsers):
                source.add_page(result)
            case Unfinished(ListRepos()) if isinstance(source, HostUsers):
                source.stop()
                self.counts.not_listed = result.error
            case Unfinished():
                self._on_unfinished(self._users[result.job.did], result)

    def _on_staged(self, staged: Staged) -> None:
        self._writer.add_receipt(staged.receipt, staged.rows)
        for repo in staged.receipt.repos:
            del self._users[repo.did]
        self.counts.add_fetched(staged.receipt.repos)

    def _on_resolved(self, resolved: Resolved) -> None:
        identity = resolved.identity
        self._writer.add_identity(identity)

        user = self._users[resolved.job.did]
        self._record_relocation(user, identity)
        self._fetchers.submit(self._next(user, user.resolved(identity)))

    def _on_unfinished(self, user: UserSync, failure: Unfinished) -> None:
        if isinstance(failure.job, Resolve):
            self._record_relocation(user, None)
        elif failure.transient and user.may_have_moved(failure):
            decision = self._relocation.decide(failure.job.origin, (user, failure))
            if decision is Decision.WAIT:
                return
            if decision is Decision.DO_NOT_RESOLVE:
                user.resolved_again = True

        self._fetchers.submit(self._next(user, user.unfinished(failure)))

    def _record_relocation(self, user: UserSync, identity: Identity | None) -> None:
        """Records where a user of an unresponsive host is now, and continues with those who waited.

        `identity` is None if the user could not be resolved.
        """
        if user.first_failure is None or not user.first_failure.transient:
            return

        host = user.first_failure.job.origin
        moved = identity is not None and identity.host != host
        resolve, released = self._relocation.record(host, moved=moved)

        jobs: list[Job] = []
        for other, failure in released:
            other.resolved_again = not resolve
            jobs += self._next(other, other.unfinished(failure))
        self._fetchers.submit(jobs)

    def _next(self, user: UserSync, step: Job | UserResult) -> list[Job]:
        """The user's next job, if there is one."""
        if isinstance(step, UserResult):
            self._finish(user, step)
            return []
        return [step]

    def _finish(self, user: UserSync, result: UserResult) -> None:
        del self._users[user.did]
        self.counts.statuses[result.status] += 1
        self.counts.unfinished += result.transient

        state = user.before or RepoState(user.did)
        if result.status != UNCHANGED:
            if user.identity:
                state = replace(state, host=user.identity.host, handle=user.identity.handle)
            self._writer.add_state(with_status(state, result.status, result.error, _now()))
        elif state.status != "ok":
            self._writer.add_state(with_status(state, "ok", None, _now()))

    def _status(self) -> str:
        now = time.monotonic()
        if now - self._pauses_read >= _PAUSES_SECONDS:
            self._pauses_read = now
            self._pauses_text = _pauses(self._fetchers.paused_hosts())

        counts = self.counts
        others = counts.users - counts.fetched - counts.unchanged
        return (
            f"{counts.users:,} users: {counts.fetched:,} fetched, "
            f"{counts.unchanged:,} unchanged, {others:,} not; "
            f"{counts.records.total():,} records{self._pauses_text}"
        )


def _now() -> str:
    return iso_milliseconds(utc_now())


def _pauses(hosts: Mapping[str, float]) -> str:
    """Names the host whose pause ends first; "" if no host is paused."""
    if not hosts:
        return ""

    first = min(hosts, key=lambda origin: hosts[origin])
    name = first.rpartition("/")[2]
    others = f" and {len(hosts) - 1} more are" if len(hosts) > 1 else " is"
    return f"; {name}{others} paused, for {format_seconds(hosts[first])}"
