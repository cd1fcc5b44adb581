"""One integration's posts through Ray Data: read, classify in an actor pool, hand to the label buffer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from actors.buffer import FlushPolicy, LabelBuffer, Receipt
from actors.integrations import Integration, Placement
from actors.pool import ClassifierActor
from backfill.config import RunSettings
from datasets.errors import BackfillError, FatalError
from datasets.lake import Lake
from datasets.posts import Selection
from datasets.source import READ_CPUS, eligible_posts

# Batches on their way to the buffer. More would only hold blocks in memory: it writes one at a time.
_UNACKNOWLEDGED = 4
_READERS = 1


@dataclass(frozen=True)
class Pool:
    """How many actors an integration gets, and what each reserves."""

    size: int
    num_cpus: float
    num_gpus: float = 0.0


def size_pools(placements: dict[str, Placement]) -> dict[str, Pool]:
    """A pool for each integration of a run, so that all of them and the readers fit at once.

    Logical CPUs are shared evenly; the operating system shares the real ones.
    """
    cpus = float(ray.cluster_resources().get("CPU", 1))
    local = [name for name, placement in placements.items() if placement == "cpu"]
    free = max(cpus - READ_CPUS * _READERS * len(placements), cpus / 2)
    pools: dict[str, Pool] = {}
    for name, placement in placements.items():
        if placement == "api":
            pools[name] = Pool(1, 0.0)
        else:
            size = max(1, int(cpus // max(1, len(local))))
            pools[name] = Pool(size, min(1.0, int(free / (size * max(1, len(local))) * 100) / 100))
    return pools


def make_buffer(
    lake: Lake, integration: Integration, run_id: str, database_url: str, policy: FlushPolicy
) -> ray.actor.ActorHandle[LabelBuffer]:
    """The buffer lives on the driver's node: where the lake is a folder, that is where the folder is sure to be."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # One call more than batches on their way, so that `close` never waits behind them.
    options = {"num_cpus": 0, "max_concurrency": _UNACKNOWLEDGED + 1, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(LabelBuffer).options(scheduling_strategy=here, **options)
    return actor.remote(lake, integration.name, run_id, database_url, policy)


def label_posts(
    lake: Lake,
    integration: Integration,
    settings: Any,
    selection: Selection,
    pool: Pool,
    run: RunSettings,
    run_id: str,
    buffer: ray.actor.ActorHandle[LabelBuffer],
    on_receipt: Callable[[Receipt], None],
    stop: threading.Event,
) -> None:
    """Returns when every batch is acknowledged, or `stop` is set. Raises our errors only."""
    api = integration.placement(settings) == "api"
    posts = eligible_posts(lake, selection, run.api_block_rows if api else run.block_rows, _READERS)
    _configure(posts.context)
    labels = posts.map_batches(
        ClassifierActor,
        fn_constructor_kwargs={"integration": integration.name, "settings": settings, "run_id": run_id},
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(min_size=1, max_size=pool.size, initial_size=1),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
    )
    waiting: list[ray.ObjectRef[Receipt]] = []
    try:
        for bundle in labels.iter_internal_ref_bundles():
            waiting += [buffer.stage.remote(entry.ref) for entry in bundle.blocks if entry.metadata.num_rows]
            waiting = _acknowledge(waiting, _UNACKNOWLEDGED - 1, on_receipt)
            if stop.is_set():
                break
        _acknowledge(waiting, 0, on_receipt)
    except Exception as error:
        raise our_error(error) from error


def _configure(context: DataContext) -> None:
    context.raise_original_map_exception = True
    # An API that asks for an hour's pause is not a hang.
    context.execution_no_progress_timeout_s = -1


def _acknowledge(
    waiting: list[ray.ObjectRef[Receipt]], leave: int, on_receipt: Callable[[Receipt], None]
) -> list[ray.ObjectRef[Receipt]]:
    """Waits until at most `leave` batches are not acknowledged; those."""
    while len(waiting) > leave:
        done, waiting = ray.wait(waiting, num_returns=1)
        for receipt in ray.get(done):
            on_receipt(receipt)
    return waiting


def our_error(error: BaseException) -> BackfillError:
    """The error of ours inside what Ray made of it; for any other, a FatalError that names it."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, BackfillError) and type(current).__module__ == BackfillError.__module__:
            return current
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
    last = (str(error).strip().splitlines() or [""])[-1]
    return FatalError(f"the run stopped ({type(error).__name__}: {last}); run the same command again to go on")
