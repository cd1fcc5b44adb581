"""The whole way: directory, hosts, fetchers, decoders, lake and database; over HTTP, with Ray."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from backfill.repos.sync import SyncOptions, SyncResult, sync
from backfill.workspace import open_workspace
from datasets.errors import BackfillError, ConfigError
from pds.settings import PdsSettings
from pds.syntax import utc_date
from tests.pds.repo.test_records import kind_of
from tests.pds.repos import Key, Made, make_did, make_repo, post, posts, tid
from tests.pds.servers import Network, Reply, document, error_reply, network
from tests.pds.support import INDEX, WITH_CAR, expected, needs_fixtures, vectors

pytestmark = pytest.mark.usefixtures("ray_here")

QUICK = PdsSettings(
    host_qps=500,
    limited_seconds=0.3,
    trouble_seconds=0.1,
    retry_seconds=0.05,
    connect_seconds=2,
    read_seconds=2,
)


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as found:
        yield found


def run(root: Path, net: Network, *dids: str, **options: Any) -> SyncResult:
    """One `pds sync` in this process."""
    settings = options.pop("settings", QUICK)
    options = {"allow_insecure_hosts": True, "plc_url": net.plc.origin, **options}
    workspace = open_workspace(
        str(root), options.pop("database_url", None), None, None, debug=False
    )
    return sync(workspace, SyncOptions(dids, settings=settings, **options), io.StringIO())


def lake_rows(root: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(root.glob("raw_sync/create/*/cache/partition_date=*/*.parquet")):
        found = pq.ParquetFile(path).read().to_pylist()
        assert {row["record_type"] for row in found} == {path.parts[-4]}
        rows += [{**row, "day": path.parent.name.removeprefix("partition_date=")} for row in found]
    return rows


def uris(root: Path) -> list[str]:
    return sorted(row["uri"] for row in lake_rows(root))


def states(root: Path) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{root}/backfill.db?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return {row["did"]: dict(row) for row in connection.execute("SELECT * FROM pds_repos")}


def statuses(root: Path) -> dict[str, str]:
    return {did: row["status"] for did, row in states(root).items()}


def files(root: Path) -> dict[str, float]:
    """Everything under the lake's data and when it was written."""
    return {
        str(path): path.stat().st_mtime_ns for path in root.glob("raw_sync/**/*") if path.is_file()
    }


def uris_of(*repos: Made | tuple[Made, Mapping[str, Any]]) -> list[str]:
    found = []
    for entry in repos:
        made, records = entry if isinstance(entry, tuple) else (entry, None)
        assert records is not None
        found += [f"at://{made.did}/{path}" for path in records]
    return sorted(found)


@needs_fixtures
def test_the_reference_pds(net: Network, tmp_path: Path) -> None:
    host = net.host()
    dids = net.add_fixtures(host)
    result = run(tmp_path, net, *dids.values())
    assert result.exit_code == 0
    assert statuses(tmp_path) == {
        dids[name]: status
        for name, status in {
            **dict.fromkeys(WITH_CAR, "ok"), "dave": "deactivated", "erin": "takendown", "frank": "not_found",
            "unknown": "not_found",
        }.items()
    }  # fmt: skip
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
    assert host.server.asked() == {"getLatestCommit": 2, "getRepo": 1}

    host.add_made(make_repo(alice.did, {}, alice.key, rev=tid((1 << 60) + 2)))
    run(tmp_path, net, alice.did, bob.did)
    assert uris(tmp_path) == uris_of((bob, posts(5)))


def test_other_dates_and_types_add_to_what_is_there(net: Network, tmp_path: Path) -> None:
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
    assert (result.counts.statuses["unchanged"], host.server.asked()) == (1, {"getLatestCommit": 1})
    assert sorted(have()) == both


def test_a_user_who_has_moved_is_followed_once(net: Network, tmp_path: Path) -> None:
    old, new = net.host(), net.host()
    made = make_repo(make_did(1), posts(3))
    net.add(made, old)
    run(tmp_path, net, made.did)
    del old.repos[made.did]
    moved = make_repo(made.did, posts(4), Key.make(77), rev=tid((1 << 60) + 1))
    net.add(moved, new)
    run(tmp_path, net, made.did)
    assert statuses(tmp_path) == {made.did: "ok"}
    assert uris(tmp_path) == uris_of((moved, posts(4)))
    assert states(tmp_path)[made.did]["host"] == new.origin
    # Nobody has it now: that is asked of the directory once, and of no host twice.
    del new.repos[made.did]
    for server in (net.plc.server, old.server, new.server):
        server.paths.clear()
    run(tmp_path, net, made.did)
    assert statuses(tmp_path) == {made.did: "not_found"}
    assert (len(net.plc.server.paths), new.server.asked(), old.server.asked()) == (
        1,
        {"getLatestCommit": 1},
        {},
    )
    assert uris(tmp_path) == uris_of((moved, posts(4))), (
        "what is gone from the host stays in the lake"
    )


def test_users_whose_host_has_died_are_found_where_they_have_moved(
    net: Network, tmp_path: Path
) -> None:
    old, new = net.host(), net.host()
    mades = [make_repo(make_did(n), posts(2, seed=n)) for n in range(30)]
    for made in mades:
        net.add(made, old)
    run(tmp_path, net, *(made.did for made in mades))
    for made in mades:
        net.add(make_repo(made.did, posts(3, seed=1), rev=tid((1 << 60) + 1)), new)
    old.server.close()
    result = run(tmp_path, net, *(made.did for made in mades))
    assert result.counts.statuses == {"ok": 30}
    assert uris(tmp_path) == uris_of(*((made, posts(3, seed=1)) for made in mades))


def test_a_key_that_was_rotated_is_asked_for_again(net: Network, tmp_path: Path) -> None:
    host = net.host()
    made = make_repo(make_did(1), posts(3))
    net.add(made, host)
    run(tmp_path, net, made.did)
    net.add(make_repo(made.did, posts(5), Key.make(78), rev=tid((1 << 60) + 1)), host)
    run(tmp_path, net, made.did)
    assert uris(tmp_path) == uris_of((made, posts(5)))
    # A signature that no key of the user explains is what it is.
    host.add_made(make_repo(made.did, posts(6), Key.make(79), rev=tid((1 << 60) + 2)))
    result = run(tmp_path, net, made.did)
    assert statuses(tmp_path) == {made.did: "corrupt"}
    assert "signature" in states(tmp_path)[made.did]["error"]
    assert uris(tmp_path) == uris_of((made, posts(5)))
    assert result.exit_code == 0


def test_one_users_trouble_is_nobody_elses(net: Network, tmp_path: Path) -> None:
    host = net.host()
    good = [make_repo(make_did(n), posts(3, seed=n)) for n in range(3)]
    for made in good:
        net.add(made, host)
    cut, flipped, wrong, large, html = (
        make_repo(make_did(10 + n), posts(40, seed=50 + n)) for n in range(5)
    )
    for made in (cut, flipped, wrong, large, html):
        net.add(made, host)
    rev, link, data = host.repos[cut.did]
    host.add(cut.did, rev, link, data[: len(data) // 2])
    rev, link, data = host.repos[flipped.did]
    host.add(flipped.did, rev, link, data.replace(b"post 7 of", b"post 8 of"))
    host.add(wrong.did, *host.repos[good[0].did])
    host.add(large.did, rev, link, data + b"\x00" * 100_000)
    no_pds, bad_document = make_did(30), make_did(31)
    net.plc.documents[no_pds] = {"id": no_pds}
    net.plc.documents[bad_document] = b"<html>"
    host.server.fault = lambda path, query: (
        Reply(404, b"<html>not here</html>") if query.get("did") == html.did else None
    )
    everyone = [made.did for made in (*good, cut, flipped, wrong, large, html)] + [
        no_pds,
        bad_document,
    ]
    result = run(tmp_path, net, *everyone, settings=replace(QUICK, max_repo_bytes=100_000))
    assert statuses(tmp_path) == {
        **{made.did: "ok" for made in good}, cut.did: "corrupt", flipped.did: "corrupt", wrong.did: "corrupt",
        large.did: "too_large", html.did: "unreachable", no_pds: "not_found", bad_document: "corrupt",
    }  # fmt: skip
    assert uris(tmp_path) == uris_of(*((made, posts(3, seed=n)) for n, made in enumerate(good)))
    errors = {did: row["error"] for did, row in states(tmp_path).items()}
    assert "does not have the hash" in errors[cut.did]
    assert "it is the repository of" in errors[wrong.did]
    assert "more than 100,000 bytes" in errors[large.did]
    assert "404" in errors[html.did]
    assert (result.exit_code, result.counts.unfinished) == (3, 1)
    # Mended, they are fetched.
    host.server.fault = None
    for made in (cut, flipped):
        net.add(made, host)
    run(tmp_path, net, cut.did, flipped.did, html.did)
    assert {statuses(tmp_path)[made.did] for made in (cut, flipped, html)} == {"ok"}


def test_a_dead_host_and_a_limited_one_leave_their_users_for_the_next_run(
    net: Network, tmp_path: Path
) -> None:
    good, limited, dead = net.host(), net.host(), net.host()
    mades = [make_repo(make_did(n), posts(2, seed=n)) for n in range(9)]
    for n, made in enumerate(mades):
        net.add(made, [good, limited, dead][n % 3])
    limited.server.fault = lambda path, query: Reply(429, b"<html>", {"Content-Type": "text/html"})
    dead.server.close()
    result = run(tmp_path, net, *(made.did for made in mades))
    assert (result.exit_code, result.counts.unfinished) == (3, 6)
    assert [statuses(tmp_path)[made.did] for made in mades] == [
        "ok",
        "rate_limited",
        "unreachable",
    ] * 3
    limited.server.fault = None
    result = run(tmp_path, net, *(made.did for made in mades[:2]))
    assert result.exit_code == 0
    assert statuses(tmp_path)[mades[1].did] == "ok"


def test_hosts_of_strangers_on_this_machine_are_not_asked(net: Network, tmp_path: Path) -> None:
    host = net.host()
    made = make_repo(make_did(1), posts(2))
    net.add(made, host)
    result = run(tmp_path, net, made.did, allow_insecure_hosts=False)
    assert statuses(tmp_path) == {made.did: "unreachable"}
    assert "is not contacted: it is not https" in states(tmp_path)[made.did]["error"]
    assert (result.exit_code, host.server.paths) == (0, [])
    net.plc.add(
        made.did, made.key.did_key, host.origin.replace("http://127.0.0.1", "https://localhost")
    )
    run(tmp_path, net, made.did, allow_insecure_hosts=False)
    assert "which is not public" in states(tmp_path)[made.did]["error"]
    assert host.server.paths == []


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


def test_what_a_host_says_does_not_reach_the_terminal_as_it_is(
    net: Network, tmp_path: Path
) -> None:
    host = net.host()
    made = make_repo(make_did(1), posts(2))
    net.add(made, host)
    host.server.fault = lambda path, query: error_reply(
        "RepoTakendown", "\x1b[2J\x00 gone \u202e" + "x" * 999
    )
    run(tmp_path, net, made.did)
    error = states(tmp_path)[made.did]["error"]
    assert error.startswith("\ufffd[2J\ufffd gone \ufffdxxx")
    assert len(error) == 300


def test_lines_that_are_no_dids_are_reported_by_their_number(net: Network, tmp_path: Path) -> None:
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
    assert host.server.asked()["getRepo"] == 1


def test_everyone_on_a_host(net: Network, tmp_path: Path) -> None:
    host, other = net.host(page=4), net.host()
    mades = [make_repo(make_did(n), posts(2, seed=n)) for n in range(10)]
    for made in mades:
        net.add(made, host)
    host.refused[make_did(40)] = "RepoDeactivated"
    net.plc.add(make_did(40), Key.make().did_key, host.origin)
    # The host lists someone who has moved away: his document counts.
    moved = make_repo(make_did(41), posts(3, seed=41))
    host.add_made(make_repo(moved.did, posts(1, seed=41)))
    net.add(moved, other)
    result = run(tmp_path, net, host=host.origin)
    assert result.exit_code == 0
    assert result.counts.statuses == {"ok": 11, "deactivated": 1}
    assert uris(tmp_path) == uris_of(
        *((made, posts(2, seed=n)) for n, made in enumerate(mades)), (moved, posts(3, seed=41))
    )
    assert host.server.asked() == {"listRepos": 3, "getRepo": 10}
    # Again: the list alone says that nothing has changed there.
    host.add_made(make_repo(mades[0].did, posts(3), mades[0].key, rev=tid((1 << 60) + 1)))
    host.server.paths.clear()
    result = run(tmp_path, net, host=host.origin, allow_insecure_hosts=True)
    assert result.counts.statuses == {"ok": 1, "unchanged": 10, "deactivated": 1}
    assert host.server.asked() == {"listRepos": 3, "getRepo": 1}


def test_a_host_that_does_not_list(net: Network, tmp_path: Path) -> None:
    host = net.host()
    host.server.fault = lambda path, query: error_reply("MethodNotImplemented", status=501)
    result = run(tmp_path, net, host=host.origin)
    assert result.exit_code == 3
    assert "501" in (result.counts.not_listed or "")


@needs_fixtures
def test_a_new_database_is_filled_from_the_lake_and_doubles_nothing(
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
    # Another one, too: PostgreSQL from now on.
    result = run(tmp_path, net, *dids.values(), database_url=postgres_url)
    assert result.counts.statuses["unchanged"] == 4
    assert files(tmp_path) == before
    # And records that were taken out of the lake are fetched again.
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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dids_file": "/no/such/file"}, "there is no file /no/such/file; check --dids-file"),
        ({"plc_url": "https://plc.directory/path"}, "--plc-url"),
        ({"host": "https://user:secret@host.example"}, "--host"),
    ],
)
def test_what_is_refused_before_anything_is_done(
    net: Network, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "lake", net, **options)
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "lake").exists()


def test_a_second_sync_of_the_same_lake_is_refused_while_one_runs(
    net: Network, tmp_path: Path
) -> None:
    from datasets.lake import Lake
    from datasets.locking.locks import Lock

    with (
        Lock(Lake(str(tmp_path)), "raw_sync", "run", "another"),
        pytest.raises(ConfigError, match="another"),
    ):
        run(tmp_path, net, make_did(1))


def test_a_disk_that_cannot_be_written_ends_the_sync_with_one_sentence(
    net: Network, tmp_path: Path
) -> None:
    host = net.host()
    made = make_repo(make_did(1), posts(2))
    net.add(made, host)
    (tmp_path / "lake" / "queues").mkdir(parents=True)
    (tmp_path / "lake" / "queues" / "pds").write_text("a file where a folder should be")
    with pytest.raises(BackfillError) as caught:
        run(tmp_path / "lake", net, made.did)
    assert "queues/pds" in str(caught.value)
    os.unlink(tmp_path / "lake" / "queues" / "pds")
    assert run(tmp_path / "lake", net, made.did).counts.statuses == {"ok": 1}
