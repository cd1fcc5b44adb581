"""The fetchers of hosts, as actors: which host goes to which, and the talk with them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from datasets.boundary.placement import on_node
from datasets.errors import ConfigError, RetryableError, find_our_error, summary
from datasets.lake import Lake
from pds.fetcher import HostFetcher
from pds.jobs import Job, JobResult
from pds.settings import PdsSettings

# An fetcher is one process that mostly waits. So many CPUs keep up with what it fetches.
_CPUS_PER_OWNER = 8
# Between two of its answers an fetcher may be busy, but not this long.
_TAKE_SECONDS = 5.0


class HostFetchers:
    """Ray must have been started. A host is always the same fetcher's."""

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

        actor = ray.remote(HostFetcher)
        self._ray = ray
        self._actors = [
            actor.options(num_cpus=0, max_restarts=0, scheduling_strategy=on_node(node)).remote(
                settings,
                tuple(trusted),
                insecure=insecure,
                lake=lake,
                run_id=run_id,
                spool_folder=f"{spool}/{number}",
            )
            for number, node in enumerate(_places())
        ]
        self._waiting = {
            self._actors[n].take.remote(_TAKE_SECONDS): n for n in range(len(self._actors))
        }

    def submit(self, jobs: Iterable[Job]) -> None:
        parts: dict[int, list[Job]] = {}
        for job in jobs:
            parts.setdefault(zlib.crc32(job.origin.encode()) % len(self._actors), []).append(job)
        for number, part in parts.items():
            self._actors[number].submit.remote(part)

    def take(self, seconds: float) -> list[JobResult]:
        """What has come of jobs; nothing if `seconds` bring no news. Raises what has broken an fetcher."""
        ready, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        results: list[JobResult] = []
        for reference in ready:
            number = self._waiting.pop(reference)
            results += self._get(reference)
            self._waiting[self._actors[number].take.remote(_TAKE_SECONDS)] = number
        return results

    def resting(self) -> dict[str, float]:
        """Hosts with work that rest now, and for how many seconds yet."""
        answers = [self._get(actor.resting.remote()) for actor in self._actors]
        return {origin: seconds for answer in answers for origin, seconds in answer.items()}

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
            raise ConfigError(
                f"asking hosts failed ({type(cause).__name__}: {summary(cause)}); run it with --debug"
            ) from error
        except self._ray.exceptions.RayActorError as error:
            raise RetryableError(
                "the process that asks hosts has died, perhaps for want of memory; run the same command again"
            ) from error


def _places() -> list[str]:
    """The node of each fetcher. Its decoders run there too, so it has to have a CPU."""
    import ray

    places: list[str] = []
    for node in ray.nodes():
        cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
        if cpus:
            places += [node["NodeID"]] * max(1, cpus // _CPUS_PER_OWNER)
    if not places:
        raise ConfigError(
            "Ray has no CPU here; start it with at least one, or leave --ray-address out"
        )
    return places
