"""What a sync has done, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from backfill.repos.users import InvalidLine
from datasets.repos.state import RepoState

# Statuses of users whose repository has not changed since the last sync.
UNCHANGED = "unchanged"

_INVALID_KEPT = 1000


@dataclass
class SyncCounts:
    """`statuses` counts users: by a status of `pds_repos`, or as UNCHANGED.

    `unfinished` users are left for the next run. `invalid` are the first lines that are not DIDs;
    `not_listed` is why a host did not list all of its repositories.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    unreadable_dates: int = 0
    malformed: int = 0
    bytes: int = 0
    unfinished: int = 0
    invalid: list[InvalidLine] = field(default_factory=list)
    not_listed: str | None = None

    @property
    def users(self) -> int:
        return self.statuses.total()

    @property
    def fetched(self) -> int:
        return self.statuses["ok"]

    @property
    def unchanged(self) -> int:
        return self.statuses[UNCHANGED]

    def add_fetched(self, repos: Iterable[RepoState]) -> None:
        for repo in repos:
            self.statuses["ok"] += 1
            self.records.update(repo.records)
            self.skipped += sum(repo.skipped.values())
            self.unreadable_dates += repo.unreadable_dates
            self.malformed += repo.malformed
            self.bytes += repo.bytes

    def add_invalid(self, line: InvalidLine) -> None:
        self.statuses["invalid_did"] += 1
        if len(self.invalid) < _INVALID_KEPT:
            self.invalid.append(line)
