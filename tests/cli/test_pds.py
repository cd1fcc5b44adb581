"""The commands `pds` and `preprocess`."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from backfill.workspace import open_workspace
from cli.__main__ import main
from cli.pds import _options
from datasets.errors import ConfigError
from tests.pds.repos import Key, make_did, make_repo, post, posts
from tests.pds.servers import Network, Reply
from tests.pds.syncs import uris
from tests.support import ROOT, cli_command, database_labels


def call(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments, "--data-dir", str(root)])
    out, err = capsys.readouterr()
    return code, out, err


def network_options(net: Network) -> list[str]:
    return ["--plc-url", net.plc.origin, "--allow-insecure-hosts", "--host-qps", "200"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sync"], "give either users, with --did or --dids-file, or a --host"),
        (["sync", "--did", "x", "--host", "y"], "give either users"),
        (["sync", "--did", "x", "--record-types", "post,poem"], "'poem' is not one of post, reply"),
        (
            ["sync", "--did", "x", "--start-date", "2024-10-02", "--end-date", "2024-10-01"],
            "is after",
        ),
        (["sync", "--did", "x", "--start-date", "yesterday"], "not a date"),
        (["sync", "--did", "x", "--host-qps", "0"], "--host-qps"),
        (["resolve"], "--did or --dids-file is required"),
        (["nothing"], "No such command"),
    ],
)
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    code = main(["pds", *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("error: ")
    assert not any(tmp_path.iterdir())


def test_a_flag_overrides_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "backfill.toml"
    path.write_text("[pds]\nhost_qps = 3\nin_flight = 2\nmax_repo_bytes = 5\n")
    workspace = open_workspace(str(tmp_path), None, None, str(path), debug=False)
    given = {
        "dids": (),
        "dids_file": None,
        "plc_url": "",
        "allow_insecure_hosts": False,
        "host_qps": None,
    }
    settings = _options(workspace, {**given, "max_repo_mib": 1}).settings
    assert (settings.host_qps, settings.in_flight, settings.max_repo_bytes) == (3, 2, 1 << 20)
    assert _options(workspace, {**given, "host_qps": 4.0}).settings.host_qps == 4
    path.write_text("[pds]\nhost_qps = 0\n")
    with pytest.raises(ConfigError, match="host_qps must be a number above 0"):
        open_workspace(str(tmp_path), None, None, str(path), debug=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["pds", "sync", "--dids-file", "/no/such"],
            "there is no file /no/such; check --dids-file",
        ),
        (["pds", "sync", "--did", "did:plc:x", "--plc-url", "https://a/b"], "--plc-url"),
        (["pds", "status"], "run `pds sync` first"),
        (["preprocess"], "run `pds sync` first"),
    ],
)
def test_errors_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    code, out, err = call(capsys, tmp_path, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert sentence in err


@pytest.mark.usefixtures("ray_here")
def test_sync_status_and_resolve(
    net: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = net.host()
    made = make_repo(
        make_did(1),
        {**posts(3), "com.example.x/a": {"y": 1}, "app.bsky.feed.post/odd": {"text": "when?"}},
    )
    net.plc.add(made.did, made.key.did_key, host.origin, "user.example.com")
    host.add_made(made)
    limited = make_did(2)
    net.plc.add(limited, Key.make().did_key, host.origin)
    host.server.fault = lambda path, query: Reply(500) if query.get("did") == limited else None

    code, out, err = call(
        capsys,
        tmp_path,
        "pds",
        "sync",
        "--did",
        made.did,
        "--did",
        limited,
        "--did",
        "did:nope",
        *network_options(net),
        "--json",
    )
    assert code == 3
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found["statuses"] == {"ok": 1, "unreachable": 1, "invalid_did": 1}
    assert (found["users"], found["left"], found["records"], found["skipped"]) == (
        3,
        1,
        {"post": 4},
        1,
    )
    assert found["unreadable_dates"] == 1
    assert found["invalid"] == [{"line": 3, "did": "did:nope", "reason": "it is not a DID"}]
    assert "line 3: 'did:nope'" in err
    assert "1 users are left for the next run" in err

    code, out, err = call(capsys, tmp_path, "pds", "status", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["statuses"] == {"ok": 1, "unreachable": 1, "invalid_did": 1}
    assert (found["left"], found["records"], found["hosts"]) == (1, {"post": 4}, {host.origin: 2})
    code, out, _ = call(capsys, tmp_path, "pds", "status")
    assert code == 0
    assert "answered with 500" in out

    net.plc.server.paths.clear()
    code, out, err = call(
        capsys,
        tmp_path,
        "pds",
        "resolve",
        "--did",
        made.did,
        "--did",
        make_did(7),
        *network_options(net),
    )
    assert code == 0
    assert out == f"{made.did}\t{host.origin}\tuser.example.com\t{made.key.did_key}\n"
    assert err == f"{make_did(7)}: not_found: there is no such DID\n"
    assert net.plc.server.paths == [f"/{make_did(7)}"], "the other one is in the cache"
    code, out, _ = call(
        capsys, tmp_path, "pds", "resolve", "--did", made.did, "--json", *network_options(net)
    )
    assert json.loads(out)["identities"] == {
        made.did: {"host": host.origin, "handle": "user.example.com", "key": made.key.did_key}
    }


def test_without_the_directory_all_users_are_left_for_the_next_run(
    net: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net.plc.server.fault = lambda path, query: Reply(503)
    code, out, err = call(
        capsys, tmp_path, "pds", "resolve", "--did", make_did(1), *network_options(net)
    )
    assert (code, out) == (3, "")
    assert "unreachable" in err


@pytest.mark.usefixtures("ray_here")
def test_what_is_fetched_is_labelled(
    net: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = net.host()
    day = "2024-10-01"
    records: dict[str, Any] = {
        f"app.bsky.feed.post/p{n}": post(f"I love this, number {n}", day) for n in range(30)
    }
    records["app.bsky.feed.post/reply"] = post(
        "I hate this", day, reply={"root": {"uri": "x"}, "parent": {"uri": "x"}}
    )
    records["app.bsky.feed.post/blank"] = post("  ", day)
    made = make_repo(make_did(1), records)
    net.add(made, host)
    dates = ["--start-date", day, "--end-date", day]
    code, out, err = call(
        capsys, tmp_path, "pds", "sync", "--did", made.did, *dates, *network_options(net)
    )
    assert code == 0, err
    assert "31 post, 1 reply" in out
    code, out, err = call(capsys, tmp_path, "preprocess")
    assert code == 0, err
    assert "31 new posts on 1 dates; of 32 raw posts, 0 were there already and 1 are blank" in out
    code, out, err = call(capsys, tmp_path, "run", "-i", "v", "-r", "posts", *dates, "--json")
    assert code == 0, err
    [counts] = json.loads(out)["integrations"].values()
    assert (counts["eligible"], counts["labelled"]) == (31, 31)
    assert sorted(uri for uri, *_ in database_labels(tmp_path)) == [
        uri for uri in uris(tmp_path) if "blank" not in uri
    ]


@pytest.mark.usefixtures("ray_here")
def test_what_is_fetched_is_saved_when_the_sync_is_interrupted(
    net: Network, tmp_path: Path
) -> None:
    import ray

    host = net.host()
    mades = [make_repo(make_did(n), posts(2, seed=n)) for n in range(40)]
    for made in mades:
        net.add(made, host)
    (tmp_path / "dids").write_text("\n".join(made.did for made in mades))
    lake = [
        "--data-dir",
        str(tmp_path / "lake"),
        "--ray-address",
        ray.get_runtime_context().gcs_address,
    ]
    slow = ["--plc-url", net.plc.origin, "--allow-insecure-hosts", "--host-qps", "6"]
    command = cli_command("pds", "sync", "--dids-file", str(tmp_path / "dids"), *slow, *lake)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "lake").glob("queues/pds/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping; what is fetched is being saved" in err
    saved = uris(tmp_path / "lake")
    assert 0 < len(saved) == len(set(saved)) < 80
