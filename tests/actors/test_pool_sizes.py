from __future__ import annotations

from typing import Any

import pytest

from actors.integrations import Placement
from actors.models.settings import ModelSettings
from actors.pool_sizes import PoolSize, share_resources


def pools(
    now: dict[str, float], limits: dict[str, float] | None = None, **placements: Placement
) -> dict[str, PoolSize]:
    settings: dict[str, Any] = {name: ModelSettings() for name in placements}
    return share_resources(placements, settings, 1, now, limits or {})


def test_one_local_integration_starts_with_one_actor_that_takes_one_cpu_and_may_grow() -> None:
    assert pools({"CPU": 64.0}, v="cpu", p="api") == {"v": PoolSize(1, 1.0), "p": PoolSize(1, 0.0)}


def test_several_local_integrations_have_an_equal_share_for_certain() -> None:
    assert pools({"CPU": 64.0}, v="cpu", i="model") == {
        "v": PoolSize(32, 1.0),
        "i": PoolSize(32, 1.0),
    }


def test_more_integrations_than_cpus_still_fit_all_at_once() -> None:
    found = pools({"CPU": 2.0}, v="cpu", s="model", i="model", g="model")
    assert sum(pool.min_size * pool.num_cpus for pool in found.values()) <= 2.0
    assert all(pool.min_size == 1 and pool.num_cpus > 0 for pool in found.values())


def test_models_take_the_gpus_and_leave_the_cpus_to_the_others() -> None:
    found = pools({"CPU": 16.0, "GPU": 2.0}, v="cpu", s="model", i="model")
    assert found["s"] == found["i"] == PoolSize(1, 0.25, 1.0)
    assert found["v"].min_size == 1
    assert 0.9 < found["v"].num_cpus < 1.0
    # A full machine has room for both: as many of them as CPUs, and an actor for each GPU.
    assert 16 * found["v"].num_cpus + 2 * 0.25 <= 16


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
def test_each_model_has_its_part_of_one_gpu_at_once(gpus: int) -> None:
    found = pools({"CPU": 16.0, "GPU": float(gpus)}, s="model", i="model", g="model")
    room = [1.0] * gpus
    for pool in found.values():
        assert 0 < pool.num_gpus <= 1
        for _ in range(pool.min_size):
            workspace = next(n for n, left in enumerate(room) if left >= pool.num_gpus - 1e-9)
            room[workspace] -= pool.num_gpus


def test_a_model_waits_for_a_gpu_that_the_cluster_may_start() -> None:
    assert pools({}, {"CPU": 256.0, "GPU": 4.0}, s="model") == {"s": PoolSize(1, 0.25, 1.0)}
    assert pools({"CPU": 16.0}, {"CPU": 256.0, "GPU": 0.0}, s="model") == {"s": PoolSize(1, 1.0)}


@pytest.mark.parametrize("limits", [{}, {"CPU": 256.0}])
def test_a_cluster_without_any_cpu_yet_is_waited_for(limits: dict[str, float]) -> None:
    """An actor that reserves nothing would be started on the head, and without end."""
    assert pools({}, limits, v="cpu") == {"v": PoolSize(1, 1.0)}
    assert pools({}, limits, v="cpu", i="model") == {"v": PoolSize(1, 1.0), "i": PoolSize(1, 1.0)}
