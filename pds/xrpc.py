"""The three PDS methods that a sync needs: their URLs, and what the answers mean. Pure."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from pds.client import Response
from pds.errors import RejectedRepo
from pds.identity import check_did
from pds.jobs import Fetch, ListedRepo, ListRepos, RepoPage, Unfinished

PAGE = 1000
_MESSAGE_CHARS = 300

# Errors of getRepo and getLatestCommit → statuses of `pds_repos`.
_REFUSALS = {
    "RepoNotFound": "not_found",
    "RepoTakendown": "takendown",
    "RepoSuspended": "suspended",
    "RepoDeactivated": "deactivated",
}
# Statuses in listRepos → statuses of `pds_repos`.
_LISTED_STATUSES = {
    "takendown": "takendown",
    "suspended": "suspended",
    "deactivated": "deactivated",
    "deleted": "not_found",
}


def list_url(job: ListRepos) -> str:
    query = {"limit": str(PAGE)}
    if job.cursor:
        query["cursor"] = job.cursor
    return _url(job.origin, "listRepos", query)


def latest_commit_url(job: Fetch) -> str:
    return _url(job.origin, "getLatestCommit", {"did": job.did})


def repo_url(job: Fetch) -> str:
    return _url(job.origin, "getRepo", {"did": job.did})


def _url(origin: str, method: str, query: dict[str, str]) -> str:
    return f"{origin}/xrpc/com.atproto.sync.{method}?{urlencode(query)}"


def read_page(job: ListRepos, response: Response) -> RepoPage:
    """Raises RejectedRepo if the host does not list its repositories."""
    content = _json_object(response) if response.status == 200 else None
    entries = content.get("repos") if content else None
    if content is None or not isinstance(entries, list):
        raise RejectedRepo(
            "unreachable",
            f"{job.origin} does not list its repositories (it answered {response.status})",
        )

    repos = [repo for repo in map(_listed_repo, entries) if repo is not None]
    cursor = content.get("cursor")
    # An empty page, or the same cursor again, would make the list endless.
    if not isinstance(cursor, str) or not entries or cursor == job.cursor:
        cursor = None
    return RepoPage(job, repos, cursor)


def latest_rev(response: Response) -> str | None:
    content = _json_object(response) if response.status == 200 else None
    return str(content.get("rev")) if content else None


def refusal(job: Fetch, response: Response) -> Unfinished | None:
    """The result for a repository that the host says it does not serve; None for other answers."""
    content = _json_object(response) if response.status in (400, 404) else None
    if content is None:
        return None

    status = _REFUSALS.get(str(content.get("error")))
    if status is None:
        return None

    message = str(content.get("message") or status)
    return Unfinished(job, status, _printable(message), may_have_moved=True)


def _printable(message: str) -> str:
    """A message of a foreign host, safe for a terminal."""
    chars = message[:_MESSAGE_CHARS]
    return "".join(char if char.isprintable() else "\ufffd" for char in chars)


def _json_object(response: Response) -> dict[str, Any] | None:
    try:
        content = json.loads(response.body)
    except (ValueError, RecursionError):
        return None

    return content if isinstance(content, dict) else None


def _listed_repo(entry: Any) -> ListedRepo | None:
    """None for an entry without a DID that can be resolved.

    A status that is not known is ignored: the repository is then requested like any other.
    """
    if not isinstance(entry, dict):
        return None

    did = entry.get("did")
    if not isinstance(did, str):
        return None
    try:
        check_did(did)
    except RejectedRepo:
        return None

    rev = entry.get("rev")
    listed_status = entry.get("status")
    status = None
    if entry.get("active") is False and isinstance(listed_status, str):
        status = _LISTED_STATUSES.get(listed_status)

    return ListedRepo(did, rev if isinstance(rev, str) else "", status)
