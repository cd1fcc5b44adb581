"""Each private interface of Ray that `actors/ray_private.py` uses is as that module expects it.

A failure here after an upgrade of Ray names the function to change.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, Dataset

from actors import ray_private
from actors.ray_private import (
    DatasetExecution,
    actors_of_this_driver,
    autoscaler_limits,
    idle_worker_options,
    without_unneeded_services,
)
from datasets.boundary.placement import this_node
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("ray_here")
_ROWS = 6
_SECONDS = 30.0


class Plain:
    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


class Hanging:
    """Puts a file down when a block arrives, and does not return it."""

    def __init__(self, arrived: str) -> None:
        self.arrived = Path(arrived)

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.arrived.touch()
        time.sleep(600)
        return rows


class Failing:
    def __call__(self, rows: pa.Table) -> pa.Table:
        raise ValueError("no such model")


def dataset(kind: type, **arguments: Any) -> Dataset:
    rows = ray.data.range(_ROWS, override_num_blocks=3)
    return rows.map_batches(
        kind,
        fn_constructor_kwargs=arguments,
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(size=1),
        num_cpus=0.1,
        memory=1,
    )


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def live_actors(kind: type) -> int:
    return sum(actor["State"] != "DEAD" for actor in actors_of_this_driver(kind.__name__))


def test_the_installed_ray_is_the_minor_version_that_pyproject_allows() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert ('"ray[data,serve]>=2.60,<2.61"' in project, ray.__version__[:5]) == (True, "2.60."), (
        f"Ray is {ray.__version__}: run the tests of this file against it, then change "
        "the range in pyproject.toml and here"
    )


def test_ray_data_has_the_private_methods_of_a_dataset_execution() -> None:
    for name in ("_create_executor", "_build_bundle_iterator"):
        assert hasattr(Dataset, name), (
            f"Ray Data has no Dataset.{name} any more: change ray_private.DatasetExecution"
        )
    executor = dataset(Plain)._create_executor()
    assert list(inspect.signature(executor.shutdown).parameters) == ["force", "exception"], (
        "Ray Data's executor has another shutdown(force, exception): "
        "change ray_private.DatasetExecution"
    )


def test_an_execution_yields_references_to_all_blocks_that_have_rows() -> None:
    execution = DatasetExecution(dataset(Plain))
    try:
        tables = [pa.table(ray.get(block)) for block in execution.blocks()]
    finally:
        execution.stop()
    assert sorted(pa.concat_tables(tables)["id"].to_pylist()) == list(range(_ROWS)), (
        "Ray Data's bundles have other blocks than (ref, metadata.num_rows): "
        "change ray_private.DatasetExecution.blocks"
    )


def test_an_execution_is_stopped_from_another_thread_while_it_waits(tmp_path: Path) -> None:
    arrived = tmp_path / "arrived"
    execution = DatasetExecution(dataset(Hanging, arrived=str(arrived)))
    blocks: list[Any] = []
    reader = threading.Thread(target=lambda: blocks.extend(execution.blocks()), daemon=True)
    reader.start()
    wait_until(arrived.exists, "the pool's actor has not started")
    execution.stop()
    execution.stop()
    reader.join(_SECONDS)
    assert (reader.is_alive(), blocks) == (False, []), (
        "executor.shutdown(force=True) does not end the bundle iterator any more: an interrupt "
        "would wait for the API; change ray_private.DatasetExecution.stop"
    )
    wait_until(
        lambda: not live_actors(Hanging),
        "executor.shutdown(force=True) leaves the pool's actors: "
        "change ray_private.DatasetExecution",
    )


def test_an_execution_that_fails_leaves_no_actor_behind() -> None:
    execution = DatasetExecution(dataset(Failing))
    with pytest.raises(Exception, match="no such model") as kept:
        list(execution.blocks())
    wait_until(
        lambda: not live_actors(Failing),
        "Ray Data does not call executor.shutdown(force, exception) after an error any more, and "
        "the actors stay: change ray_private.DatasetExecution",
    )
    assert kept.value, "the exception, which refers to the actors, has been alive until here"


def test_without_an_autoscaler_there_are_no_limits() -> None:
    """What an autoscaler reports is read in tests/acceptance/test_cluster.py."""
    from ray._private.state import state

    assert hasattr(state, "get_max_resources_from_cluster_config"), (
        "Ray's state has no get_max_resources_from_cluster_config any more: "
        "change ray_private.autoscaler_limits"
    )
    assert autoscaler_limits() == {}


def test_the_actor_table_shows_the_state_the_address_and_the_restarts_of_this_drivers_actors() -> (
    None
):
    kept = ray.remote(Plain).options(num_cpus=0).remote()
    waiting = ray.remote(Plain).options(resources={"no-such-resource": 1}).remote()
    ray.get(kept.__ray_ready__.remote())

    def rows() -> dict[str, dict[str, Any]]:
        return {actor["State"]: actor for actor in actors_of_this_driver("Plain")}

    wait_until(
        lambda: {"ALIVE", "PENDING_CREATION"} <= rows().keys(),
        "Ray's actor table has other names for states: change labels/stall_diagnosis.py and "
        "ray_private.actors_of_this_driver",
    )
    found = rows()
    sentence = "Ray's actor table has other fields: change ray_private.actors_of_this_driver"
    assert found["ALIVE"]["Address"]["IPAddress"], sentence
    assert found["ALIVE"]["Address"]["NodeID"] == this_node(), sentence
    assert not found["PENDING_CREATION"]["Address"]["IPAddress"], sentence
    assert int(found["ALIVE"]["NumRestarts"]) == 0, sentence
    assert actors_of_this_driver("NoSuchClass") == []
    ray.kill(waiting)
    ray.kill(kept)


def test_services_are_left_out_inside_the_block_only() -> None:
    """That a Ray starts without them is tested in tests/backfill/test_ray_session.py."""
    from ray._private.node import Node

    names = ("start_monitor", "start_api_server", "start_log_monitor")
    before = {name: vars(Node).get(name) for name in names}
    missing = [name for name, method in before.items() if method is None]
    assert not missing, (
        f"Ray's Node has no {missing} any more: Ray starts its services in another way; "
        "change ray_private.without_unneeded_services"
    )
    with without_unneeded_services(follow_logs=True):
        assert vars(Node)["start_monitor"] is not before["start_monitor"]
        assert vars(Node)["start_log_monitor"] is before["start_log_monitor"]
    with without_unneeded_services(follow_logs=False):
        assert vars(Node)["start_log_monitor"] is not before["start_log_monitor"]
    assert {name: vars(Node)[name] for name in names} == before


def test_ray_knows_the_option_that_keeps_idle_workers() -> None:
    """A misspelt option is refused by Ray, but only when Ray starts."""
    [(keyword, options)] = idle_worker_options(600.0).items()
    assert keyword in str(inspect.getsource(ray.init)), (
        "ray.init has no _system_config any more: change ray_private.idle_worker_options"
    )
    assert options == {"idle_worker_killing_time_threshold_ms": 600_000}

    @ray.remote(num_cpus=0)
    def process() -> int:
        time.sleep(0.5)  # so that no two of these share a worker
        return os.getpid()

    # Ray keeps one idle worker for each CPU in any case, and ends the others after a second.
    count = 2 + int(ray.cluster_resources()["CPU"])
    workers = set(ray.get([process.remote() for _ in range(count)]))
    time.sleep(5)
    ended = [pid for pid in workers if not Path(f"/proc/{pid}").exists()]
    assert not ended, (
        f"Ray has ended {len(ended)} of {len(workers)} idle workers though it was told to keep "
        "them: change ray_private.idle_worker_options"
    )


def test_private_interfaces_of_ray_are_used_in_one_module_only() -> None:
    layers = ("actors", "backfill", "cli", "datasets", "pds")
    private = ("ray._private", "ray.data._internal", "_system_config", "._create_executor")
    users = {
        str(path.relative_to(ROOT))
        for layer in layers
        for path in (ROOT / layer).rglob("*.py")
        if any(name in path.read_text() for name in private)
    }
    module = str(Path(ray_private.__file__).relative_to(ROOT))
    assert users == {module}, "call Ray's private interfaces in actors/ray_private.py only"
