"""The fetchers of hosts, as Ray actors: which host belongs to which, and calls to them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from datasets.boundary.placement import on_node
from datasets.errors import ConfigError, RetryableError, find_our_error
from datasets.lake import Lake
from pds.fetcher import HostFetcher
from pds.jobs import Job, JobResult
from pds.settings import PdsSettings

# A fetcher is one process that mostly waits. This many CPUs decode what it downloads.
_CPUS_PER_FETCHER = 8
# How long a call of an actor's `take` waits for results.
_TAKE_SECONDS = 5.0


class HostFetchers:
    """Needs a running Ray. A host always belongs to the same fetcher.

    `trusted` are origins that the user named. `spool` is the folder for downloads on each node.
    """

    def __init__(
        self,
        settings: PdsSettings,
        trusted: Iterable[str],
        lake: Lake,
        run_id: str,
        spool: str,
        *,
        insecure: bool,
    ) -> None:
        import ray

        self._ray = ray
        actor = ray.remote(HostFetcher)
        self._actors = [
            actor.options(num_cpus=0, max_restarts=0, scheduling_strategy=on_node(node)).remote(
                settings,
                tuple(trusted),
                insecure=insecure,
                lake=lake,
                run_id=run_id,
                spool_folder=f"{spool}/{number}",
            )
            for number, node in enumerate(_fetcher_nodes())
        ]
        self._pending = {
            actor.take.remote(_TAKE_SECONDS): number for number, actor in enumerate(self._actors)
        }

    def submit(self, jobs: Iterable[Job]) -> None:
        by_fetcher: dict[int, list[Job]] = {}
        for job in jobs:
            number = zlib.crc32(job.origin.encode()) % len(self._actors)
            by_fetcher.setdefault(number, []).append(job)

        for number, its_jobs in by_fetcher.items():
            self._actors[number].submit.remote(its_jobs)

    def take(self, seconds: float) -> list[JobResult]:
        """New results; [] if there are none within `seconds`.

        Raises the error that stopped a fetcher, if one did.
        """
        ready, _ = self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=seconds)

        results: list[JobResult] = []
        for reference in ready:
            number = self._pending.pop(reference)
            results += self._get(reference)
            self._pending[self._actors[number].take.remote(_TAKE_SECONDS)] = number
        return results

    def paused_hosts(self) -> dict[str, float]:
        """Origins of hosts that have jobs and are paused, and the seconds until the pause ends."""
        found: dict[str, float] = {}
        for reference in [actor.paused_hosts.remote() for actor in self._actors]:
            found.update(self._get(reference))
        return found

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if ours := find_our_error(error):
                raise ours from None

            cause = error.cause
            name = type(cause).__name__
            reason = (str(cause).splitlines() or [name])[0]
            raise ConfigError(
                f"fetching stopped ({name}: {reason}); run it with --debug"
            ) from error
        except self._ray.exceptions.RayActorError as error:
            raise RetryableError(
                "the process that fetches repositories died, perhaps for lack of memory; "
                "run the same command again"
            ) from error


def _fetcher_nodes() -> list[str]:
    """The node id of each fetcher. It decodes on its own node, which therefore needs a CPU."""
    import ray

    nodes: list[str] = []
    for node in ray.nodes():
        cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
        if cpus:
            nodes += [node["NodeID"]] * max(1, cpus // _CPUS_PER_FETCHER)

    if not nodes:
        raise ConfigError(
            "Ray has no CPU here; start it with at least one, or leave --ray-address out"
        )
    return nodes
