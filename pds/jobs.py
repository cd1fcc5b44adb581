"""Jobs for a host's fetcher, and their results: values that are sent between processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.repos.coverage import RecordCoverage
from datasets.repos.staging import StagingReceipt
from datasets.repos.state import Identity


@dataclass(frozen=True)
class Resolve:
    """Resolve a DID from the document at `url`, on the host with this `origin`."""

    did: str
    origin: str
    url: str


@dataclass(frozen=True)
class Fetch:
    """Fetch and stage the records in `coverage`, unless the repository is still at `known_rev`.

    `replaces` is the batch whose files hold the repository now, None if the lake does not have it.
    """

    identity: Identity
    coverage: RecordCoverage
    known_rev: str | None = None
    replaces: str | None = None

    @property
    def did(self) -> str:
        return self.identity.did

    @property
    def origin(self) -> str:
        return self.identity.host


@dataclass(frozen=True)
class ListRepos:
    """Request a page of a host's list of repositories."""

    origin: str
    cursor: str | None = None

    @property
    def did(self) -> str:
        return ""


Job = Resolve | Fetch | ListRepos


@dataclass(frozen=True)
class Resolved:
    job: Resolve
    identity: Identity


@dataclass(frozen=True)
class Unchanged:
    """The repository is still at the revision that the lake holds."""

    job: Fetch


@dataclass(frozen=True)
class Staged:
    """Repositories whose rows are on durable storage, and the number of these rows."""

    receipt: StagingReceipt
    rows: int


@dataclass(frozen=True)
class ListedRepo:
    """An entry of listRepos. `status` is why the host does not serve it, None if it does."""

    did: str
    rev: str
    status: str | None


@dataclass(frozen=True)
class RepoPage:
    """A page of listRepos. `cursor` requests the next page; it is None on the last."""

    job: ListRepos
    repos: Sequence[ListedRepo]
    cursor: str | None


@dataclass(frozen=True)
class Unfinished:
    """A job without success: status and reason for the user's row.

    `transient`: it may succeed in a later run. `may_have_moved`: another host, or another key, may
    give another answer.
    """

    job: Job
    status: str
    error: str
    transient: bool = False
    may_have_moved: bool = False


JobResult = Resolved | Unchanged | Staged | RepoPage | Unfinished
