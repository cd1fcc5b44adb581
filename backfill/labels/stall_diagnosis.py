"""Explains in a few words why a run makes no progress."""

from __future__ import annotations

from typing import Any

import ray

from actors.ray_private import actors_of_this_driver
from actors.remote.rate_limiter import Activity
from backfill.progress import format_seconds
from datasets.boundary.http_headers import moment_in

_POOL_ACTOR = "ClassifierActor"
# States of Ray's actor table before an actor's constructor has returned.
_STARTING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")
# Shorter pauses are a normal part of keeping to a quota.
_PAUSE_SECONDS = 5.0


def diagnose_stall(api: Activity | None) -> str:
    """Why this driver's pools finish no batch. `api` is None for an integration without an API."""
    free = ray.available_resources()
    return diagnose_actors(
        actors_of_this_driver(_POOL_ACTOR),
        {name: float(free.get(name, 0)) for name in ("CPU", "GPU")},
        api,
    )


def diagnose_actors(
    actors: list[dict[str, Any]], free: dict[str, float], api: Activity | None = None
) -> str:
    """`actors` are rows of Ray's actor table, `free` the cluster's unreserved resources."""
    starting = [actor for actor in actors if actor["State"] in _STARTING]
    # An actor has an address once a node has set a process aside for it.
    unplaced = [actor for actor in starting if not actor["Address"]["IPAddress"]]
    restarts = sum(int(actor["NumRestarts"]) for actor in actors)

    if unplaced:
        left = " and ".join(f"{amount:g} {name}" for name, amount in free.items())
        return (
            f"{len(unplaced)} of its actors wait for a place in the Ray cluster, "
            f"which has {left} free; is another program using it?"
        )
    if starting:
        return f"{len(starting)} of the run's actors are still loading their models"
    if restarts:
        return (
            f"processes of the run died {restarts} times and were started again; "
            "short of memory, or a poison post"
        )
    if api:
        return diagnose_api(api)
    return "the classifiers are at work on their batches, slowly"


def diagnose_api(api: Activity, now: float | None = None) -> str:
    """`now` is in seconds since the epoch; the current time by default."""
    so_far = f"answers so far: {api.answered:,}"
    if api.pause >= _PAUSE_SECONDS:
        return f"the API asked for a pause until {moment_in(api.pause, now)}; {so_far}"
    if api.steady:
        return (
            f"the API answers, as fast as its quota lets it; {so_far}, "
            f"the last {format_seconds(api.ago)} ago"
        )
    if api.answered:
        return f"the API has stopped answering; what is sent is tried again; {so_far}"
    return "the API does not answer; what is sent is tried again"
