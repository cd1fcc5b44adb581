"""Named actors that every run on a Ray cluster shares: the rate limiters and the answer caches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from datasets.errors import FatalError

NAMESPACE = "label-backfill"
# Between two attempts to call an actor that is being ended.
_RETRY_SECONDS = 0.2


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


def shared_actor_calls(
    connect: Callable[[], Any], tries: int | None = None, unreachable: str = ""
) -> Callable[..., Any]:
    """Calls of a shared actor: `await call(method, *arguments)`. `connect` gives its handle.

    The last run to leave may be ending the actor at this moment. Then it is created anew and called
    again, up to `tries` times (without end if None). Raises FatalError(unreachable) after that.
    """
    from ray.exceptions import RayActorError

    actor = connect()

    async def call(method: str, *arguments: Any, **named: Any) -> Any:
        nonlocal actor
        for _ in itertools.count() if tries is None else range(tries):
            try:
                return await getattr(actor, method).remote(*arguments, **named)
            except RayActorError:
                await asyncio.sleep(_RETRY_SECONDS)
                actor = connect()
        raise FatalError(unreachable)

    return call


def kill_shared_actor(name: str) -> None:
    """Ends the actor `name` at once. Does nothing if it does not exist."""
    import ray

    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
