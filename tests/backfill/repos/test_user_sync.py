"""The sync of one user, and of the users of a host that does not respond."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backfill.repos.counts import UNCHANGED
from backfill.repos.relocation import Decision, RelocationProbe
from backfill.repos.user_sync import UserResult, UserSync
from datasets.repos.coverage import covering, union
from datasets.repos.state import Identity, RepoState
from pds.jobs import Fetch, ListedRepo, Resolve, Unfinished
from tests.pds.repos import make_did

DID = make_did(1)
PLC = "https://plc.directory"
HOST = "https://pds.example.com"
OTHER = "https://other.example.com"
OCTOBER = covering(["post"], "2024-10-01", "2024-10-31")
HERE = Identity(DID, HOST, None, "did:key:zQ3one", 100)
BEFORE = RepoState(DID, rev="r1", batch="b1", coverage=OCTOBER)
RESOLVE = Resolve(DID, PLC, f"{PLC}/{DID}")


def user_sync(**changes: Any) -> UserSync:
    return replace(UserSync(DID, OCTOBER, PLC), **changes)


def refused(job: Any, status: str = "not_found", **changes: Any) -> Unfinished:
    return Unfinished(job, status, "why", **{"may_have_moved": True, **changes})


def test_an_unknown_user_is_resolved_and_fetched() -> None:
    user = user_sync()
    assert user.begin() == RESOLVE
    assert user.resolved(HERE) == Fetch(HERE, OCTOBER)


def test_a_user_from_the_cache_is_fetched_if_the_revision_is_new() -> None:
    assert user_sync(identity=HERE, before=BEFORE).begin() == Fetch(HERE, OCTOBER, "r1", "b1")
    gone = replace(BEFORE, batch=None, rev=None, coverage={})
    assert user_sync(identity=HERE, before=gone).begin() == Fetch(HERE, OCTOBER)


def test_wider_coverage_is_fetched_whatever_the_revision() -> None:
    likes = covering(["like"], None, None)
    job = user_sync(identity=HERE, before=BEFORE, wanted=likes).begin()
    assert job == Fetch(HERE, union(OCTOBER, likes), replaces="b1")


def test_a_did_web_is_resolved_at_its_own_host() -> None:
    user = user_sync(did="did:web:user.example.com")
    assert user.begin() == Resolve(
        user.did, "https://user.example.com", "https://user.example.com/.well-known/did.json"
    )


def test_what_the_users_own_host_lists_saves_a_request() -> None:
    listing = {"identity": HERE, "before": BEFORE, "listing_host": HOST}
    assert user_sync(**listing, listed=ListedRepo(DID, "r1", None)).begin() == UserResult(UNCHANGED)
    assert user_sync(**listing, listed=ListedRepo(DID, "r2", None)).begin() == Fetch(
        HERE, OCTOBER, replaces="b1"
    )
    done = user_sync(**listing, listed=ListedRepo(DID, "", "takendown")).begin()
    assert isinstance(done, UserResult)
    assert (done.status, done.transient) == ("takendown", False)


def test_the_list_of_another_host_is_ignored() -> None:
    for listed in (ListedRepo(DID, "r1", None), ListedRepo(DID, "", "takendown")):
        user = user_sync(identity=HERE, before=BEFORE, listing_host=OTHER, listed=listed)
        assert user.begin() == Fetch(HERE, OCTOBER, "r1", "b1")


@pytest.mark.parametrize("cached", [True, False])
def test_after_not_found_the_did_is_resolved_once_more(*, cached: bool) -> None:
    user = user_sync(identity=HERE if cached else None)
    if not cached:
        user.begin()
    job = user.begin() if cached else user.resolved(HERE)
    first = refused(job)
    assert user.unfinished(first) == RESOLVE
    moved = replace(HERE, host=OTHER)
    again = user.resolved(moved)
    assert again == Fetch(moved, OCTOBER)
    assert user.unfinished(refused(again, "not_found")) == UserResult("not_found", "why")


def test_without_a_move_there_is_no_second_request() -> None:
    user = user_sync(identity=HERE)
    job = user.begin()
    assert user.unfinished(refused(job, "deactivated")) == RESOLVE
    assert user.resolved(replace(HERE, resolved_at=200)) == UserResult("deactivated", "why")


def test_after_a_new_key_the_repository_is_fetched_again() -> None:
    user = user_sync(identity=HERE)
    user.unfinished(refused(user.begin(), "corrupt"))
    rotated = replace(HERE, key="did:key:zQ3two")
    assert user.resolved(rotated) == Fetch(rotated, OCTOBER)


def test_a_fresh_identity_is_resolved_again_only_after_not_found() -> None:
    user = user_sync()
    user.begin()
    job = user.resolved(HERE)
    assert user.unfinished(refused(job, "takendown")) == UserResult("takendown", "why")


def test_if_the_directory_does_not_respond_the_first_failure_stands() -> None:
    user = user_sync(identity=HERE)
    user.unfinished(refused(user.begin(), "not_found"))
    assert user.unfinished(refused(RESOLVE, "unreachable", transient=True)) == UserResult(
        "not_found", "why", transient=False
    )


def test_a_sample_of_users_decides_for_the_others() -> None:
    probe: RelocationProbe[int] = RelocationProbe()
    assert [probe.decide(HOST, n) for n in range(25)] == [Decision.RESOLVE] * 20 + [
        Decision.WAIT
    ] * 5
    for _ in range(19):
        assert probe.record(HOST, moved=False) == (False, ())
    assert probe.record(HOST, moved=False) == (False, [20, 21, 22, 23, 24])
    assert probe.decide(HOST, 25) is Decision.DO_NOT_RESOLVE
    assert probe.decide(OTHER, 1) is Decision.RESOLVE


def test_if_one_user_has_moved_all_are_resolved() -> None:
    probe: RelocationProbe[int] = RelocationProbe()
    for n in range(22):
        probe.decide(HOST, n)
    assert probe.record(HOST, moved=False) == (False, ())
    assert probe.record(HOST, moved=True) == (True, [20, 21])
    assert probe.decide(HOST, 22) is Decision.RESOLVE
    assert probe.record(HOST, moved=False) == (True, [])
