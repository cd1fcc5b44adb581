"""SIGKILL the driver at random moments; one full run afterwards leaves every post exactly once."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import DAY, ROOT, assert_labelled_once, cli_command, lake_labels, make_lake, queue_files, run_cli

DAYS = [DAY, "2024-10-02", "2024-10-03"]
POSTS_A_DAY = 12_000


def command(root: Path, address: str) -> list[str]:
    options = ["-i", "v", "-r", "posts", "--start-date", DAYS[0], "--end-date", DAYS[-1], "--data-dir", str(root)]
    return ["run", *options, "--ray-address", address, "--config", str(root / "backfill.toml")]


@pytest.mark.usefixtures("ray_here")
def test_sigkill_of_the_driver_at_five_random_moments(lake_dir: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    uris = make_lake(lake_dir, POSTS_A_DAY, DAYS)
    (lake_dir / "backfill.toml").write_text("[run]\nflush_rows = 3000\nblock_rows = 500\n")
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    rng = random.Random(seed)
    print(f"KILL_SEED={seed}")
    progress = []
    for _ in range(5):
        process = subprocess.Popen(cli_command(*command(lake_dir, address)), cwd=ROOT, stderr=subprocess.DEVNULL)
        # Kill once labels come, so that the kills fall into reading, staging, flushing and loading.
        before, deadline = len(queue_files(lake_dir)), time.monotonic() + 60
        while len(queue_files(lake_dir)) <= before and process.poll() is None:
            assert time.monotonic() < deadline, "no label staged"
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.wait()
        progress.append(len(lake_labels(lake_dir)))
    done = run_cli(*command(lake_dir, address))
    assert done.returncode == 0, done.stderr
    assert_labelled_once(lake_dir, uris)
    assert progress[-1] > 0, f"the kills came before any flush: {progress}"
