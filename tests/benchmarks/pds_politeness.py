"""How much of one host's rate limit is used: 9 requests per second, 100 ms latency.

`python -m tests.benchmarks.pds_politeness [USERS]`

Identities are cached beforehand, so that the sync waits for the host's rate limit only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from backfill.ray_session import start_ray
from pds.settings import PdsSettings
from tests.benchmarks.pds_world import (
    GOOD,
    HostPlan,
    resolve_first,
    run_sync,
    world,
)
from tests.pds.servers import most_in_a_second

USERS, QPS = 500, 9.0


def main() -> None:
    users = int(sys.argv[1]) if len(sys.argv) > 1 else USERS
    start_ray(None, debug=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        world([HostPlan(GOOD, users, latency=0.1)]) as here,
    ):
        lake = Path(folder)
        resolve_first(lake, here)
        result, seconds = run_sync(lake, here, here.dids[0], PdsSettings(host_qps=QPS))
        [times] = here.times()
    used = (len(times) - 1) / (times[-1] - times[0]) / QPS
    print(f"{result.counts.statuses['ok']} repositories of one host in {seconds:.1f} s")
    print(
        f"{len(times)} requests in {times[-1] - times[0]:.1f} s: "
        f"{used:.1%} of {QPS:g} a second used"
    )
    print(f"most requests in any second: {most_in_a_second(times)}")


if __name__ == "__main__":
    main()
