"""SIGKILL at random moments over one backfill; one full run afterwards leaves every post exactly once.

`make chaos` kills fifty times; CHAOS_KILLS and CHAOS_SEED change and repeat it.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.support import (
    DAY,
    ROOT,
    assert_labelled_once,
    cli_command,
    cli_environment,
    lake_labels,
    make_lake,
    queue_files,
    run_cli,
)

KILLS = int(os.environ.get("CHAOS_KILLS", "5"))
DAYS = [DAY, "2024-10-02", "2024-10-03"]
# More than the kills leave time for.
POSTS_A_DAY = max(12_000, 2500 * KILLS)
# One kill of so many comes while Ray starts or posts are looked for, the others once labels come.
_EARLY = 5
_START_SECONDS = 300.0


def command(root: Path, *more: str) -> list[str]:
    options = [
        "-i",
        "v",
        "-r",
        "posts",
        "--start-date",
        DAYS[0],
        "--end-date",
        DAYS[-1],
        "--data-dir",
        str(root),
    ]
    return ["run", *options, "--config", str(root / "backfill.toml"), *more]


@pytest.mark.parametrize(
    "victim", [pytest.param("driver", marks=pytest.mark.long), "driver and its Ray"]
)
def test_sigkill_at_random_moments(
    lake_dir: Path, victim: str, request: pytest.FixtureRequest
) -> None:
    more = () if victim == "driver and its Ray" else ("--ray-address", running_ray(request))
    uris = make_lake(lake_dir, POSTS_A_DAY, DAYS)
    (lake_dir / "backfill.toml").write_text("[run]\nflush_rows = 3000\nblock_rows = 500\n")
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    rng = random.Random(seed)
    print(f"CHAOS_SEED={seed}")
    progress = []
    for number in range(KILLS):
        early = number % _EARLY == _EARLY - 1
        process = subprocess.Popen(
            cli_command(*command(lake_dir, *more)),
            cwd=ROOT,
            env=cli_environment(),
            stderr=subprocess.DEVNULL,
        )
        if early:
            time.sleep(rng.uniform(0, 8))
        else:
            wait_for_labels(lake_dir, process)
            time.sleep(rng.uniform(0, 1.5))
        kill(process)
        progress.append(len(lake_labels(lake_dir)))
        print(
            f"kill {number + 1}{' (early)' if early else ''}: {progress[-1]} labels in the lake",
            flush=True,
        )
    done = run_cli(*command(lake_dir, *more))
    assert done.returncode == 0, done.stderr
    assert_labelled_once(lake_dir, uris)
    assert 0 < progress[-1] < len(DAYS) * POSTS_A_DAY, (
        f"the kills came before any flush, or after the last: {progress}"
    )


def running_ray(request: pytest.FixtureRequest) -> str:
    request.getfixturevalue("ray_here")
    import ray

    return str(ray.get_runtime_context().gcs_address)


def wait_for_labels(root: Path, process: subprocess.Popen[bytes]) -> None:
    """Until one more batch is staged, or flushed already, so that kills fall into all that a run does."""
    before, deadline = tracks(root), time.monotonic() + _START_SECONDS
    while not tracks(root) - before:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no label staged"
        time.sleep(0.02)


def tracks(root: Path) -> set[str]:
    return {*queue_files(root), *map(str, root.glob("ml_inference_*/**/*.parquet"))}


def kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started; on a running Ray that is itself alone."""
    assert process.poll() is None, "the run ended before it could be killed"
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(family, 30)
