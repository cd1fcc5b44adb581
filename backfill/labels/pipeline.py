"""One integration's posts through Ray Data: read, classify in an actor pool, hand to the label buffer."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from actors.batch_counts import BatchCounts
from actors.buffer import LabelBuffer
from actors.flush_policy import FlushPolicy
from actors.integrations import Integration, Placement
from actors.pool import ClassifierActor
from actors.remote.answer_cache import AnswerCacheAddress, join_answer_cache, leave_answer_cache
from actors.remote.protocol import Remote
from actors.remote.rate_limiter import Activity, leave_limiter, limiter_name, shared_limiter
from backfill.config import RunSettings
from datasets.answer_store import RunScope, store_path
from datasets.lake import Lake
from datasets.locking.locks import Dates
from datasets.posts import Selection
from datasets.source import eligible_posts

# Batches on their way to the buffer. More would only hold blocks in memory: it writes one at a time.
_UNACKNOWLEDGED = 4
_READERS = 1
# How long a run that is stopped waits for the blocks at work.
_STOP_SECONDS = 3.0
# Bytes that a pool's actor reserves. Where it reserves just what a read does, Ray makes one task of both: of all
# blocks of a file, in one actor.
_PREVENT_FUSION_BYTES = 1
# Logical CPUs of an actor that has a GPU.
_GPU_ACTOR_CPUS = 0.25
# Of a transformer on CPUs: ten seconds' work that a kill may cost, and enough to sort by length.
_CPU_MODEL_ROWS = 2048
# Seconds that the quota gives a block, at the least: so often something is labelled at a slow one.
_API_BLOCK_SECONDS = 10.0
_ACTIVITY_SECONDS = 5.0
# Blocks that an API actor works on at a time. The end of one must not leave the quota unused, and a
# block with a post that hangs must not hold up the others.
_API_BLOCKS = 32


@dataclass(frozen=True)
class Pool:
    """How many actors an integration gets at the least, and what each reserves. There are more as nodes have room."""

    min_size: int
    num_cpus: float
    num_gpus: float = 0.0


def size_pools(
    placements: Mapping[str, Placement], settings: Mapping[str, Any], api_actors: int
) -> dict[str, Pool]:
    """A pool for each integration of a run, by what the cluster has and what its autoscaler may start."""
    from ray._private.state import state  # as Ray's own libraries ask; there is no public way

    limits = state.get_max_resources_from_cluster_config() or {}
    return share_out(placements, settings, api_actors, ray.cluster_resources(), limits)


def share_out(
    placements: Mapping[str, Placement],
    settings: Mapping[str, Any],
    api_actors: int,
    now: Mapping[str, float],
    limits: Mapping[str, float],
) -> dict[str, Pool]:
    """Pools that fit all at once. GPUs are shared evenly, and so are logical CPUs; the system shares the real ones.

    `now` are the cluster's resources, and `limits` what they may become: a model waits for a GPU that can come.
    """
    cpus, gpus = (max(now.get(name, 0.0), limits.get(name, 0.0)) for name in ("CPU", "GPU"))
    models = [name for name, placement in placements.items() if placement == "model" and gpus >= 1]
    local = [
        name for name, placement in placements.items() if placement != "api" and name not in models
    ]
    threads = {name: settings[name].threads if placements[name] == "model" else 1 for name in local}
    free = cpus - _GPU_ACTOR_CPUS * gpus if models else cpus
    # Where one actor of each does not fit, or a GPU's actor needs a part of a CPU, each reserves less than it uses.
    part = min(1.0, free / max(cpus, sum(threads.values()))) if free > 0 else 1.0
    pools: dict[str, Pool] = {}
    for name, placement in placements.items():
        if placement == "api":
            pools[name] = Pool(api_actors, 0.0)
        elif name in models:
            # An actor's part must lie on one GPU: three models fit on two GPUs by halves, not by thirds of both.
            share = min(float(settings[name].gpu), 1 / math.ceil(len(models) / gpus))
            pools[name] = Pool(
                _share(now.get("GPU", 0), len(models), share), _GPU_ACTOR_CPUS, share
            )
        else:
            size = _share(now.get("CPU", 0), len(local), threads[name])
            pools[name] = Pool(size, math.floor(threads[name] * part * 100) / 100)
    return pools


def _share(total: float, pools: int, each: float) -> int:
    """Actors of `each` that a pool has for certain. One that is alone starts with one and grows while it labels."""
    return max(1, int(total / pools / each)) if pools > 1 else 1


def make_buffer(
    lake: Lake,
    integration: Integration,
    run_id: str,
    database_url: str,
    policy: FlushPolicy,
    dates: Dates,
) -> ray.actor.ActorHandle[LabelBuffer]:
    """The buffer lives on the driver's node: where the lake is a folder, that is where the folder is sure to be.

    Both end with that node, so that no other ever takes its place.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # One call more than batches on their way, so that `close` never waits behind them.
    options = {
        "num_cpus": 0,
        "max_concurrency": _UNACKNOWLEDGED + 1,
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    actor = ray.remote(LabelBuffer).options(scheduling_strategy=here, **options)
    return actor.remote(lake, integration.name, run_id, database_url, policy, dates)


@dataclass
class Labelling:
    """One integration's part of a run."""

    lake: Lake
    integration: Integration
    settings: Any
    selection: Selection
    pool: Pool
    run: RunSettings
    scope: RunScope
    buffer: ray.actor.ActorHandle[LabelBuffer]

    @property
    def run_id(self) -> str:
        return self.scope.run_id

    @property
    def answers(self) -> AnswerCacheAddress:
        """This driver's node is where the lake's folder is sure to be."""
        path = store_path(self.lake, self.integration.name)
        return AnswerCacheAddress(path, ray.get_runtime_context().get_node_id(), self.scope)

    @property
    def is_api(self) -> bool:
        return self.integration.placement(self.settings) == "api"


def label_posts(
    work: Labelling, on_receipt: Callable[[BatchCounts], None], stop: threading.Event
) -> None:
    """Returns when every batch is acknowledged, or `stop` is set. Raises errors as Ray wraps them."""
    posts = eligible_posts(work.lake, work.selection, _block_rows(work), _READERS)
    _configure(posts.context)
    labels = posts.map_batches(
        ClassifierActor,
        fn_constructor_kwargs={
            "integration": work.integration.name,
            "settings": work.settings,
            "run_id": work.run_id,
            "environment": work.integration.read_environment(),
            "answers": work.answers if work.is_api else None,
        },
        batch_format="pyarrow",
        batch_size=None,
        compute=_actor_pool(work),
        num_cpus=work.pool.num_cpus,
        num_gpus=work.pool.num_gpus or None,
        memory=_PREVENT_FUSION_BYTES,
    )
    waiting: list[ray.ObjectRef[BatchCounts]] = [work.buffer.open.remote()]  # while the pool starts
    # The public iterator cannot be stopped while it waits for a block, and waits for the first before it is there.
    executor = labels._create_executor()  # noqa: SLF001
    _end_actors_on_failure(executor)
    over = threading.Event()
    threading.Thread(target=_end_when_stopped, args=(executor, stop, over), daemon=True).start()
    try:
        for bundle in labels._build_bundle_iterator(executor):  # noqa: SLF001
            waiting += [
                work.buffer.stage.remote(entry.ref)
                for entry in bundle.blocks
                if entry.metadata.num_rows
            ]
            waiting = _acknowledge(waiting, _UNACKNOWLEDGED - 1, on_receipt)
            if stop.is_set():
                break
        _acknowledge(waiting, 0, on_receipt)
    finally:
        over.set()
        # Where it works on when Ray is shut down, Ray ends the process.
        executor.shutdown(force=True)


def _end_actors_on_failure(executor: Any) -> None:
    """Ray Data leaves the actors of a pool that failed for as long as its driver runs; others could use their place."""
    shutdown = executor.shutdown

    def forced(force: bool, exception: BaseException | None = None) -> None:
        shutdown(force=force or exception is not None, exception=exception)

    executor.shutdown = forced


def _end_when_stopped(executor: Any, stop: threading.Event, over: threading.Event) -> None:
    """Once stopped, the blocks that come in some seconds are still taken."""
    while not (stop.wait(0.5) or over.is_set()):
        pass
    over.wait(_STOP_SECONDS)
    executor.shutdown(force=True)


def _block_rows(work: Labelling) -> int:
    if work.is_api:
        assert work.integration.remote
        remote = work.integration.remote(work.settings, work.integration.read_environment())
        return api_block_rows(remote, work.run.api_block_rows)
    model = work.integration.placement(work.settings) == "model"
    return (
        min(work.run.block_rows, _CPU_MODEL_ROWS)
        if model and not work.pool.num_gpus
        else work.run.block_rows
    )


def api_block_rows(remote: Remote, most: int) -> int:
    """Posts of a block: whole requests of what the quota allows in some seconds, at most `most`."""
    requests = max(1, math.ceil(remote.quota.requests * _API_BLOCK_SECONDS))
    return min(most, requests * remote.api.group)


def _actor_pool(work: Labelling) -> ActorPoolStrategy:
    if work.is_api:
        return ActorPoolStrategy(
            size=work.pool.min_size,
            max_tasks_in_flight_per_actor=2 * _API_BLOCKS,
            max_concurrent_calls_per_actor=_API_BLOCKS,
            enable_true_multi_threading=True,
        )
    if work.integration.placement(work.settings) == "model":
        # Two blocks at a time: one is tokenised while the other is on the device.
        return ActorPoolStrategy(
            min_size=work.pool.min_size,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        )
    return ActorPoolStrategy(min_size=work.pool.min_size)


@dataclass
class ApiSession:
    """The limiter and the store of answers that an API integration's pool finds by name, joined for the run."""

    remote: Remote
    limiter: Any

    @classmethod
    def open(cls, work: Labelling) -> ApiSession:
        assert work.integration.remote
        remote = work.integration.remote(work.settings, work.integration.read_environment())
        join_answer_cache(work.answers)
        limiter = shared_limiter(limiter_name(remote.endpoint, remote.credential))
        limiter.join.remote(work.run_id)
        return cls(remote, limiter)

    def activity(self, work: Labelling) -> Activity:
        """How the asking goes; nothing is known where the limiter does not tell."""
        with suppress(ray.exceptions.RayError):
            found: Activity = ray.get(
                self.limiter.activity.remote(work.run_id, work.integration.name),
                timeout=_ACTIVITY_SECONDS,
            )
            return found
        return Activity()

    def close(self, work: Labelling, *, staged: bool) -> dict[str, float]:
        """What the run has asked and paid. `staged`: what was answered has its labels, and is of no more use."""
        stats: dict[str, float] = ray.get(
            self.limiter.stats.remote(work.run_id, work.integration.name)
        )
        if self.remote.prices:
            tokens = (stats.get("tokens_in", 0), stats.get("tokens_out", 0))
            stats["price"] = round(
                sum(n * price / 1e6 for n, price in zip(tokens, self.remote.prices, strict=True)), 4
            )
        leave_limiter(self.limiter, work.run_id)
        leave_answer_cache(work.answers, staged=staged)
        return stats


def _configure(context: DataContext) -> None:
    context.raise_original_map_exception = True
    # An API that asks for an hour's pause is not a hang.
    context.execution_no_progress_timeout_s = -1


def _acknowledge(
    waiting: list[ray.ObjectRef[BatchCounts]], leave: int, on_receipt: Callable[[BatchCounts], None]
) -> list[ray.ObjectRef[BatchCounts]]:
    """Waits until at most `leave` batches are not acknowledged; those."""
    while len(waiting) > leave:
        done, waiting = ray.wait(waiting, num_returns=1)
        for receipt in ray.get(done):
            on_receipt(receipt)
    return waiting
