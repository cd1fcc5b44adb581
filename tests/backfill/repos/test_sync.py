"""A whole sync over HTTP, with Ray: directory, hosts, fetchers, decoders, lake and database."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pds.syntax import utc_date
from tests.pds.repo.test_records import kind_of
from tests.pds.repos import Key, make_did, make_repo, post, posts, tid
from tests.pds.servers import Network, Reply, document
from tests.pds.support import INDEX, WITH_CAR, expected, needs_fixtures, vectors
from tests.pds.syncs import QUICK, files, lake_rows, run, states, statuses, uris, uris_of

pytestmark = pytest.mark.usefixtures("ray_here")


@needs_fixtures
def test_the_reference_pds(net: Network, tmp_path: Path) -> None:
    host = net.host()
    dids = net.add_fixtures(host)
    result = run(tmp_path, net, *dids.values())
    assert result.exit_code == 0
    assert statuses(tmp_path) == {
        dids[name]: status
        for name, status in {
            **dict.fromkeys(WITH_CAR, "ok"),
            "dave": "deactivated",
            "erin": "takendown",
            "frank": "not_found",
            "unknown": "not_found",
        }.items()
    }
    wanted = {
        record["uri"]: record for name in WITH_CAR for record in expected(name) if kind_of(record)
    }
    rows = lake_rows(tmp_path)
    assert sorted(row["uri"] for row in rows) == sorted(wanted)
    for row in rows:
        value = wanted[row["uri"]]["value"]
        assert row["cid"] == wanted[row["uri"]]["cid"]
        assert row["verified"] is True
        assert row["day"] == utc_date(value["createdAt"])
        for name in ("text", "createdAt"):
            assert row.get("created_at" if name == "createdAt" else name) == value.get(name)
    found = states(tmp_path)
    for name in WITH_CAR:
        row, commit = found[dids[name]], INDEX[name]["latest_commit"]
        assert (row["rev"], row["cid"]) == (commit["rev"], commit["cid"])
        assert (row["host"], row["handle"]) == (host.origin, f"{name}.test")
        assert row["bytes"] == INDEX[name]["car_bytes"]
        assert row["error"] is None
        assert row["synced_at"]
    assert json.loads(found[dids["alice"]]["records"]) == {"post": 70, "reply": 1, "follow": 2}
    assert json.loads(found[dids["alice"]]["skipped"]) == {"com.example.custom.thing": 1}
    assert "Takendown" in found[dids["erin"]]["error"]

    before = files(tmp_path)
    host.server.paths.clear()
    again = run(tmp_path, net, *dids.values())
    assert again.counts.statuses["unchanged"] == 4
    assert files(tmp_path) == before
    assert {tmp for tmp in found if states(tmp_path)[tmp] != found[tmp]} <= {
        dids[n] for n in ("dave", "erin", "frank", "unknown")
    }
    fetched = [path for path in host.server.paths if "getRepo" in path]
    assert not any(dids[name] in path.replace("%3A", ":") for path in fetched for name in WITH_CAR)
    assert not list(tmp_path.glob(".spool/*"))


def test_a_changed_repository_replaces_its_records_deletions_included(
    net: Network, tmp_path: Path
) -> None:
    host = net.host()
    first = {
        **posts(20),
        "app.bsky.feed.like/a": {"createdAt": "2024-10-05T00:00:00Z", "subject": {"uri": "x"}},
    }
    alice, bob = make_repo(make_did(1), first), make_repo(make_did(2), posts(5))
    net.add(alice, host)
    net.add(bob, host)
    run(tmp_path, net, alice.did, bob.did)
    assert uris(tmp_path) == uris_of((alice, first), (bob, posts(5)))

    second = {path: value for path, value in first.items() if not path.endswith(("3", "/a"))}
    edited = min(second)
    second[edited] = post("edited", "2024-11-11")
    second["app.bsky.feed.post/new"] = post("new", "2024-10-01")
    changed = make_repo(alice.did, second, alice.key, rev=tid((1 << 60) + 1))
    host.add_made(changed)
    host.server.paths.clear()
    result = run(tmp_path, net, alice.did, bob.did)
    assert (result.counts.statuses["ok"], result.counts.statuses["unchanged"]) == (1, 1)
    assert uris(tmp_path) == uris_of((alice, second), (bob, posts(5)))
    [row] = [row for row in lake_rows(tmp_path) if row["uri"] == f"at://{alice.did}/{edited}"]
    assert (row["text"], row["day"], row["rev"]) == ("edited", "2024-11-11", tid((1 << 60) + 1))
    assert host.server.requests() == {"getLatestCommit": 2, "getRepo": 1}

    host.add_made(make_repo(alice.did, {}, alice.key, rev=tid((1 << 60) + 2)))
    run(tmp_path, net, alice.did, bob.did)
    assert uris(tmp_path) == uris_of((bob, posts(5)))


def test_other_dates_and_types_are_added(net: Network, tmp_path: Path) -> None:
    host = net.host()
    days = [f"2024-10-{day:02}" for day in range(1, 11)]
    records = {f"app.bsky.feed.post/p{day}": post(day, day) for day in days} | {
        f"app.bsky.feed.like/l{day}": {"createdAt": f"{day}T00:00:00Z", "subject": {"uri": day}}
        for day in days
    }
    made = make_repo(make_did(1), records)
    net.add(made, host)

    def have() -> list[str]:
        return [uri.rpartition("/")[2] for uri in uris(tmp_path)]

    run(tmp_path, net, made.did, record_types=("post",), start=days[2], end=days[4])
    assert have() == [f"p{day}" for day in days[2:5]]
    run(tmp_path, net, made.did, record_types=("post",), start=days[6], end=days[7])
    assert have() == [f"p{day}" for day in days[2:5] + days[6:8]]
    run(tmp_path, net, made.did, record_types=("like",), end=days[1])
    both = sorted([f"p{day}" for day in days[2:5] + days[6:8]] + [f"l{day}" for day in days[:2]])
    assert sorted(have()) == both
    host.server.paths.clear()
    result = run(tmp_path, net, made.did, record_types=("post",), start=days[3], end=days[4])
    assert (result.counts.statuses["unchanged"], host.server.requests()) == (
        1,
        {"getLatestCommit": 1},
    )
    assert sorted(have()) == both


def test_a_did_web(net: Network, tmp_path: Path) -> None:
    host = net.host()
    did = f"did:web:localhost%3A{host.origin.rpartition(':')[2]}"
    made = make_repo(did, posts(2))
    host.add_made(made)
    found = json.dumps(document(did, made.key.did_key, host.origin)).encode()
    host.server.fault = lambda path, query: (
        Reply(body=found) if path == "/.well-known/did.json" else None
    )
    run(tmp_path, net, did)
    assert uris(tmp_path) == uris_of((made, posts(2)))
    assert net.plc.server.paths == []


def test_lines_that_are_not_dids_are_reported_with_their_number(
    net: Network, tmp_path: Path
) -> None:
    host = net.host()
    made = make_repo(make_did(1), posts(2))
    net.add(made, host)
    invalid = vectors("syntax/did_syntax_invalid.txt") or ["did", "did:plc", "DID:plc:abc", "x:y"]
    lines = ["# our study's users", "", made.did, *invalid, f"  {made.did}  ", "did:example:abc"]
    path = tmp_path / "dids.txt"
    path.write_text("\ufeff" + "\r\n".join(lines))
    result = run(tmp_path / "lake", net, dids_file=str(path))
    assert [line.line for line in result.counts.invalid] == [
        *range(4, 4 + len(invalid)),
        len(lines),
    ]
    assert result.counts.statuses == {"ok": 1, "invalid_did": len(invalid) + 1}
    assert statuses(tmp_path / "lake")["did:example:abc"] == "invalid_did"
    assert host.server.requests()["getRepo"] == 1


def test_all_users_of_a_host(net: Network, tmp_path: Path) -> None:
    host, other = net.host(page=4), net.host()
    mades = [make_repo(make_did(n), posts(2, seed=n)) for n in range(10)]
    for made in mades:
        net.add(made, host)
    host.refused[make_did(40)] = "RepoDeactivated"
    net.plc.add(make_did(40), Key.make().did_key, host.origin)
    # The host lists a user who has moved away: the DID document decides.
    moved = make_repo(make_did(41), posts(3, seed=41))
    host.add_made(make_repo(moved.did, posts(1, seed=41)))
    net.add(moved, other)
    result = run(tmp_path, net, host=host.origin)
    assert result.exit_code == 0
    assert result.counts.statuses == {"ok": 11, "deactivated": 1}
    assert uris(tmp_path) == uris_of(
        *((made, posts(2, seed=n)) for n, made in enumerate(mades)), (moved, posts(3, seed=41))
    )
    assert host.server.requests() == {"listRepos": 3, "getRepo": 10}
    # In the second sync, the list alone shows that nothing has changed.
    host.add_made(make_repo(mades[0].did, posts(3), mades[0].key, rev=tid((1 << 60) + 1)))
    host.server.paths.clear()
    result = run(tmp_path, net, host=host.origin, allow_insecure_hosts=True)
    assert result.counts.statuses == {"ok": 1, "unchanged": 10, "deactivated": 1}
    assert host.server.requests() == {"listRepos": 3, "getRepo": 1}


@needs_fixtures
def test_a_new_database_is_filled_from_the_lake_without_duplicates(
    net: Network, tmp_path: Path, postgres_url: str
) -> None:
    host = net.host()
    dids = net.add_fixtures(host)
    run(tmp_path, net, *dids.values())
    before, known = files(tmp_path), states(tmp_path)
    for path in tmp_path.glob("backfill.db*"):
        path.unlink()
    host.server.paths.clear()
    result = run(tmp_path, net, *dids.values())
    assert result.counts.statuses["unchanged"] == 4
    assert files(tmp_path) == before
    assert {did: row for did, row in states(tmp_path).items() if row["status"] == "ok"} == {
        did: row for did, row in known.items() if row["status"] == "ok"
    }
    # The same with PostgreSQL.
    result = run(tmp_path, net, *dids.values(), database_url=postgres_url)
    assert result.counts.statuses["unchanged"] == 4
    assert files(tmp_path) == before
    # Records that were deleted from the lake are fetched again.
    shutil.rmtree(tmp_path / "raw_sync")
    result = run(tmp_path, net, *dids.values())
    assert result.counts.statuses["ok"] == 4
    wanted = [record["uri"] for name in WITH_CAR for record in expected(name) if kind_of(record)]
    assert uris(tmp_path) == sorted(wanted)


def test_a_repository_larger_than_a_group_and_than_a_chunk(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = net.host()
    records = {
        f"app.bsky.feed.post/{tid((1 << 60) + n)}": post("x" * 3000 + str(n)) for n in range(2000)
    }
    made = make_repo(make_did(1), records)
    small = make_repo(make_did(2), posts(2))
    net.add(made, host)
    net.add(small, host)
    result = run(tmp_path, net, made.did, small.did, settings=replace(QUICK, spool_bytes=1 << 20))
    assert result.counts.bytes > 6_000_000
    assert uris(tmp_path) == uris_of((made, records), (small, posts(2)))


def test_many_users_of_many_hosts(net: Network, tmp_path: Path) -> None:
    hosts = [net.host() for _ in range(5)]
    mades = [make_repo(make_did(n), posts(1 + n % 3, seed=n)) for n in range(150)]
    for n, made in enumerate(mades):
        net.add(made, hosts[n % 5])
    started = time.monotonic()
    result = run(tmp_path, net, *(made.did for made in mades))
    assert result.counts.statuses == {"ok": 150}
    assert uris(tmp_path) == uris_of(
        *((made, posts(1 + n % 3, seed=n)) for n, made in enumerate(mades))
    )
    assert len(list(tmp_path.glob("raw_sync/create/*/cache/*/*.parquet"))) == 1, (
        "small repositories share files"
    )
    assert time.monotonic() - started < 30
