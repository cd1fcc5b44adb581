"""`pds status`: what the database knows of users and their repositories. Changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from backfill.workspace import Workspace
from datasets.boundary.secrets import redact
from datasets.database import is_there, open_database
from datasets.errors import ConfigError
from datasets.repos.state import TRANSIENT_STATUSES, all_repos, create_tables


@dataclass
class PdsStatus:
    """Counts of users, and of the records that the lake holds of them."""

    statuses: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes: int = 0
    last: str | None = None

    @property
    def left(self) -> int:
        return sum(self.statuses[status] for status in TRANSIENT_STATUSES)

    def as_dict(self) -> dict[str, Any]:
        errors = [
            {"status": s, "error": e, "users": n} for (s, e), n in self.errors.most_common(_ERRORS)
        ]
        return {
            "users": self.statuses.total(),
            "statuses": dict(self.statuses),
            "left": self.left,
            "records": dict(self.records),
            "bytes": self.bytes,
            "hosts": dict(self.hosts.most_common(_HOSTS)),
            "errors": errors,
            "last": self.last,
        }


_HOSTS, _ERRORS = 100, 20
# Reasons differ in names and numbers; so many different ones are told apart.
_KINDS_OF_ERRORS = 1000
_OTHERS = ("", "other reasons")


def pds_status(workspace: Workspace) -> PdsStatus:
    """Raises ConfigError where there is no database yet, or none is named."""
    if workspace.database_url and not is_there(workspace.database_url):
        raise ConfigError(
            f"there is no database {redact(workspace.database_url)} yet; run `pds sync` first"
        )
    database = open_database(workspace.database_url)
    found = PdsStatus()
    try:
        create_tables(database)
        for repo in all_repos(database):
            found.statuses[repo.status] += 1
            if repo.host:
                found.hosts[repo.host] += 1
            if repo.error:
                error = (repo.status, repo.error)
                found.errors[
                    error
                    if error in found.errors or len(found.errors) < _KINDS_OF_ERRORS
                    else _OTHERS
                ] += 1
            if repo.batch:
                found.records.update(repo.records)
                found.bytes += repo.bytes
            found.last = max(found.last or "", repo.synced_at or "") or None
    finally:
        database.close()
    return found
