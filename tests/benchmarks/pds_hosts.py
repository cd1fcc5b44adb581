"""50 hosts, 15 of them bad: do the 35 good ones finish as fast as on their own?

`python -m tests.benchmarks.pds_hosts [USERS]`

5 hosts are dead, 5 answer 429 as HTML without headers, 5 send a byte per second. Measures when the
last user of a good host was requested, by the servers' clock. Waiting times for the bad hosts are
shortened so that the benchmark ends soon, which does not help the good ones.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from backfill.ray_session import start_ray
from pds.settings import PdsSettings
from tests.benchmarks.pds_world import (
    DEAD,
    GOOD,
    LIMITED,
    TRICKLES,
    HostPlan,
    of_all,
    resolve_first,
    run_sync,
    world,
)
from tests.pds.servers import most_in_a_second

USERS = 90
SETTINGS = PdsSettings(limited_seconds=20, slow_seconds=10)


def main() -> None:
    users = int(sys.argv[1]) if len(sys.argv) > 1 else USERS
    start_ray(None, debug=False)
    alone = _measure([HostPlan(GOOD, users, 0.1)] * 35)
    bad = [HostPlan(kind, users) for kind in (DEAD, LIMITED, TRICKLES) for _ in range(5)]
    together = _measure([HostPlan(GOOD, users, 0.1)] * 35 + bad)
    print(f"the 35 good hosts: {alone:.1f} s alone, {together:.1f} s with 15 bad ones")


def _measure(plans: list[HostPlan]) -> float:
    """Seconds from the first request to the last of the good hosts."""
    with tempfile.TemporaryDirectory() as folder, world(plans) as here:
        # Users of all hosts alternate in the list, as they would in a study's.
        dids = of_all([list(group) for group in zip(*here.dids, strict=True)])
        resolve_first(Path(folder), here)
        result, seconds = run_sync(Path(folder), here, dids, SETTINGS)
        by_host = here.times()
    good = [times for times, plan in zip(by_host, plans, strict=True) if plan.kind == GOOD]
    asked = sorted(of_all(good))
    print(f"{len(plans)} hosts, {seconds:.1f} s in all: {dict(Counter(result.counts.statuses))}")
    rates = [(len(times) - 1) / (times[-1] - times[0]) for times in good]
    most = max(map(most_in_a_second, good))
    print(
        f"  good hosts: {min(rates):.2f} to {max(rates):.2f} requests a second each, "
        f"at most {most} in any second"
    )
    print(f"  requests to bad hosts: {sum(map(len, by_host)) - len(asked)}")
    return asked[-1] - asked[0]


if __name__ == "__main__":
    main()
