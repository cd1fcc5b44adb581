"""How many actors each integration's pool gets, and what each actor reserves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.integrations import Placement
from actors.ray_private import autoscaler_limits

# Logical CPUs of an actor that has a GPU.
_GPU_ACTOR_CPUS = 0.25


@dataclass(frozen=True)
class PoolSize:
    """A pool's smallest number of actors, and the logical resources of one actor.

    The pool grows beyond `min_size` while nodes have room.
    """

    min_size: int
    num_cpus: float
    num_gpus: float = 0.0


def size_pools(
    placements: Mapping[str, Placement], settings: Mapping[str, Any], api_actors: int
) -> dict[str, PoolSize]:
    """A pool for each integration of a run, on the cluster that this process is connected to."""
    import ray

    return share_resources(
        placements, settings, api_actors, ray.cluster_resources(), autoscaler_limits()
    )


def share_resources(
    placements: Mapping[str, Placement],
    settings: Mapping[str, Any],
    api_actors: int,
    available: Mapping[str, float],
    limits: Mapping[str, float],
) -> dict[str, PoolSize]:
    """Pools that fit on the cluster at the same time, by integration.

    `available` are the cluster's resources now, `limits` those that its autoscaler may start: a
    model waits for a GPU that can still be started. Models share the GPUs evenly, or the CPUs with
    the other local integrations where there is no GPU. Only logical CPUs are divided: the operating
    system schedules the real ones.
    """
    cpus = max(available.get("CPU", 0.0), limits.get("CPU", 0.0))
    gpus = max(available.get("GPU", 0.0), limits.get("GPU", 0.0))

    on_gpu = [name for name, placement in placements.items() if placement == "model" and gpus >= 1]
    on_cpu = [
        name for name, placement in placements.items() if placement != "api" and name not in on_gpu
    ]
    threads = {
        name: settings[name].threads if placements[name] == "model" else 1 for name in on_cpu
    }

    free_cpus = cpus - _GPU_ACTOR_CPUS * gpus if on_gpu else cpus
    scale = _cpu_scale(cpus, free_cpus, threads.values())
    pools: dict[str, PoolSize] = {}
    for name, placement in placements.items():
        if placement == "api":
            pools[name] = PoolSize(api_actors, 0.0)
        elif name in on_gpu:
            # On two GPUs, three models have half a GPU each.
            share = min(float(settings[name].gpu), 1 / math.ceil(len(on_gpu) / gpus))
            size = _min_size(available.get("GPU", 0), len(on_gpu), share)
            pools[name] = PoolSize(size, _GPU_ACTOR_CPUS, share)
        else:
            size = _min_size(available.get("CPU", 0), len(on_cpu), threads[name])
            pools[name] = PoolSize(size, math.floor(threads[name] * scale * 100) / 100)
    return pools


def _cpu_scale(cpus: float, free: float, threads: Iterable[int]) -> float:
    """The part of its threads that an actor on CPUs reserves.

    Less than all where one actor of each pool would not fit otherwise, or
    where the actors on GPUs need a part of the CPUs: `free` is what they
    leave.
    """
    if free <= 0:
        return 1.0
    return min(1.0, free / max(cpus, sum(threads)))


def _min_size(total: float, pools: int, each: float) -> int:
    """Actors that a pool is guaranteed. A pool that has the cluster to itself starts with one."""
    if pools == 1:
        return 1
    return max(1, int(total / pools / each))
