"""Why a run makes no progress, in a few words: what waits, and for what."""

from __future__ import annotations

from typing import Any

import ray

from actors.remote.rate_limiter import Activity
from backfill.progress import format_seconds
from datasets.boundary.http_headers import moment_in

_POOL_ACTOR = "ClassifierActor"
_BEFORE_WORK = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")
# Shorter pauses are a part of keeping to a quota.
_PAUSE_SECONDS = 5.0


def why_waiting(api: Activity | None) -> str:
    """For an integration of this driver that has not had a batch acknowledged for long; `api`, where it asks one."""
    from ray._private.state import (
        state,  # as Ray's own libraries ask; there is no public way without a dashboard
    )

    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    actors = [
        a for a in state.actor_table(None, job).values() if _POOL_ACTOR in a["ActorClassName"]
    ]
    free = ray.available_resources()
    return explain(actors, {name: float(free.get(name, 0)) for name in ("CPU", "GPU")}, api)


def explain(
    actors: list[dict[str, Any]], free: dict[str, float], api: Activity | None = None
) -> str:
    """`actors` are rows of Ray's actor table, `free` the resources that nobody has reserved."""
    starting = [actor for actor in actors if actor["State"] in _BEFORE_WORK]
    # A place is a process that a node has set aside; its address is known from then on.
    homeless = [actor for actor in starting if not actor["Address"]["IPAddress"]]
    restarted = sum(int(actor["NumRestarts"]) for actor in actors)
    if homeless:
        left = " and ".join(f"{amount:g} {name}" for name, amount in free.items())
        return (
            f"{len(homeless)} of its actors wait for a place in the Ray cluster, which has {left} free; is another "
            "program using it?"
        )
    if starting:
        return f"{len(starting)} of the run's actors are still loading their models"
    if restarted:
        return f"processes of the run died {restarted} times and were started again; short of memory, or a poison post"
    if api:
        return explain_api(api)
    return "the classifiers are at work on their batches, slowly"


def explain_api(api: Activity, now: float | None = None) -> str:
    """`now` is in seconds of the epoch."""
    so_far = f"answers so far: {api.answered:,}"
    if api.pause >= _PAUSE_SECONDS:
        return f"the API asked for a pause until {moment_in(api.pause, now)}; {so_far}"
    if api.steady:
        return f"the API answers, as fast as its quota lets it; {so_far}, the last {format_seconds(api.ago)} ago"
    if api.answered:
        return f"the API has stopped answering; what is sent is tried again; {so_far}"
    return "the API does not answer; what is sent is tried again"
