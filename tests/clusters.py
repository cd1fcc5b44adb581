"""Ray clusters of several nodes on this machine, each node started as a user starts it, for tests that kill them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_STORE = 200 * 2**20
_START_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """A node: what `ray start --block` started, and all that belongs to it."""

    process: subprocess.Popen[bytes]

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Processes of the node whose command line begins with or runs `name`."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                command = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if command and (
                not name or command[0].startswith(name) or command[0].endswith(f"/{name}")
            ):
                found.append(process)
        return found

    def kill(self, name: str) -> int:
        """SIGKILL of the processes with that name; how many."""
        found = self.processes(name)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(found)

    def stop(self) -> None:
        """Ends the node and everything of it."""
        left = self.processes() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in left:
            if process.is_running():
                process.kill()
        psutil.wait_procs(left, 10)


@dataclass
class Cluster:
    """A head and its workers. `address` is for --ray-address, `dashboard` for `ray job submit`."""

    folder: Path
    environment: dict[str, str]
    address: str = ""
    dashboard: str = ""
    nodes: list[Node] = field(default_factory=list)

    def start_head(self, cpus: int, *, dashboard: bool) -> Node:
        port, board = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{board}"
        return self._start(
            *(
                "--head",
                "--node-ip-address=127.0.0.1",
                f"--port={port}",
                f"--num-cpus={cpus}",
                "--num-gpus=0",
            ),
            *(f"--include-dashboard={dashboard}", f"--dashboard-port={board}"),
            f"--ray-client-server-port={free_port()}",
        )

    def add(self, cpus: int, gpus: int = 0) -> Node:
        ip = f"127.0.0.{len(self.nodes) + 1}"
        return self._start(
            f"--address={self.address}",
            f"--node-ip-address={ip}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
        )

    def _start(self, *options: str) -> Node:
        log = self.folder / f"node-{len(self.nodes)}.log"
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={_STORE}"]
        common.append(f"--dashboard-agent-listen-port={free_port()}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*RAY, "start", *common, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        self.nodes.append(Node(process))
        deadline = time.monotonic() + _START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return self.nodes[-1]


@contextlib.contextmanager
def ray_cluster(
    folder: Path,
    head_cpus: int = 1,
    *,
    dashboard: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """A cluster of one node, which `add` makes larger. All of it is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "BACKFILL_"))
    }
    # Nodes of several machines, or a job, come in with a token only.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    cluster = Cluster(folder, {**clean, **token, **(env or {})})
    try:
        cluster.start_head(head_cpus, dashboard=dashboard)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            node.stop()
