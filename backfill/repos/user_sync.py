"""The sync of one user: resolve, fetch, resolve again if that may help. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backfill.repos.counts import UNCHANGED
from datasets.repos.coverage import RecordCoverage, contains, union
from datasets.repos.state import Identity, RepoState
from pds.addresses import origin_of
from pds.errors import RejectedRepo
from pds.identity import document_url
from pds.jobs import Fetch, Job, ListedRepo, Resolve, Unfinished


@dataclass(frozen=True)
class UserResult:
    """A user's final status: one of `pds_repos`, or UNCHANGED.

    `transient`: the next run may succeed.
    """

    status: str
    error: str | None = None
    transient: bool = False


@dataclass
class UserSync:
    """The state of one user's sync. Each method returns the next job, or the result.

    wanted          the records to have in the lake
    before          the user's row in the database
    identity        from the cache at first, then from the DID document
    listed          the entry of the host `listing_host` for this user, if a host's list is synced
    cached          whether `identity` came from the cache
    resolved_again  whether the DID was resolved a second time, or need not be
    first_failure   the failure that led to this
    """

    did: str
    wanted: RecordCoverage
    plc_url: str
    before: RepoState | None = None
    identity: Identity | None = None
    listed: ListedRepo | None = None
    listing_host: str | None = None
    cached: bool = False
    resolved_again: bool = False
    first_failure: Unfinished | None = None

    def begin(self) -> Job | UserResult:
        self.cached = self.identity is not None
        return self._fetch(self.identity) if self.identity else self._resolve()

    def resolved(self, identity: Identity) -> Job | UserResult:
        before = self.identity
        self.identity = identity
        if self.first_failure is None:
            return self._fetch(identity)

        # A new host or a new key is tried, once. Without a change, the failure stands.
        if before and (identity.host, identity.key) == (before.host, before.key):
            return _result(self.first_failure)
        return self._fetch(identity)

    def unfinished(self, failure: Unfinished) -> Job | UserResult:
        if self.may_have_moved(failure):
            self.first_failure = failure
            self.resolved_again = True
            return self._resolve()

        if isinstance(failure.job, Fetch):
            return _result(failure)
        return _result(self.first_failure or failure)

    def may_have_moved(self, failure: Unfinished) -> bool:
        """Whether resolving the DID again may lead to another host or key.

        A cached identity may be outdated. If a repository is not found, the DID is resolved again
        even without a cache: the user may have moved a moment ago.
        """
        if self.resolved_again or not isinstance(failure.job, Fetch):
            return False

        return failure.may_have_moved and (self.cached or failure.status == "not_found")

    def _resolve(self) -> Job | UserResult:
        url = document_url(self.did, self.plc_url)
        host_url = url.rpartition("/.well-known/")[0] or self.plc_url
        try:
            origin = origin_of(host_url, insecure=True)
        except RejectedRepo as error:
            return UserResult(error.status, error.reason)

        return Resolve(self.did, origin, url)

    def _fetch(self, identity: Identity) -> Job | UserResult:
        coverage = self.wanted
        known_rev = None
        held = self.before if self.before and self.before.batch else None

        if held is not None:
            coverage = union(held.coverage, self.wanted)
            # With a known revision, an unchanged repository is not fetched.
            if contains(held.coverage, self.wanted):
                known_rev = held.rev

        # The list of a host counts for the users whose DID document names this host.
        if self.listed and self.listing_host == identity.host and not self.first_failure:
            if self.listed.status:
                reason = f"{self.listing_host} lists it as {self.listed.status}"
                return UserResult(self.listed.status, reason)
            if known_rev and self.listed.rev == known_rev:
                return UserResult(UNCHANGED)
            known_rev = None

        return Fetch(identity, coverage, known_rev, self.before.batch if self.before else None)


def _result(failure: Unfinished) -> UserResult:
    return UserResult(failure.status, failure.error, failure.transient)
