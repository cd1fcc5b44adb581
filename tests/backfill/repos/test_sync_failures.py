"""Syncs with moved users, failing hosts, corrupt repositories, and options that are rejected."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets.errors import BackfillError, ConfigError
from tests.pds.repos import Key, make_did, make_repo, posts, tid
from tests.pds.servers import Network, Reply, error_reply
from tests.pds.syncs import QUICK, run, states, statuses, uris, uris_of

pytestmark = pytest.mark.usefixtures("ray_here")


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
    # No host has it now: the directory receives one request, and no host more than one.
    del new.repos[made.did]
    for server in (net.plc.server, old.server, new.server):
        server.paths.clear()
    run(tmp_path, net, made.did)
    assert statuses(tmp_path) == {made.did: "not_found"}
    assert (len(net.plc.server.paths), new.server.requests(), old.server.requests()) == (
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


def test_a_rotated_key_is_resolved_again(net: Network, tmp_path: Path) -> None:
    host = net.host()
    made = make_repo(make_did(1), posts(3))
    net.add(made, host)
    run(tmp_path, net, made.did)
    net.add(make_repo(made.did, posts(5), Key.make(78), rev=tid((1 << 60) + 1)), host)
    run(tmp_path, net, made.did)
    assert uris(tmp_path) == uris_of((made, posts(5)))
    # A signature that does not fit the new key either is corrupt.
    host.add_made(make_repo(made.did, posts(6), Key.make(79), rev=tid((1 << 60) + 2)))
    result = run(tmp_path, net, made.did)
    assert statuses(tmp_path) == {made.did: "corrupt"}
    assert "signature" in states(tmp_path)[made.did]["error"]
    assert uris(tmp_path) == uris_of((made, posts(5)))
    assert result.exit_code == 0


def test_a_corrupt_repository_does_not_affect_other_users(net: Network, tmp_path: Path) -> None:
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
        **{made.did: "ok" for made in good},
        cut.did: "corrupt",
        flipped.did: "corrupt",
        wrong.did: "corrupt",
        large.did: "too_large",
        html.did: "unreachable",
        no_pds: "not_found",
        bad_document: "corrupt",
    }
    assert uris(tmp_path) == uris_of(*((made, posts(3, seed=n)) for n, made in enumerate(good)))
    errors = {did: row["error"] for did, row in states(tmp_path).items()}
    assert "does not have the hash" in errors[cut.did]
    assert "it is the repository of" in errors[wrong.did]
    assert "more than 100,000 bytes" in errors[large.did]
    assert "404" in errors[html.did]
    assert (result.exit_code, result.counts.unfinished) == (3, 1)
    # They are fetched once their repositories are valid.
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


def test_private_addresses_in_documents_are_not_contacted(net: Network, tmp_path: Path) -> None:
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


def test_messages_of_hosts_are_made_printable(net: Network, tmp_path: Path) -> None:
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


def test_a_host_that_does_not_list(net: Network, tmp_path: Path) -> None:
    host = net.host()
    host.server.fault = lambda path, query: error_reply("MethodNotImplemented", status=501)
    result = run(tmp_path, net, host=host.origin)
    assert result.exit_code == 3
    assert "501" in (result.counts.not_listed or "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dids_file": "/no/such/file"}, "there is no file /no/such/file; check --dids-file"),
        ({"plc_url": "https://plc.directory/path"}, "--plc-url"),
        ({"host": "https://user:secret@host.example"}, "--host"),
    ],
)
def test_wrong_options_are_rejected_before_anything_is_done(
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
