"""Every call of a private interface of Ray, so that one module changes when Ray does.

Ray may change any of these in any release. `pyproject.toml` therefore pins Ray's minor version, and
`tests/actors/test_ray_private.py` checks each against the Ray that is installed. Each docstring
names the private interface, the public alternative, and why that does not do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef
    from ray.data import Dataset


class DatasetExecution:
    """One execution of a Ray Dataset: yields references to its blocks, and can be stopped.

    Private: `Dataset._create_executor`, `Dataset._build_bundle_iterator`, the executor's
    `shutdown` and the fields of its bundles. Public alternatives:

    - `Dataset.iter_batches` and `iter_rows` copy each block into the driver, and cannot be stopped
      while they wait for one: the pool may be starting, or an API may have asked for a pause.
    - `Dataset.iter_internal_ref_bundles` yields references, but returns only once the first block
      is there, and cannot be stopped either.
    - To hand label rows to the buffer inside the pool's actors, return one receipt row a block, and
      read the receipts by `iter_batches`. Built and measured in 2026-11: valence, two idle cores,
      Ray 2.60.0, two blocks an actor so that one is classified while the other is stored, stopped
      by an exception from a callback in `DataContext.custom_execution_callback_classes`. It is as
      fast: 200,000 posts in 12.2 s instead of 12.4 s (median of five), first label after 5.7 s
      instead of 5.9 s, 1,000,000 posts in 30.8 s instead of 31.6 s (median of three). An interrupt
      takes as long, 1.6 s to 1.7 s instead of 1.5 s to 1.9 s, but actors go on storing blocks after
      the driver has stopped reading: in six of eight runs 9,216 to 13,920 labels were in the lake
      that the run did not report, in one more 9,216 stayed in the output queue for the next run.
      This class lost none in eight. After an error the actors stay while the exception is alive. To
      adopt it, the buffer has to count what it stores, and to refuse what comes after `close`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._executor = dataset._create_executor()  # noqa: SLF001 - see the class

        # After an error Ray Data keeps the actors of the pool until the driver ends, because the
        # exception refers to them. Other integrations of the run need their CPUs and memory.
        shutdown = self._executor.shutdown

        def kill_actors_on_error(force: bool, exception: BaseException | None = None) -> None:
            shutdown(force=force or exception is not None, exception=exception)

        self._executor.shutdown = kill_actors_on_error

    def blocks(self) -> Iterator[ObjectRef[pa.Table]]:
        """References to the blocks that have rows, in the order in which they are finished.

        Starts the execution, and ends when all blocks were handed out or `stop` was called. Raises
        what a task or an actor raises, as Ray wraps it.
        """
        bundles = self._dataset._build_bundle_iterator(self._executor)  # noqa: SLF001 - see the class
        for bundle in bundles:
            for block in bundle.blocks:
                if block.metadata.num_rows:
                    yield block.ref

    def stop(self) -> None:
        """Kills the tasks and actors. For any thread, at any time, any number of times."""
        self._executor.shutdown(force=True)


def autoscaler_limits() -> dict[str, float]:
    """Resource name to the amount that the autoscaler may start; empty without an autoscaler.

    Private: `ray._private.state.state.get_max_resources_from_cluster_config`, which Ray Data and
    Ray Train use too. Public: `ray.cluster_resources` and `ray.nodes` know only running nodes, and
    `ray.util.state` has no call for the configuration of a cluster.
    """
    from ray._private.state import state

    limits: dict[str, float] = state.get_max_resources_from_cluster_config() or {}
    return limits


def actors_of_this_driver(class_name: str) -> list[dict[str, Any]]:
    """Rows of Ray's actor table: actors of this driver whose class name contains `class_name`.

    Used keys: `State`, `Address` (with `IPAddress`, empty until a node has a process for the
    actor) and `NumRestarts`.

    Private: `ray._private.state.state.actor_table`. Public: `ray.util.state.list_actors` asks the
    dashboard's server, which a Ray that is started here does not have.
    """
    import ray
    from ray._private.state import state

    job_id = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    actors = state.actor_table(None, job_id).values()
    return [actor for actor in actors if class_name in actor["ActorClassName"]]


@contextlib.contextmanager
def without_unneeded_services(*, follow_logs: bool) -> Iterator[None]:
    """A Ray started inside the block has no autoscaler, dashboard or job server, and no log reader.

    Each is a process that a run would wait for before its first label, and that it never uses.
    `follow_logs` keeps the log reader, which prints the workers' output in the driver.

    Private: `ray._private.node.Node.start_monitor`, `start_api_server`, `start_log_monitor`.
    Public: `ray.init(include_dashboard=False)` leaves out the pages and still starts the server,
    `log_to_driver=False` still starts the reader, and nothing leaves out the autoscaler.
    """
    from ray._private.node import Node

    unneeded = ["start_monitor", "start_api_server"]
    if not follow_logs:
        unneeded.append("start_log_monitor")

    originals = {name: vars(Node)[name] for name in unneeded if name in vars(Node)}
    for name in originals:
        setattr(Node, name, lambda self, **named: None)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Node, name, original)


def idle_worker_options(seconds: float) -> dict[str, Any]:
    """Options of `ray.init` with which an idle worker process is kept for `seconds`.

    Private: `_system_config`, documented as "testing only". Public: none. The environment variable
    `RAY_idle_worker_killing_time_threshold_ms` sets the same undocumented option, but for every Ray
    that is started from this process.
    """
    return {"_system_config": {"idle_worker_killing_time_threshold_ms": round(seconds * 1000)}}
