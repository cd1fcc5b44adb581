"""What is asked of the fetcher of a host, and what comes back. Values that cross process borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.repos.coverage import RecordCoverage
from datasets.repos.staging import StagingReceipt
from datasets.repos.state import Identity


@dataclass(frozen=True)
class Resolve:
    """Find a DID's identity from the document at `url`, on the host with this `origin`."""

    did: str
    origin: str
    url: str


@dataclass(frozen=True)
class Fetch:
    """Fetch and stage the records that `coverage` wants, unless the repository is at `known_rev` still.

    `replaces` names the flush whose files hold the repository now, None where the lake has nothing of it.
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
    """Ask a host for a page of its repositories."""

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
    job: Fetch


@dataclass(frozen=True)
class Staged:
    """Repositories whose rows are on durable storage, and the size of these rows."""

    receipt: StagingReceipt
    rows: int


@dataclass(frozen=True)
class ListedRepo:
    """One line of listRepos; `status` is why the host does not serve it, None where it does."""

    did: str
    rev: str
    status: str | None


@dataclass(frozen=True)
class RepoPage:
    job: ListRepos
    repos: Sequence[ListedRepo]
    cursor: str | None


@dataclass(frozen=True)
class Unfinished:
    """A job that came to nothing: the status and the reason for the user's row.

    `transient`: the same may succeed another day. `may_have_moved`: another host, or another key,
    might give another answer.
    """

    job: Job
    status: str
    error: str
    transient: bool = False
    may_have_moved: bool = False


JobResult = Resolved | Unchanged | Staged | RepoPage | Unfinished
