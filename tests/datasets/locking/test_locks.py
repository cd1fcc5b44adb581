from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.locking import leases
from datasets.locking.locks import Lock, live_runs
from tests.s3_server import BUCKET, Endpoint
from tests.support import ROOT

HOLD = """
import sys, time
from datasets.locking import leases
from datasets.locking import locks
from datasets.lake import Lake
leases.LEASE_SECONDS, leases.RENEW_SECONDS, leases.SURE_SECONDS = map(float, sys.argv[2:])
lock = locks.Lock(Lake(sys.argv[1]), "x", "run", "the-other-run")
print("held", flush=True)
time.sleep(60)
"""
SECONDS = (4.0, 0.5, 2.0)


@pytest.fixture(params=["folder", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    if request.param == "folder":
        return Lake(str(tmp_path))
    request.getfixturevalue("s3")
    for name, value in zip(
        ("LEASE_SECONDS", "RENEW_SECONDS", "SURE_SECONDS"), SECONDS, strict=True
    ):
        monkeypatch.setattr(leases, name, value)
    return Lake(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def holder(lake: Lake) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of x."""
    command = [sys.executable, "-c", HOLD, lake.root, *map(str, SECONDS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_with_the_holders_name_until_it_dies(
    lake: Lake, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(
        ConfigError, match=rf"x is being written by run the-other-run \(process {holder.pid} on "
    ):
        Lock(lake, "x", "run", "mine")
    Lock(lake, "y", "run", "mine").release()
    Lock(lake, "x", "buffer", "mine").release()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    Lock(lake, "x", "run", "mine").release()
    assert time.monotonic() - started < 2 * leases.LEASE_SECONDS


def test_a_released_lock_can_be_taken_again(lake: Lake) -> None:
    for _ in range(2):
        with Lock(lake, "x", "run", "mine"), pytest.raises(ConfigError, match="run mine"):
            Lock(lake, "x", "run", "second")


def test_locks_of_disjoint_dates_are_held_side_by_side(lake: Lake) -> None:
    def lock(start: str, end: str) -> Lock:
        return Lock(lake, "x", "run", f"from-{start}", dates=(start, end))

    with lock("2024-10-01", "2024-10-03"), lock("2024-10-04", "2024-10-05"):
        with pytest.raises(ConfigError, match="from-2024-10-01"):
            lock("2024-09-01", "2024-10-01")
        with pytest.raises(ConfigError, match="from-"):
            Lock(lake, "x", "run", "all")
    with Lock(lake, "x", "run", "all"):
        pass


def test_runs_live_while_they_or_their_buffer_hold_a_lock(lake: Lake) -> None:
    first, second = ("2024-10-01", "2024-10-01"), ("2024-10-02", "2024-10-02")
    with Lock(lake, "x", "recover", "other"), Lock(lake, "x", "run", "one", dates=first):
        with Lock(lake, "x", "buffer", "two", dates=second):
            assert live_runs(lake, "x") == {"one": first, "two": second}
        assert live_runs(lake, "x") == {"one": first}


TAKE = """
import os, sys, time
from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.locking.locks import Lock
while time.time() < float(sys.argv[3]): pass
while True:
    try:
        lock = Lock(Lake(sys.argv[1]), "x", "run", "r", wait=60)
        break
    except ConfigError: pass
mark = os.open(sys.argv[2], os.O_CREAT | os.O_EXCL)
time.sleep(0.05)
os.close(mark)
os.unlink(sys.argv[2])
lock.release()
"""


def test_of_several_that_try_at_once_one_holds_it_at_a_time(lake: Lake, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE, lake.root, str(tmp_path / "mark"), str(time.time() + 3)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4


@pytest.fixture
def s3_lake(s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    for name, value in zip(
        ("LEASE_SECONDS", "RENEW_SECONDS", "SURE_SECONDS"), SECONDS, strict=True
    ):
        monkeypatch.setattr(leases, name, value)
    return Lake(f"s3://{BUCKET}/{tmp_path.name}")


def test_a_stopped_holder_may_not_write_once_another_has_taken_its_lease(
    s3_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)  # as one that sleeps
    stopped = Lock(s3_lake, "x", "run", "stopped")
    stopped.ensure()
    with (
        Lock(s3_lake, "x", "run", "next"),
        pytest.raises(ConfigError, match="another run has taken over x"),
    ):
        stopped.ensure()
    stopped.release()


def test_a_holder_that_was_cut_off_goes_on_where_nobody_took_its_lease(
    s3_lake: Lake, s3: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)
    lock = Lock(s3_lake, "x", "run", "mine")
    with s3.down():
        time.sleep(leases.LEASE_SECONDS + 1)
    lock.ensure()
    assert [path for path in s3_lake.modified(".locks/x", ".lock") if "run" in path]
    lock.release()
    assert s3_lake.modified(".locks/x", ".lock") == {}


def test_a_folder_that_cannot_hold_locks_is_named(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*\.locks"):
        Lock(Lake(str(tmp_path)), "x", "run", "mine")
    assert os.listdir(tmp_path) == [".locks"]
