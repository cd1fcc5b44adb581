"""A PLC directory and hosts for benchmarks, in a process of their own that records requests."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from backfill.repos.resolve import resolve
from backfill.repos.sync import SyncOptions, SyncResult, sync
from backfill.workspace import open_workspace
from pds.settings import PdsSettings
from tests.pds.repos import make_did, make_repo, posts, tid
from tests.pds.servers import HTML_429, Network, Pds, Reply

# How a host behaves. A dead one is one whose server is closed.
GOOD, DEAD, LIMITED, TRICKLES = "good", "dead", "limited", "trickles"


@dataclass(frozen=True)
class HostPlan:
    kind: str
    users: int
    latency: float = 0.0
    posts: int = 5


@dataclass
class World:
    """`dids` by host. `times()`: when each host received requests (seconds, server's clock)."""

    plc_url: str
    origins: list[str]
    dids: list[list[str]]
    _pipe: Connection

    def times(self) -> list[list[float]]:
        self._pipe.send(("times", 0))
        found: list[list[float]] = self._pipe.recv()
        return found

    def change(self, nth: int) -> None:
        """Changes the repository of every n-th user."""
        self._pipe.send(("change", nth))
        self._pipe.recv()


@contextmanager
def world(plans: list[HostPlan]) -> Iterator[World]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, plans), daemon=True
    )
    process.start()
    plc_url, origins, dids = ours.recv()
    try:
        yield World(plc_url, origins, dids, ours)
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, plans: list[HostPlan]) -> None:
    net, dids, number = Network(), [], itertools.count()
    for plan in plans:
        host = net.host(latency=plan.latency)
        mades = [
            make_repo(make_did(n), posts(plan.posts, seed=n % 50))
            for n in itertools.islice(number, plan.users)
        ]
        for made in mades:
            net.add(made, host)
        dids.append([made.did for made in mades])
        _misbehave(host, plan.kind)
    pipe.send((net.plc.origin, [host.origin for host in net.hosts], dids))
    while True:
        what, nth = pipe.recv()
        if what == "change":
            _change(net, dids, nth)
        pipe.send([host.server.times for host in net.hosts])


def _change(net: Network, dids: list[list[str]], nth: int) -> None:
    for host, group in zip(net.hosts, dids, strict=True):
        for did in group[::nth]:
            host.add_made(make_repo(did, posts(6), rev=tid((1 << 60) + 1)))


def _misbehave(host: Pds, kind: str) -> None:
    if kind == DEAD:
        host.server.close()
    elif kind == LIMITED:
        host.server.fault = lambda path, query: Reply(429, HTML_429, {"Content-Type": "text/html"})
    elif kind == TRICKLES:
        host.server.fault = lambda path, query: Reply(pieces=_trickle())


def _trickle() -> Iterator[bytes]:
    while True:
        yield b"x"
        time.sleep(1)


def resolve_first(lake: Path, here: World) -> None:
    """Fills the cache of identities, so that a sync waits for the hosts' rate limits only."""
    fast = PdsSettings(host_qps=1000)
    options = SyncOptions(
        tuple(of_all(here.dids)), plc_url=here.plc_url, allow_insecure_hosts=True, settings=fast
    )
    resolve(open_workspace(str(lake), None, None, None, debug=False), options, lambda found: None)


def run_sync(
    lake: Path, here: World, dids: list[str], settings: PdsSettings
) -> tuple[SyncResult, float]:
    """The result, and the duration in seconds."""
    options = SyncOptions(
        tuple(dids), plc_url=here.plc_url, allow_insecure_hosts=True, settings=settings
    )
    before = time.monotonic()
    result = sync(open_workspace(str(lake), None, None, None, debug=False), options, io.StringIO())
    return result, time.monotonic() - before


def of_all(groups: list[Any]) -> list[Any]:
    return [entry for group in groups for entry in group]
