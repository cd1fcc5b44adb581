"""The three methods of a PDS that a sync needs: their URLs, and what the answers mean. Pure."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from pds.client import Response
from pds.errors import RejectedRepo
from pds.identity import check_did
from pds.jobs import Fetch, ListedRepo, ListRepos, RepoPage, Unfinished

PAGE = 1000
# What a PDS says about a repository that it does not serve.
_REFUSALS = {
    "RepoNotFound": "not_found",
    "RepoTakendown": "takendown",
    "RepoSuspended": "suspended",
    "RepoDeactivated": "deactivated",
}
_LISTED = {
    "takendown": "takendown",
    "suspended": "suspended",
    "deactivated": "deactivated",
    "deleted": "not_found",
}
_MESSAGE_CHARS = 300


def list_url(job: ListRepos) -> str:
    query = {"limit": str(PAGE)} | ({"cursor": job.cursor} if job.cursor else {})
    return f"{job.origin}/xrpc/com.atproto.sync.listRepos?{urlencode(query)}"


def latest_commit_url(job: Fetch) -> str:
    return f"{job.origin}/xrpc/com.atproto.sync.getLatestCommit?{urlencode({'did': job.did})}"


def repo_url(job: Fetch) -> str:
    return f"{job.origin}/xrpc/com.atproto.sync.getRepo?{urlencode({'did': job.did})}"


def read_listing(job: ListRepos, answer: Response) -> RepoPage:
    """Raises RejectedRepo where the host does not list its repositories."""
    content = _content(answer) if answer.status == 200 else None
    entries = content.get("repos") if content else None
    if content is None or not isinstance(entries, list):
        raise RejectedRepo(
            "unreachable",
            f"{job.origin} does not list its repositories (it answered {answer.status})",
        )
    repos = [repo for repo in map(_listed, entries) if repo is not None]
    cursor = content.get("cursor")
    goes_on = isinstance(cursor, str) and entries and cursor != job.cursor
    return RepoPage(job, repos, str(cursor) if goes_on else None)


def latest_rev(answer: Response) -> str | None:
    content = _content(answer) if answer.status == 200 else None
    return str(content.get("rev")) if content else None


def refusal(job: Fetch, answer: Response) -> Unfinished | None:
    """What the host says about a repository that it does not serve, if that is what it says."""
    content = _content(answer) if answer.status in (400, 404) else None
    status = _REFUSALS.get(str(content.get("error"))) if content else None
    if content is None or status is None:
        return None
    return Unfinished(
        job, status, _shown(str(content.get("message") or status)), may_have_moved=True
    )


def _shown(message: str) -> str:
    """A stranger's words, fit for a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in message[:_MESSAGE_CHARS])


def _content(answer: Response) -> dict[str, Any] | None:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _listed(entry: Any) -> ListedRepo | None:
    """None for what is no user of ours. Whatever else a host says of a repository, it is tried."""
    if not isinstance(entry, dict) or not isinstance(did := entry.get("did"), str):
        return None
    try:
        check_did(did)
    except RejectedRepo:
        return None
    rev, status = entry.get("rev"), entry.get("status")
    said = _LISTED.get(status) if entry.get("active") is False and isinstance(status, str) else None
    return ListedRepo(did, rev if isinstance(rev, str) else "", said)
