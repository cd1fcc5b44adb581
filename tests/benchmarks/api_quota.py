"""Perspective at 100 queries a second against a server on loopback. `python -m tests.benchmarks.api_quota [POSTS]`

200 ms latency, a sliding window of one second; 1, 2 and 4 actors; two runs that share the key; and
faults: 5 % 429, 5 % 503, 2 % broken JSON, 0.3 % hanging for two minutes, 2 % refused posts. All
rates are counted by the server, from its first request to its last; `steady` leaves out the first
second, in which one request alone finds out whether the key is good, and the last.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.api_server import api_server
from tests.benchmarks.lakes import command
from tests.support import DAY, lake_labels, make_lake

PERSPECTIVE = "ml_inference_perspective_api"
POSTS, FAULTY_POSTS, QUOTA = 3_000, 2_000, 100


def main() -> None:
    posts = int(sys.argv[1]) if len(sys.argv) > 1 else POSTS
    print(
        f"{'':<22}{'QPS':>7}{'steady':>8}{'most in 1 s':>13}{'429 by us':>11}{'calls a post':>14}"
    )
    for actors in (1, 2, 4):
        _report(f"{actors} actors" if actors > 1 else "1 actor", _run([posts], actors))
    _report("two runs at once", _run([posts // 2] * 2, 1))
    stats = _run(
        [FAULTY_POSTS],
        1,
        "timeout = 10.0\nattempts = 12\n",
        p429=0.05,
        p503=0.05,
        broken=0.02,
        hang=0.003,
        refused=0.02,
    )
    _report("faults", stats)
    print(
        f"  faults: {stats['rows']:,} rows, most paid for one post: {max(stats['good'].values())}"
    )
    print(
        f"  {stats['faults']}, {stats['seconds']:.0f} s; {FAULTY_POSTS / QUOTA:.0f} s by the quota alone"
    )


def _run(sizes: list[int], actors: int, settings: str = "", **faults: float) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        api_server(latency=0.2, quota=QUOTA, **faults) as api,
    ):
        roots = [Path(folder, str(number)) for number in range(len(sizes))]
        first = 0
        for root, posts in zip(roots, sizes, strict=True):
            make_lake(root, posts, [DAY], first=first)
            first += posts
            (root / "backfill.toml").write_text(
                f"[run]\napi_actors = {actors}\n[integrations.{PERSPECTIVE}]\nqps = {QUOTA}\n{settings}"
            )

        def label(root: Path) -> None:
            where = (
                "-i",
                "p",
                "-r",
                "posts",
                "--start-date",
                DAY,
                "--end-date",
                DAY,
                "--data-dir",
                str(root),
            )
            command("run", *where, "--config", str(root / "backfill.toml"), env=api.environment)

        with ThreadPoolExecutor() as threads:
            list(threads.map(label, roots))
        return {**api.stats(), "rows": sum(len(lake_labels(root, PERSPECTIVE)) for root in roots)}


def _report(name: str, stats: dict[str, Any]) -> None:
    rate = (stats["calls"] - 1) / stats["seconds"]
    first, last = stats["arrivals"][0] + 1, stats["arrivals"][-1] - 1
    steady = sum(first <= at < last for at in stats["arrivals"]) / (last - first)
    calls = stats["calls"] / len(stats["good"])
    ours = stats["faults"].get("quota", 0)
    print(
        f"{name:<22}{rate:>7.1f}{steady:>8.1f}{stats['most_in_a_second']:>13}{ours:>11}{calls:>14.3f}"
    )


if __name__ == "__main__":
    main()
