"""`pds status`: what the database knows about users and their repositories. Changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from backfill.workspace import Workspace
from datasets.boundary.secrets import redact
from datasets.database import is_there, open_database
from datasets.errors import ConfigError
from datasets.repos.state import TRANSIENT_STATUSES, RepoState, all_repos, create_tables

# Hosts and reasons in `as_dict`.
_HOSTS = 100
_ERRORS = 20
# Reasons contain names and numbers. This many different ones are counted separately.
_SEPARATE_ERRORS = 1000
_OTHER_ERRORS = ("", "other reasons")


@dataclass
class PdsStatus:
    """Users by status, host, and (status, reason); records in the lake by record type.

    `bytes` is the size of all CARs, `last` the latest `synced_at`.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: int = 0
    last: str | None = None

    @property
    def unfinished(self) -> int:
        """Users who are left for the next run."""
        return sum(self.statuses[status] for status in TRANSIENT_STATUSES)

    def add(self, repo: RepoState) -> None:
        self.statuses[repo.status] += 1
        if repo.host:
            self.hosts[repo.host] += 1

        if repo.error:
            error = (repo.status, repo.error)
            if error not in self.errors and len(self.errors) >= _SEPARATE_ERRORS:
                error = _OTHER_ERRORS
            self.errors[error] += 1

        if repo.batch:
            self.records.update(repo.records)
            self.bytes += repo.bytes

        self.last = max(self.last or "", repo.synced_at or "") or None

    def as_dict(self) -> dict[str, Any]:
        errors = [
            {"status": status, "error": error, "users": users}
            for (status, error), users in self.errors.most_common(_ERRORS)
        ]
        return {
            "users": self.statuses.total(),
            "statuses": dict(self.statuses),
            "left": self.unfinished,
            "records": dict(self.records),
            "bytes": self.bytes,
            "hosts": dict(self.hosts.most_common(_HOSTS)),
            "errors": errors,
            "last": self.last,
        }


def pds_status(workspace: Workspace) -> PdsStatus:
    """Raises ConfigError if there is no database yet, or none was named."""
    url = workspace.database_url
    if url and not is_there(url):
        raise ConfigError(f"there is no database {redact(url)} yet; run `pds sync` first")

    found = PdsStatus()
    database = open_database(url)
    try:
        create_tables(database)
        for repo in all_repos(database):
            found.add(repo)
    finally:
        database.close()

    return found
