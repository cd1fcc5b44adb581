"""`--help`, and a local run from its start to its first label. `python -m tests.benchmarks.startup`

Next to each what Python and Ray take alone, in the same run: `ray.init` and an actor's first answer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.benchmarks.lakes import command, make_posts, options
from tests.support import ROOT, cli_command, cli_environment

_ROUNDS = 5
_RAY = """
import logging, ray, ray.data
ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
@ray.remote
class Actor:
    def answer(self):
        import ray.data, pyarrow
ray.get(Actor.remote().answer.remote())
"""


def main() -> None:
    print(f"--help: {_median(lambda: command('--help').seconds):.2f} s (target 0.5)")
    print(f"python -c pass: {_median(lambda: _seconds([sys.executable, '-c', 'pass'])):.2f} s")
    print(f"ray.init and an actor that has imported ray.data, alone: {_median(_ray, 3):.1f} s")
    print(f"run, until the first label is on disk: {_median(_first_label, 3):.1f} s (target 12)")


def _median(measure: Callable[[], float], rounds: int = _ROUNDS) -> float:
    return median(measure() for _ in range(rounds))


def _seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def _ray() -> float:
    return _seconds([sys.executable, "-c", _RAY])


def _first_label() -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = ("run", *options(folder, make_posts(Path(folder), 100_000)))
        started = time.perf_counter()
        process = subprocess.Popen(
            cli_command(*words),
            cwd=ROOT,
            env=cli_environment(),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        while not list(Path(folder, "queues", "output").glob("*/*.parquet")):
            if process.poll() is not None:
                raise SystemExit("the run ended without a label")
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        process.wait()
    return seconds


if __name__ == "__main__":
    main()
