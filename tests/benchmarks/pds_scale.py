"""Many small repositories: users a second when all are new, none has changed, a tenth has.

`python -m tests.benchmarks.pds_scale [USERS …]`

First everyone is new, then nobody has changed, then a tenth has. Hosts on loopback without a limit
worth the name: what is measured is ours. Peak memory is the driver's own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from backfill.ray_session import start_ray
from pds.settings import PdsSettings
from tests.benchmarks.pds_world import GOOD, HostPlan, World, of_all, resolve_first, run_sync, world

SIZES = (1000, 10_000)
HOSTS = 20
SETTINGS = PdsSettings(host_qps=1000)


def main() -> None:
    for users in [int(text) for text in sys.argv[1:]] or SIZES:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_measure, args=(theirs, users)
        )
        process.start()
        for line in iter(ours.recv, ""):
            print(line, flush=True)
        process.join()


def _measure(pipe: Connection, users: int) -> None:
    start_ray(None, debug=False)
    before = _peak_mib()
    with (
        tempfile.TemporaryDirectory() as folder,
        world([HostPlan(GOOD, users // HOSTS)] * HOSTS) as here,
    ):
        resolve_first(Path(folder), here)
        pipe.send(f"{users:,} users on {HOSTS} hosts")
        for name in ("all are new", "none has changed", "a tenth has changed"):
            if name == "a tenth has changed":
                here.change(10)
            pipe.send(f"  {name}: {_sync(Path(folder), here)}")
        files = len(list(Path(folder).glob("raw_sync/**/*.parquet")))
        pipe.send(
            f"  {files} files; the driver's memory: {before:.0f} MiB at the start, "
            f"{_peak_mib():.0f} at its peak"
        )
    pipe.send("")


def _sync(lake: Path, here: World) -> str:
    result, seconds = run_sync(lake, here, of_all(here.dids), SETTINGS)
    counts = result.counts
    statuses = ", ".join(f"{count:,} {name}" for name, count in counts.statuses.items())
    records = counts.records.total()
    rate = counts.users / seconds
    return f"{statuses}, {records:,} records, {seconds:.1f} s, {rate:.0f} users/s"


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
