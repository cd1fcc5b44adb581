"""State of users and repositories, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.database import Database, open_database
from datasets.repos import state as state_module
from datasets.repos.coverage import covering
from datasets.repos.state import (
    Identity,
    RepoState,
    all_repos,
    batches,
    create_tables,
    forget_batch,
    load_identities,
    load_repos,
    save_identities,
    save_repos,
    with_status,
)
from tests.pds.repos import make_did


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/x.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    found = open_database(url)
    create_tables(found)
    create_tables(found)  # is there already
    found.execute("DELETE FROM pds_repos")
    found.execute("DELETE FROM pds_identities")
    yield found
    found.close()


def state(number: int, **changes: object) -> RepoState:
    found = RepoState(
        make_did(number),
        "ok",
        "https://pds.example.com",
        "user.example.com",
        "3k2",
        "bafy",
        None,
        {"post": 5, "like": 2},
        {"com.example.thing": 1},
        1,
        2,
        12_345,
        "2026-11-23T13:00:00.000Z",
        covering(["post", "like"], "2024-10-01", None),
        "batch-1",
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def save(database: Database, *repos: RepoState) -> None:
    with database.transaction():
        save_repos(database, repos)


def test_a_row_comes_back_as_it_was(database: Database) -> None:
    bare = RepoState("did:plc:x", "invalid_did", error="it is not a DID, é ' \" \\ 😀")
    save(database, state(1), bare)
    assert load_repos(database, [make_did(1), "did:plc:x", make_did(7)]) == {
        make_did(1): state(1),
        "did:plc:x": bare,
    }


def test_a_row_is_replaced(database: Database) -> None:
    save(database, state(1), state(2))
    later = with_status(state(1), "takendown", "gone", "2026-11-24T13:00:00.000Z")
    save(database, later)
    save(database, state(2, rev="3k3"), state(2, rev="3k4"))
    assert load_repos(database, [make_did(1)])[make_did(1)] == later
    assert (later.rev, later.batch, later.records) == ("3k2", "batch-1", {"post": 5, "like": 2})
    assert load_repos(database, [make_did(2)])[make_did(2)].rev == "3k4"


def test_more_dids_than_a_statement_takes(database: Database) -> None:
    save(database, *(state(n) for n in range(2500)))
    assert len(load_repos(database, [make_did(n) for n in range(0, 5000, 2)])) == 1250
    assert load_repos(database, []) == {}


def test_all_rows_come_page_by_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_PAGE", 7)
    save(database, *(state(n) for n in range(30)))
    assert sorted(repo.did for repo in all_repos(database)) == sorted(
        make_did(n) for n in range(30)
    )


def test_batches(database: Database) -> None:
    save(database, state(1), state(2), state(3, batch="batch-2"), state(4, batch=None))
    assert batches(database) == {"batch-1", "batch-2"}
    forget_batch(database, "batch-1")
    assert batches(database) == {"batch-2"}
    found = load_repos(database, [make_did(1)])[make_did(1)]
    assert (found.status, found.rev, found.batch, found.coverage) == ("ok", None, None, {})


def test_identities_have_an_age(database: Database) -> None:
    old, new = (
        Identity(make_did(n), "https://a.example", None, "did:key:zQ3", 1000 + n) for n in range(2)
    )
    save_identities(database, [old, new])
    both = [make_did(0), make_did(1)]
    assert load_identities(database, both, now=1101, max_age=100) == {make_did(1): new}
    assert load_identities(database, both, now=1000, max_age=100) == {make_did(0): old}, (
        "the clock was set back"
    )
    save_identities(
        database,
        [replace(old, host="https://b.example", resolved_at=2000), old, replace(old, handle="x.y")],
    )
    assert (
        load_identities(database, [make_did(0)], now=1000, max_age=0)[make_did(0)].handle == "x.y"
    )
    save_identities(database, [])


def test_a_state_survives_json() -> None:
    assert RepoState.from_json(state(1).as_json()) == state(1)
