"""The loop of a sync: users in, jobs to the fetchers of hosts, results back, statuses and rows to the writer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from backfill.progress import format_seconds
from backfill.repos.fetchers import HostFetchers
from backfill.repos.relocation import RelocationProbe
from backfill.repos.user_sync import UNCHANGED, UserResult, UserSync
from backfill.repos.users import HostUsers, InvalidLine, User, UserList
from backfill.repos.writer import Writer
from backfill.status_line import StatusLine
from datasets.database import Database
from datasets.repos.coverage import RecordCoverage
from datasets.repos.state import Identity, RepoState, load_identities, load_repos, with_status
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

# Users under way at a time. A host that rests can have so many of them before it holds up others,
# and it gives them back when it has rested too often.
WINDOW = 50_000
# Users whose rows are looked up at once.
_CHUNK = 500
_TAKE_SECONDS = 0.5
_RESTING_SECONDS = 5.0
_INVALID_KEPT = 1000


@dataclass
class SyncCounts:
    """What a sync has done. `left` users are for the next run, `invalid` the first lines that are no DIDs."""

    statuses: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    unreadable_dates: int = 0
    malformed: int = 0
    bytes: int = 0
    left: int = 0
    invalid: list[InvalidLine] = field(default_factory=list)
    not_listed: str | None = None

    @property
    def users(self) -> int:
        return self.statuses.total()

    def count(self, fetched: Iterable[RepoState]) -> None:
        for repo in fetched:
            self.statuses["ok"] += 1
            self.records.update(repo.records)
            self.skipped += sum(repo.skipped.values())
            self.unreadable_dates += repo.unreadable_dates
            self.malformed += repo.malformed
            self.bytes += repo.bytes


class Driver:
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
        self._database, self._owners, self._writer, self._progress = (
            database,
            fetchers,
            writer,
            progress,
        )
        self._wanted, self._plc_url = wanted, plc_url
        self._identity_seconds = int(identity_hours * 3600)
        self._window: dict[str, UserSync] = {}
        self._relocation: RelocationProbe[tuple[UserSync, Unfinished]] = RelocationProbe()
        self._resting: tuple[float, str] = (0.0, "")
        self.counts = SyncCounts()

    def run(self, source: UserList | HostUsers) -> None:
        while True:
            self._refill(source)
            if not self._window and source.done:
                return
            for result in self._owners.take(_TAKE_SECONDS):
                self._handle(result, source)
            self._writer.write_due()
            self._progress.show(self._line())

    def _refill(self, source: UserList | HostUsers) -> None:
        if job := source.ask():
            self._owners.submit([job])
        while len(self._window) + _CHUNK <= WINDOW:
            some = source.take(_CHUNK)
            if not some:
                return
            self._begin(some, source.host if isinstance(source, HostUsers) else None)

    def _begin(self, some: Sequence[User | InvalidLine | ListedRepo], listing: str | None) -> None:
        for entry in some:
            if isinstance(entry, InvalidLine):
                self._refuse(entry)
        # A user who is named twice is one user, as long as he is under way or his rows wait.
        entries = {
            entry.did: entry
            for entry in some
            if not isinstance(entry, InvalidLine)
            and entry.did not in self._window
            and entry.did not in self._writer.staged
        }
        states = load_repos(self._database, entries)
        identities = load_identities(
            self._database, entries, int(time.time()), self._identity_seconds
        )
        jobs: list[Job] = []
        for did, entry in entries.items():
            listed = entry if isinstance(entry, ListedRepo) else None
            steps = UserSync(
                did,
                self._wanted,
                self._plc_url,
                states.get(did),
                identities.get(did),
                listed,
                listing,
            )
            self._window[did] = steps
            jobs += self._go_on(steps, steps.begin())
        self._owners.submit(jobs)

    def _refuse(self, line: InvalidLine) -> None:
        if len(self.counts.invalid) < _INVALID_KEPT:
            self.counts.invalid.append(line)
        self.counts.statuses["invalid_did"] += 1
        self._writer.state(RepoState(line.did, "invalid_did", error=line.reason, synced_at=_now()))

    def _handle(self, result: JobResult, source: UserList | HostUsers) -> None:
        match result:
            case Staged():
                self._stage(result)
            case Resolved(job, identity):
                self._writer.identity(identity)
                steps = self._window[job.did]
                self._answer_doubt(steps, identity)
                self._owners.submit(self._go_on(steps, steps.resolved(identity)))
            case Unchanged(job):
                self._finish(self._window[job.did], UserResult(UNCHANGED))
            case RepoPage() if isinstance(source, HostUsers):
                source.listed(result)
            case Unfinished(ListRepos()) if isinstance(source, HostUsers):
                source.ended()
                self.counts.not_listed = result.error
            case Unfinished():
                self._leave(self._window[result.job.did], result)

    def _leave(self, steps: UserSync, left: Unfinished) -> None:
        if isinstance(left.job, Resolve):
            self._answer_doubt(steps, None)
        elif left.transient and steps.doubts(left):
            ask = self._relocation.ask(left.job.origin, (steps, left))
            if ask is None:
                return
            if not ask:
                steps.asked_again = True
        self._owners.submit(self._go_on(steps, steps.left(left)))

    def _answer_doubt(self, steps: UserSync, identity: Identity | None) -> None:
        """Tells what has become of a user of a host that does not answer, and goes on with those who waited for it."""
        if steps.refused is None or not steps.refused.transient:
            return
        host = steps.refused.job.origin
        ask, held = self._relocation.answered(
            host, moved=identity is not None and identity.host != host
        )
        jobs: list[Job] = []
        for other, left in held:
            other.asked_again = not ask
            jobs += self._go_on(other, other.left(left))
        self._owners.submit(jobs)

    def _stage(self, staged: Staged) -> None:
        self._writer.receipt(staged.receipt, staged.rows)
        for repo in staged.receipt.repos:
            del self._window[repo.did]
        self.counts.count(staged.receipt.repos)

    def _go_on(self, steps: UserSync, step: Job | UserResult) -> list[Job]:
        if isinstance(step, UserResult):
            self._finish(steps, step)
            return []
        return [step]

    def _finish(self, steps: UserSync, done: UserResult) -> None:
        del self._window[steps.did]
        self.counts.statuses[done.status] += 1
        self.counts.left += done.transient
        before = steps.before or RepoState(steps.did)
        if done.status != UNCHANGED:
            known = _of(steps.identity)
            self._writer.state(
                with_status(replace(before, **known), done.status, done.error, _now())
            )
        elif before.status != "ok":
            self._writer.state(with_status(before, "ok", None, _now()))

    def _line(self) -> str:
        now = time.monotonic()
        if now - self._resting[0] >= _RESTING_SECONDS:
            self._resting = now, _resting(self._owners.resting())
        counts = self.counts
        others = counts.users - counts.statuses["ok"] - counts.statuses[UNCHANGED]
        return (
            f"{counts.users:,} users: {counts.statuses['ok']:,} fetched, {counts.statuses[UNCHANGED]:,} unchanged, "
            f"{others:,} not; {counts.records.total():,} records{self._resting[1]}"
        )


def _of(identity: Identity | None) -> dict[str, Any]:
    return {"host": identity.host, "handle": identity.handle} if identity else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _resting(hosts: Mapping[str, float]) -> str:
    """Nothing where no host rests."""
    if not hosts:
        return ""
    first = min(hosts, key=lambda origin: hosts[origin])
    others = f" and {len(hosts) - 1} more rest" if len(hosts) > 1 else " rests"
    return f"; {first.rpartition('/')[2]}{others}, for {format_seconds(hosts[first])}"
