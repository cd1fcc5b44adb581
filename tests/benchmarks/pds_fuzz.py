"""Mutations of CARs by the hundred thousand: refused with a reason, or exactly right.

`python -m tests.benchmarks.pds_fuzz [COUNT] [SEED]`

Four fifths mutate the bytes of recorded and made repositories. One fifth mutates repositories
before they are signed, as a malicious user could. Each must be rejected as `corrupt` with a reason,
or have exactly the right records; anything else ends the benchmark with the seed that leads to it.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections import Counter

from tests.pds.fuzz import Subject, read, small_repo, subject_of, try_bytes
from tests.pds.fuzz_signed import try_signed
from tests.pds.hostile import hostile
from tests.pds.repos import make_did
from tests.pds.support import INDEX, WITH_CAR, car, identity

COUNT = 100_000
# Of each round: mutations of the bytes, and of what is signed.
_BYTES, _SIGNED = 80, 20


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    started, rng = time.monotonic(), random.Random(seed)
    subjects = [_fixture(name) for name in WITH_CAR if name in INDEX and name != "carol"]
    results: Counter[str] = Counter()
    before = _peak_mib()
    for number in range(count // (_BYTES + _SIGNED)):
        made = small_repo(rng, make_did(number), rng.choice([1, 5, 30, 60]))
        here = subject_of(made)
        for _ in range(_BYTES):
            results[
                "bytes refused"
                if try_bytes(rng, rng.choice([here, here, *subjects]))
                else "bytes the same"
            ] += 1
        for _ in range(_SIGNED):
            results["signed refused" if try_signed(rng, made) else "signed and right"] += 1
    print(f"{results.total():,} mutations, seed {seed}, {time.monotonic() - started:.0f} s")
    for name, times in sorted(results.items()):
        print(f"  {name}: {times:,}")
    print(f"peak memory {before:.0f} MiB before, {_peak_mib():.0f} MiB after")
    for name, data in hostile(small_repo(rng, make_did(1))):
        _try_hostile(name, data)
    print(f"peak memory after these {_peak_mib():.0f} MiB")


def _fixture(name: str) -> Subject:
    who = identity(name)
    return Subject(who.did, who.key, car(name), read(car(name), who.did, who.key))


def _try_hostile(name: str, data: bytes) -> None:
    from pds.errors import RejectedRepo
    from tests.pds.repos import Key

    before = time.monotonic()
    try:
        read(data, make_did(1), Key.make().did_key)
    except RejectedRepo as error:
        print(f"  {name} ({len(data):,} bytes): refused after {time.monotonic() - before:.2f} s")
        print(f"    {error.reason[:76]}")
    else:
        raise AssertionError(f"{name} was accepted")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
