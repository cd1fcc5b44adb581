"""CAR to verified records on one core, compared with `CAR.from_bytes`, which verifies nothing.

Both read the recorded repository `carol.car` (3,500 records, 1.0 MB), or one made here where it is
not available. Ours hashes every block, verifies signature and tree, and decodes every record. The
rounds alternate, so that both see the same load on the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

from atproto import CAR

from datasets.repos.coverage import RECORD_TYPES, covering
from pds.repo.car import read_repo
from pds.repo.records import RecordCounts, record_tables
from tests.pds.repos import make_did, make_repo, posts
from tests.pds.support import INDEX, car, identity

ROUNDS = 200
EVERYTHING = covering(RECORD_TYPES, None, None)


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    data, did, key = subject()

    def verified() -> int:
        repo = read_repo(data, did, key)
        return len(repo.decode(range(len(repo.keys))))

    def as_rows() -> int:
        repo = read_repo(data, did, key)
        return sum(
            len(table)
            for table in record_tables(repo, EVERYTHING, "2024-10-01-00:00:00", RecordCounts())
        )

    def unverified() -> int:
        return len(CAR.from_bytes(data).blocks)

    records = verified()
    times = measure({"verified": verified, "as rows": as_rows, "CAR.from_bytes": unverified})
    print(f"{records:,} records, {len(data):,} bytes, {ROUNDS} rounds")
    print(f"{'':15} {'best ms':>8} {'median ms':>10} {'records/s at best':>18}")
    for name, seconds in times.items():
        best, middle = min(seconds), median(seconds)
        print(f"{name:15} {best * 1e3:8.2f} {middle * 1e3:10.2f} {records / best:18,.0f}")
    best, middle = (
        kind(times["verified"]) / kind(times["CAR.from_bytes"]) for kind in (min, median)
    )
    print(f"{'ratio':15} {best:8.2f} {middle:10.2f}")


def subject() -> tuple[bytes, str, str]:
    """CAR, DID and signing key."""
    if "carol" in INDEX:
        return car("carol"), identity("carol").did, identity("carol").key

    made = make_repo(make_did(1), posts(3500))
    return made.car(), made.did, made.key.did_key


def measure(functions: dict[str, Callable[[], int]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            before = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - before)
    return times


if __name__ == "__main__":
    main()
