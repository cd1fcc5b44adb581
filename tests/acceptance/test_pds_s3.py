"""`pds sync` into S3 with PostgreSQL, as processes, against a real S3 endpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pyarrow as pa

from datasets.database import open_database
from datasets.lake import Lake, ensure_lake
from datasets.repos.state import all_repos
from tests.pds.repos import make_did, make_repo, post, posts, tid
from tests.pds.servers import network
from tests.s3_server import BUCKET, Endpoint
from tests.support import ROOT, cli_environment, run_cli

# Two syncs of one process: Ray is started once.
TWICE = """
import sys
from backfill.ray_session import start_ray
from cli.__main__ import main
start_ray(None, debug=False)
for _ in range(2):
    code = main(sys.argv[1:])
    if code:
        sys.exit(code)
"""
TEXTS = pa.schema([("uri", pa.string()), ("text", pa.string())])


def rows(lake: Lake, dataset: str) -> list[dict[str, Any]]:
    paths = [path for files in lake.partitions(dataset).values() for path in files]
    return [row for path in paths for batch in lake.read(path, TEXTS) for row in batch.to_pylist()]


def test_a_sync_into_s3(s3: Endpoint, postgres_url: str) -> None:
    lake = Lake(f"s3://{BUCKET}/study")
    ensure_lake(lake)
    workspace = ["--data-dir", lake.root, "--database-url", postgres_url]
    users = {make_did(1): posts(5), make_did(2): posts(3, seed=2)}
    with network() as net:
        host = net.host()
        for did, records in users.items():
            net.add(make_repo(did, records), host)
        users[make_did(1)] = {"app.bsky.feed.post/new": post("the only one left")}
        changed = make_repo(make_did(1), users[make_did(1)], rev=tid((1 << 60) + 1))

        def between_the_syncs(path: str, query: dict[str, str]) -> None:
            if path.endswith("getLatestCommit"):  # the first sync has no reason to ask for it
                host.add_made(changed)

        host.server.fault = between_the_syncs
        asking = ["--plc-url", net.plc.origin, "--allow-insecure-hosts", "--host-qps", "50"]
        command = [
            "pds",
            "sync",
            *(part for did in users for part in ("--did", did)),
            "--json",
            *asking,
            *workspace,
        ]
        synced = subprocess.run(
            [sys.executable, "-c", TWICE, *command],
            cwd=ROOT,
            env=cli_environment(s3.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        assert synced.returncode == 0, synced.stderr
        statuses = [json.loads(line)["statuses"] for line in synced.stdout.splitlines()]
    assert statuses == [{"ok": 2}, {"ok": 1, "unchanged": 1}]
    expected = sorted(
        (f"at://{did}/{path}", value["text"])
        for did, records in users.items()
        for path, value in records.items()
    )
    assert (
        sorted((row["uri"], row["text"]) for row in rows(lake, "raw_sync/create/post")) == expected
    )
    for written in (4, 0):
        prepared = run_cli("preprocess", "--json", *workspace, env=s3.environment)
        assert prepared.returncode == 0, prepared.stderr
        assert sum(json.loads(prepared.stdout)["written"].values()) == written
    assert sorted((row["uri"], row["text"]) for row in rows(lake, "preprocessed_posts")) == expected
    database = open_database(postgres_url)
    states = {
        repo.did: (repo.status, repo.rev) for repo in all_repos(database) if repo.did in users
    }
    database.close()
    assert states == {
        make_did(1): ("ok", tid((1 << 60) + 1)),
        make_did(2): ("ok", make_repo(make_did(2), {}).commit["rev"]),
    }
    assert lake.files("queues/pds") == lake.files("queues/pds", ".json") == []
