"""Named actors that every run on a Ray cluster shares: the rate limiters and the answer caches."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

NAMESPACE = "label-backfill"


def shared_actor(kind: type, name: str, *arguments: Any, **options: Any) -> Any:
    """A handle to the cluster's actor `name`, which is created from the class `kind` if absent.

    The actor is detached: it outlives the run that created it. Ray restarts it after a crash and
    repeats the calls that were lost with it. `arguments` go to the constructor, `options` to Ray.
    """
    import ray

    actor = ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        **options,
    )
    return actor.remote(*arguments)


def kill_shared_actor(name: str) -> None:
    """Ends the actor `name` at once. Does nothing if it does not exist."""
    import ray

    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
