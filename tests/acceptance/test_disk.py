"""A disk of 50 MB that fills up, and one that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import DAY, ROOT, assert_labelled_once, lake_labels, make_lake, run_cli

DAYS = [DAY, "2024-10-02"]
_INSIDE = "BACKFILL_TEST_DISK"


def mount(folder: Path) -> bool:
    options = ["mount", "-t", "tmpfs", "-o", "size=50m", "backfill-test", str(folder)]
    return subprocess.run(options, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 50 MB; where this user may mount none, the test runs again in a namespace where it may."""
    if not mount(tmp_path):
        if _INSIDE in os.environ:
            pytest.skip("this user may mount no file system, in a namespace of its own neither")
        again = ["unshare", "-rm", sys.executable, "-m", "pytest", request.node.nodeid]
        done = subprocess.run(
            again,
            cwd=ROOT,
            env={**os.environ, _INSIDE: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and " passed" in done.stdout:
            pytest.skip("passed in a namespace of its own")
        pytest.skip(
            "this user may mount no file system"
        ) if "unshare" in done.stderr else pytest.fail(done.stdout)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def command(root: Path) -> list[str]:
    import ray

    address = ray.get_runtime_context().gcs_address
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
    return ["run", *options, "--ray-address", address, "--config", str(root / "backfill.toml")]


def fill_up(root: Path, leave: int) -> Path:
    """A file that leaves so many bytes."""
    ballast = root / "ballast"
    space = os.statvfs(root)
    with ballast.open("wb") as file:
        file.write(b"\0" * (space.f_bavail * space.f_frsize - leave))
    return ballast


@pytest.mark.long
@pytest.mark.usefixtures("ray_here")
def test_a_full_disk_stops_the_run_with_a_sentence_and_it_completes_after_space_is_made(
    disk: Path,
) -> None:
    """With little left there is no room to stage, with more none to flush or for the database."""
    uris = make_lake(disk, 10_000, DAYS)
    (disk / "backfill.toml").write_text("[run]\nflush_rows = 6000\nblock_rows = 2000\n")
    for leave in (700_000, 3_500_000):
        ballast = fill_up(disk, leave)
        full = run_cli(*command(disk))
        assert full.returncode == 1, full.stderr
        errors = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, full.stderr
        assert "full; free some space and run" in errors[0]
        assert "Traceback" not in full.stderr
        assert len(lake_labels(disk)) < 20_000
        ballast.unlink()
    done = run_cli(*command(disk))
    assert done.returncode == 0, done.stderr
    assert_labelled_once(disk, uris)


@pytest.mark.usefixtures("ray_here")
def test_a_read_only_file_system_is_named(disk: Path) -> None:
    make_lake(disk, 10, DAYS)
    (disk / "backfill.toml").write_text("")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    run = run_cli(*command(disk))
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: cannot write {disk}")
    assert "the file system is read-only; choose another --data-dir" in run.stderr
    assert run.stderr.count("\n") == 1
