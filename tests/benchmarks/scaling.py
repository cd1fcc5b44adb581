"""Valence with one and with two actors: their rates, and who used the processors. `python -m tests.benchmarks.scaling`

A cluster with one logical CPU has one actor, one with two has two. The rate is that of the rows'
own timestamps, from the first second in which all actors label to the last whole one. Reading,
staging and flushing need processors, too: on a machine with two, two actors have less than two. So
the time that the actors themselves were given is shown, and the rows that they made of a second of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.benchmarks.lakes import make_posts
from tests.clusters import Cluster, ray_cluster
from tests.support import ROOT, VALENCE, cli_command, lake_labels

POSTS = 400_000
TARGET = 1.8
# Actors start one after the other: the second while the first labels.
_WARM_UP = 8
_ACTOR = "ray::MapWorker"


@dataclass
class Measured:
    """`rate` in posts/s; processor seconds of the actors, of all else, and of the whole machine in that time."""

    rate: float
    actors: float
    others: float
    posts: int

    @property
    def per_actor_second(self) -> float:
        return self.posts / self.actors


def main() -> None:
    posts = int(sys.argv[1]) if len(sys.argv) > 1 else POSTS
    found = {actors: measure(actors, posts) for actors in (1, 2)}
    print(
        "actors   posts/s   actors' processor s   others' processor s   posts per actor's processor s"
    )
    for actors, one in found.items():
        print(
            f"{actors:6}   {one.rate:7,.0f}   {one.actors:19.1f}   {one.others:19.1f}   {one.per_actor_second:29,.0f}"
        )
    ratio = found[2].rate / found[1].rate
    alone = 2 * found[2].per_actor_second / found[1].per_actor_second
    print(
        f"two actors label {ratio:.2f} times as fast as one on {psutil.cpu_count()} processors (target {TARGET})"
    )
    print(f"per processor that an actor is given: {alone:.2f} times")


def measure(actors: int, posts: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        lake = Path(folder) / "lake"
        lake.mkdir()
        start, end = make_posts(lake, posts)
        with ray_cluster(Path(folder) / "ray", actors) as cluster:
            where = ["--data-dir", str(lake), "--ray-address", cluster.address]
            what = ["-i", "v", "-r", "posts", "--start-date", start, "--end-date", end]
            process = subprocess.Popen(
                cli_command("run", *what, *where), cwd=ROOT, env=cluster.environment, stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            used = watch(process, cluster)
            assert process.returncode == 0
        seconds = Counter(row["label_timestamp"] for row in lake_labels(lake, VALENCE))
    return Measured(steady_rate(seconds), used[True], used[False], posts)


def steady_rate(seconds: Counter[str]) -> float:
    """Rows a second between the warm-up and the last second, which may be no whole one."""
    form = "%Y-%m-%d-%H:%M:%S"
    stamps = {
        datetime.strptime(stamp, form).replace(tzinfo=UTC).timestamp(): n
        for stamp, n in seconds.items()
    }
    first, last = min(stamps) + _WARM_UP, max(stamps)
    assert last - first >= 5, "too short to tell; give more posts"
    return sum(n for stamp, n in stamps.items() if first <= stamp < last) / (last - first)


def watch(process: subprocess.Popen[bytes], cluster: Cluster) -> dict[bool, float]:
    """Processor seconds until the run ends: of its actors (True), and of everything else that it started or used."""
    used: dict[bool, dict[int, float]] = defaultdict(dict)
    idle: dict[int, float] = {}
    while process.poll() is None:
        driver = psutil.Process(process.pid)
        for one in [
            driver,
            *driver.children(recursive=True),
            *(p for node in cluster.nodes for p in node.processes()),
        ]:
            try:
                times, name = one.cpu_times(), (one.cmdline() or [""])[0]
            except psutil.NoSuchProcess:
                continue
            total = times.user + times.system
            used[name.startswith(_ACTOR)][one.pid] = total - idle.setdefault(one.pid, total)
        time.sleep(0.5)
    actors = set(used[True])
    # A worker is one of many until it becomes an actor.
    return {
        True: sum(used[True].values()),
        False: sum(s for pid, s in used[False].items() if pid not in actors),
    }


if __name__ == "__main__":
    main()
