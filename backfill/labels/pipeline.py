"""One integration's posts through Ray Data: read, classify in an actor pool, hand to the buffer."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from actors.batch_counts import BatchCounts
from actors.buffer import LabelBuffer
from actors.flush_policy import FlushPolicy
from actors.integrations import Integration
from actors.pool import ClassifierActor
from actors.pool_sizes import PoolSize
from actors.ray_private import DatasetExecution
from actors.remote.answer_cache import AnswerCacheAddress, join_answer_cache, leave_answer_cache
from actors.remote.protocol import Remote
from actors.remote.rate_limiter import Activity, leave_limiter, limiter_name, shared_limiter
from backfill.config import RunSettings
from datasets.answer_store import RunScope, store_path
from datasets.boundary.placement import on_this_node, this_node
from datasets.lake import Lake
from datasets.locking.locks import Dates
from datasets.posts import Selection
from datasets.source import eligible_posts

# Batches handed to the buffer and not acknowledged. The buffer writes one at a time, so more would
# only hold blocks in memory.
_UNACKNOWLEDGED = 4
_READERS = 1
# Seconds for which a stopped run waits for the next finished block.
_STOP_SECONDS = 3.0
_STOP_CHECK_SECONDS = 0.5
# Memory that an actor of the pool reserves. Prevents operator fusion: if the map reserves the same
# resources as the read, Ray fuses them and one actor processes a whole file.
_PREVENT_FUSION_BYTES = 1
# Posts of a block for a transformer on CPUs: about ten seconds of work, which is what a kill
# repeats, and enough posts to sort by length.
_CPU_MODEL_ROWS = 2048
# Seconds in which the quota allows one block of an API. With a small quota, labels appear this
# often.
_API_BLOCK_SECONDS = 10.0
_ACTIVITY_SECONDS = 5.0
# Blocks that an API actor processes concurrently. The end of one must not leave quota unused, and
# one post that hangs must not delay the other blocks.
_API_BLOCKS = 32


def make_buffer(
    lake: Lake,
    integration: Integration,
    run_id: str,
    database_url: str,
    policy: FlushPolicy,
    dates: Dates,
) -> ray.actor.ActorHandle[LabelBuffer]:
    """The actor that writes an integration's labels, on the driver's node.

    A lake in a folder is certain to be there. The actor ends with the node, so that it never runs
    twice.
    """
    # One more than the unacknowledged batches, so that `close` does not wait for them.
    actor = ray.remote(LabelBuffer).options(
        scheduling_strategy=on_this_node(),
        num_cpus=0,
        max_concurrency=_UNACKNOWLEDGED + 1,
        max_restarts=-1,
        max_task_retries=-1,
    )
    return actor.remote(lake, integration.name, run_id, database_url, policy, dates)


@dataclass
class IntegrationRun:
    """One integration's part of a run: which posts, with which classifier, into which buffer."""

    lake: Lake
    integration: Integration
    settings: Any
    selection: Selection
    pool: PoolSize
    run_settings: RunSettings
    scope: RunScope
    buffer: ray.actor.ActorHandle[LabelBuffer]

    @property
    def run_id(self) -> str:
        return self.scope.run_id

    @property
    def answers(self) -> AnswerCacheAddress:
        """The answer cache of the lake, on the driver's node like the buffer."""
        path = store_path(self.lake, self.integration.name)
        return AnswerCacheAddress(path, this_node(), self.scope)

    @property
    def is_api(self) -> bool:
        return self.integration.placement(self.settings) == "api"

    @property
    def is_model(self) -> bool:
        return self.integration.placement(self.settings) == "model"

    def remote(self) -> Remote:
        """The API that the integration asks. Only where `is_api`."""
        assert self.integration.remote
        return self.integration.remote(self.settings, self.integration.read_environment())


def label_posts(
    run: IntegrationRun, on_receipt: Callable[[BatchCounts], None], stop: threading.Event
) -> None:
    """Labels all posts of the run's selection. `on_receipt` gets each acknowledged batch.

    Returns when every batch is acknowledged, or soon after `stop` is set. Raises errors as Ray
    wraps them.
    """
    labels = _labels(run)
    # The buffer recovers what a killed run has left while the pool starts.
    waiting: list[ray.ObjectRef[BatchCounts]] = [run.buffer.open.remote()]

    execution = DatasetExecution(labels)
    finished = threading.Event()
    threading.Thread(target=_stop_when_asked, args=(execution, stop, finished), daemon=True).start()
    try:
        for block in execution.blocks():
            waiting.append(run.buffer.stage.remote(block))
            waiting = _acknowledge(waiting, _UNACKNOWLEDGED - 1, on_receipt)
            if stop.is_set():
                break
        _acknowledge(waiting, 0, on_receipt)
    finally:
        finished.set()
        # Ray ends this process if it is shut down while an execution is running.
        execution.stop()


def _labels(run: IntegrationRun) -> Dataset:
    """The lazy Dataset of label rows: one block of posts becomes one block of labels."""
    posts = eligible_posts(run.lake, run.selection, _block_rows(run), _READERS)
    _configure(posts.context)
    return posts.map_batches(
        ClassifierActor,
        fn_constructor_kwargs={
            "integration": run.integration.name,
            "settings": run.settings,
            "run_id": run.run_id,
            "environment": run.integration.read_environment(),
            "answers": run.answers if run.is_api else None,
        },
        batch_format="pyarrow",
        batch_size=None,
        compute=_actor_pool(run),
        num_cpus=run.pool.num_cpus,
        num_gpus=run.pool.num_gpus or None,
        memory=_PREVENT_FUSION_BYTES,
    )


def _configure(context: DataContext) -> None:
    context.raise_original_map_exception = True
    # An API that asks for a pause of an hour is no reason to give up.
    context.execution_no_progress_timeout_s = -1


def _stop_when_asked(
    execution: DatasetExecution, stop: threading.Event, finished: threading.Event
) -> None:
    """Once `stop` is set, allows some seconds for a block that is almost finished."""
    while not (stop.wait(_STOP_CHECK_SECONDS) or finished.is_set()):
        pass
    finished.wait(_STOP_SECONDS)
    execution.stop()


def _block_rows(run: IntegrationRun) -> int:
    if run.is_api:
        return api_block_rows(run.remote(), run.run_settings.api_block_rows)
    if run.is_model and not run.pool.num_gpus:
        return min(run.run_settings.block_rows, _CPU_MODEL_ROWS)
    return run.run_settings.block_rows


def api_block_rows(remote: Remote, most: int) -> int:
    """Posts of a block: whole requests of what the quota allows in some seconds, at most `most`."""
    requests = max(1, math.ceil(remote.quota.requests * _API_BLOCK_SECONDS))
    return min(most, requests * remote.api.group)


def _actor_pool(run: IntegrationRun) -> ActorPoolStrategy:
    if run.is_api:
        return ActorPoolStrategy(
            size=run.pool.min_size,
            max_tasks_in_flight_per_actor=2 * _API_BLOCKS,
            max_concurrent_calls_per_actor=_API_BLOCKS,
            enable_true_multi_threading=True,
        )

    if run.is_model:
        # Two blocks concurrently: one is tokenised while the other is on the device.
        return ActorPoolStrategy(
            min_size=run.pool.min_size,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        )

    return ActorPoolStrategy(min_size=run.pool.min_size)


def _acknowledge(
    waiting: list[ray.ObjectRef[BatchCounts]], keep: int, on_receipt: Callable[[BatchCounts], None]
) -> list[ray.ObjectRef[BatchCounts]]:
    """Waits until at most `keep` batches are unacknowledged, and returns those."""
    while len(waiting) > keep:
        done, waiting = ray.wait(waiting, num_returns=1)
        for receipt in ray.get(done):
            on_receipt(receipt)
    return waiting


@dataclass
class ApiSession:
    """A run's membership of the rate limiter and the answer cache that its API pool uses."""

    remote: Remote
    limiter: Any

    @classmethod
    def open(cls, run: IntegrationRun) -> ApiSession:
        remote = run.remote()
        join_answer_cache(run.answers)

        limiter = shared_limiter(limiter_name(remote.endpoint, remote.credential))
        limiter.join.remote(run.run_id)
        return cls(remote, limiter)

    def activity(self, run: IntegrationRun) -> Activity:
        """How the API answers. An empty `Activity` where the limiter does not reply in time."""
        with suppress(ray.exceptions.RayError):
            found: Activity = ray.get(
                self.limiter.activity.remote(run.run_id, run.integration.name),
                timeout=_ACTIVITY_SECONDS,
            )
            return found
        return Activity()

    def close(self, run: IntegrationRun, *, staged: bool) -> dict[str, float]:
        """Leaves both, and returns the run's counts of calls and tokens, with their price.

        `staged`: every answered post has a label on durable storage, so its answers can go.
        """
        stats: dict[str, float] = ray.get(
            self.limiter.stats.remote(run.run_id, run.integration.name)
        )
        if self.remote.prices:
            stats["price"] = _price(stats, self.remote.prices)

        leave_limiter(self.limiter, run.run_id)
        leave_answer_cache(run.answers, staged=staged)
        return stats


def _price(stats: dict[str, float], prices: tuple[float, float]) -> float:
    """The cost of the tokens. `prices` are for a million tokens in and a million out."""
    price_in, price_out = prices
    cost = stats.get("tokens_in", 0) * price_in + stats.get("tokens_out", 0) * price_out
    return round(cost / 1e6, 4)
