"""SIGKILL of a sync's driver at random moments, while users keep writing. No record may be lost."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pds.repos import make_did, make_repo, post, tid
from tests.pds.servers import Network, Pds, network
from tests.pds.syncs import lake_rows, states
from tests.support import ROOT, cli_command, queue_files, run_cli

USERS, HOSTS, KILLS = 45, 3, 4
SECONDS = 60


def records_of(rng: random.Random, user: int, rev: int) -> dict[str, Any]:
    """What a user's repository holds at a revision."""
    count = rng.randrange(0, 120)
    days = [f"2024-10-{day:02}" for day in range(1, 15)]
    made: dict[str, Any] = {}
    for n in range(count):
        key = tid((1 << 60) + user * 1000 + n)
        day = rng.choice(days)
        if n % 3:
            made[f"app.bsky.feed.post/{key}"] = post(f"post {n} of {user} at {rev}", day)
        else:
            made[f"app.bsky.feed.like/{key}"] = {
                "createdAt": f"{day}T00:00:00Z",
                "subject": {"uri": f"{n}"},
            }
    return made


class World:
    """Users who change their repositories now and then."""

    def __init__(self, net: Network, rng: random.Random) -> None:
        self.net, self.rng = net, rng
        self.hosts: list[Pds] = [net.host() for _ in range(HOSTS)]
        self.now: dict[str, tuple[str, dict[str, Any]]] = {}
        for user in range(USERS):
            self.change(user, 0)

    def change(self, user: int, round_number: int) -> None:
        records = records_of(self.rng, user, round_number)
        made = make_repo(make_did(user), records, rev=tid((1 << 60) + round_number))
        self.net.add(made, self.hosts[user % HOSTS])
        self.now[made.did] = (made.commit["rev"], records)


def wait_for(process: subprocess.Popen[bytes], seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not seen() and process.poll() is None:
        assert time.monotonic() < deadline, "the sync did not reach this point in time"
        time.sleep(0.005)


@pytest.mark.usefixtures("ray_here")
def test_sigkill_of_a_sync_at_random_moments(tmp_path: Path) -> None:
    import ray

    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    lake = tmp_path / "lake"
    dids = tmp_path / "dids.txt"
    with network() as net:
        world = World(net, rng)
        dids.write_text("\n".join(world.now))
        arguments = [
            "pds",
            "sync",
            "--dids-file",
            str(dids),
            "--plc-url",
            net.plc.origin,
            "--allow-insecure-hosts",
            "--host-qps",
            "60",
            "--data-dir",
            str(lake),
            "--ray-address",
            ray.get_runtime_context().gcs_address,
        ]
        flushed = 0
        for kill in range(KILLS):
            process = subprocess.Popen(cli_command(*arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
            if kill % 2:  # while it writes into the lake
                wait_for(process, lambda: bool(list(lake.glob("queues/pds/flush-*.json"))))
                time.sleep(rng.uniform(0, 0.3))
            else:  # while it fetches
                before = set(lake.glob("queues/pds/*.json"))
                wait_for(
                    process,
                    lambda before=before: bool(set(lake.glob("queues/pds/*.json")) - before),
                )
                time.sleep(rng.uniform(0, 0.8))
            process.kill()
            process.wait()
            flushed += bool(list(lake.glob("queues/pds/flush-*.json")))
            for user in rng.sample(range(USERS), 12):
                world.change(user, kill + 1)
        done = run_cli(*arguments)
        assert done.returncode == 0, done.stderr
    expected = {
        (f"at://{did}/{path}", rev) for did, (rev, records) in world.now.items() for path in records
    }
    rows = [(row["uri"], row["rev"]) for row in lake_rows(lake)]
    assert len(rows) == len(set(rows)), "a record is there twice"
    assert set(rows) == expected
    assert {did: row["rev"] for did, row in states(lake).items()} == {
        did: rev for did, (rev, _) in world.now.items()
    }
    assert {row["status"] for row in states(lake).values()} == {"ok"}
    assert queue_files(lake) == []
    assert flushed, "no kill fell into a flush"
