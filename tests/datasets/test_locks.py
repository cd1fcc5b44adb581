from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.locks import Lock
from tests.support import ROOT

HOLD = """
import sys, time
from datasets.lake import Lake
from datasets.locks import Lock
lock = Lock(Lake(sys.argv[1]), "x", "run", "the-other-run")
print("held", flush=True)
time.sleep(60)
"""


def hold(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_with_the_holders_name_until_it_dies(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        lake = Lake(str(tmp_path))
        with pytest.raises(ConfigError, match=rf"x is being written by run the-other-run \(process {process.pid} on "):
            Lock(lake, "x", "run", "mine")
        Lock(lake, "y", "run", "mine").release()
        Lock(lake, "x", "buffer", "mine").release()
        process.send_signal(signal.SIGKILL)
        Lock(lake, "x", "run", "mine", wait=10).release()
        assert process.stdout
        process.stdout.close()


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for _ in range(2):
        with Lock(lake, "x", "run", "mine"), pytest.raises(ConfigError, match="run mine"):
            Lock(lake, "x", "run", "second")
