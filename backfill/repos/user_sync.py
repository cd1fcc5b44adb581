"""What is done about one user, step by step: resolve, fetch, resolve again if that may help, done. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.repos.coverage import RecordCoverage, contains, union
from datasets.repos.state import Identity, RepoState
from pds.addresses import origin_of
from pds.errors import RejectedRepo
from pds.identity import document_url
from pds.jobs import Fetch, Job, ListedRepo, Resolve, Unfinished

UNCHANGED = "unchanged"


@dataclass(frozen=True)
class UserResult:
    """How a user ends: a status of `pds_repos`, or UNCHANGED. `transient`: the next run may do better."""

    status: str
    error: str | None = None
    transient: bool = False


@dataclass
class UserSync:
    """One user's way through a sync that wants `wanted`.

    `before` is the user's row, `identity` is set from the cache at first. `listed` is what the host
    at `listing` said of the repository, if that is where the user comes from.
    """

    did: str
    wanted: RecordCoverage
    plc_url: str
    before: RepoState | None = None
    identity: Identity | None = None
    listed: ListedRepo | None = None
    listing: str | None = None
    cached: bool = False
    asked_again: bool = False
    refused: Unfinished | None = None

    def begin(self) -> Job | UserResult:
        self.cached = self.identity is not None
        return self._fetch(self.identity) if self.identity else self._resolve()

    def resolved(self, identity: Identity) -> Job | UserResult:
        before, self.identity = self.identity, identity
        if self.refused is None:
            return self._fetch(identity)
        # A move is followed once, and so is a new key.
        if before and (identity.host, identity.key) == (before.host, before.key):
            return _done(self.refused)
        return self._fetch(identity)

    def doubts(self, left: Unfinished) -> bool:
        """Whether the directory might know better.

        What the cache says may be old. That there is no repository is doubted even without a cache:
        the user may have moved a moment ago.
        """
        may_be_elsewhere = left.may_have_moved and (self.cached or left.status == "not_found")
        return may_be_elsewhere and isinstance(left.job, Fetch) and not self.asked_again

    def left(self, left: Unfinished) -> Job | UserResult:
        if self.doubts(left):
            self.refused, self.asked_again = left, True
            return self._resolve()
        return _done(left if isinstance(left.job, Fetch) else self.refused or left)

    def _resolve(self) -> Job | UserResult:
        url = document_url(self.did, self.plc_url)
        try:
            return Resolve(
                self.did,
                origin_of(url.rpartition("/.well-known/")[0] or self.plc_url, insecure=True),
                url,
            )
        except RejectedRepo as error:
            return UserResult(error.status, error.reason)

    def _fetch(self, identity: Identity) -> Job | UserResult:
        before, coverage, known = self.before, self.wanted, None
        if before is not None and before.batch:
            coverage = union(before.coverage, self.wanted)
            known = before.rev if contains(before.coverage, self.wanted) else None
        if self.listed is not None and self.listing == identity.host and not self.refused:
            if self.listed.status:
                return UserResult(
                    self.listed.status, f"{self.listing} lists it as {self.listed.status}"
                )
            if known and self.listed.rev == known:
                return UserResult(UNCHANGED)
            known = None
        return Fetch(identity, coverage, known, before.batch if before else None)


def _done(left: Unfinished) -> UserResult:
    return UserResult(left.status, left.error, left.transient)
