"""Memory for decoding one large repository, not counting the process with its imports.

`python -m tests.benchmarks.pds_memory [RECORDS …]`

Each size is measured in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from datasets.lake import Lake
from datasets.repos.coverage import RECORD_TYPES, covering
from datasets.repos.state import Identity
from pds.jobs import Fetch
from pds.repo.decode import Spooled, decode_group
from tests.pds.repos import Key, make_did, make_repo, post, tid

SIZES = (50_000, 500_000)
_WORDS = (
    "a post of ordinary length about elections and gardening, as long as posts are on the average"
)


def main() -> None:
    print(
        f"{'records':>8} {'CAR, MiB':>8} {'memory, MiB':>11} "
        f"{'times the CAR':>14} {'staged records/s':>16}"
    )
    for records in [int(text) for text in sys.argv[1:]] or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = multiprocessing.Pipe()
            path = Path(folder) / "one.car"
            _in_a_process(_make, path, records)
            _in_a_process(_decode, theirs, path, Path(folder) / "lake")
            size, before, after, seconds, rows = ours.recv()
            print(
                f"{rows:8,} {size / 2**20:8.0f} {(after - before) / 2**20:11.0f} "
                f"{(after - before) / size:14.1f} {rows / seconds:16,.0f}"
            )


def _in_a_process(target: object, *arguments: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()
    assert process.exitcode == 0


def _make(path: Path, records: int) -> None:
    values = {
        f"app.bsky.feed.post/{tid((1 << 60) + n)}": post(
            f"{_WORDS} {n}", f"2024-{1 + n % 12:02}-{1 + n % 28:02}", langs=["en"]
        )
        for n in range(records)
    }
    path.write_bytes(make_repo(make_did(1), values).car())


def _decode(pipe: Connection, path: Path, lake: Path) -> None:
    job = Fetch(
        Identity(make_did(1), "https://x", None, Key.make().did_key, 0),
        covering(RECORD_TYPES, None, None),
    )
    size, before, started = path.stat().st_size, _peak(), time.perf_counter()
    decoded = decode_group(Lake(str(lake)), "one", [Spooled(job, str(path), size)])
    pipe.send((size, before, _peak(), time.perf_counter() - started, decoded.rows))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
