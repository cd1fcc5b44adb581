"""Clusters of several nodes, whose parts are killed while they work. Each node is a real one, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.api_server import Api, api_server
from tests.clusters import RAY, Cluster, ray_cluster
from tests.support import (
    DAY,
    ROOT,
    VALENCE,
    assert_labelled_once,
    cli_command,
    lake_labels,
    make_lake,
    run_cli,
)

PERSPECTIVE = "ml_inference_perspective_api"
# `make chaos` takes 20,000.
POSTS = int(os.environ.get("CLUSTER_POSTS", "4000"))
# Ours, as they show themselves in the list of processes, and the classes of those that Ray Data starts.
BUFFER, LIMITER, STORE, WORKER = (
    "ray::LabelBuffer",
    "ray::Limiter",
    "ray::AnswerCache",
    "ray::MapWorker",
)
_SECONDS = 420.0
# Answers that belong to blocks which are not whole when a run is stopped: kept, and not yet labels.
_BLOCKS = 150


def command(lake: Path, *more: str) -> list[str]:
    where = ["--data-dir", str(lake), "--config", str(lake / "backfill.toml")]
    return ["run", "-r", "posts", "--start-date", DAY, "--end-date", DAY, *where, *more]


def prepared(lake: Path, posts: int) -> dict[str, set[str]]:
    lake.mkdir()
    (lake / "backfill.toml").write_text("[run]\nflush_rows = 3000\nblock_rows = 500\n")
    return make_lake(lake, posts, [DAY])


def wait_for(
    what: str, happened: Callable[[], Any], process: subprocess.Popen[str] | None = None
) -> Any:
    deadline = time.monotonic() + _SECONDS
    while not (found := happened()):
        assert time.monotonic() < deadline, f"no {what}"
        assert process is None or process.poll() is None, (
            f"ended before {what}: {process and process.communicate()}"
        )
        time.sleep(0.1)
    return found


def start(cluster: Cluster, api: Api | None, *arguments: str) -> subprocess.Popen[str]:
    environment = {**cluster.environment, **(api.environment if api else {})}
    return subprocess.Popen(
        cli_command(*arguments, "--ray-address", cluster.address),
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.long
def test_a_node_a_worker_the_buffer_the_limiter_and_the_store_are_killed_in_one_run(
    tmp_path: Path,
) -> None:
    lake = tmp_path / "lake"
    uris = prepared(lake, POSTS)
    with ray_cluster(tmp_path / "ray", 1) as cluster, api_server(latency=0.05) as api:
        node = cluster.add(1)
        run = start(cluster, api, *command(lake, "-i", "v,p", "--qps", "1000", "--json"))

        def kill(name: str) -> int:
            return sum(one.kill(name) for one in cluster.nodes)

        def answered(part: float) -> Callable[[], bool]:
            return lambda: len(api.stats()["good"]) >= part * POSTS

        killed = {}
        for part, name in (
            (0.2, "raylet"),
            (0.35, WORKER),
            (0.5, BUFFER),
            (0.6, LIMITER),
            (0.7, STORE),
        ):
            wait_for(f"{part:.0%} of the answers", answered(part), run)
            killed[name] = node.kill(name) if name == "raylet" else kill(name)
        stdout, stderr = run.communicate(timeout=_SECONDS)
        stats = api.stats()
    assert run.returncode == 0, stderr
    assert all(killed.values()), killed
    assert_labelled_once(lake, uris, VALENCE)
    assert_labelled_once(lake, uris, PERSPECTIVE)
    # The node and the worker may each have had the actor that asks.
    repeated = sum(stats["asked"].values()) - len(stats["asked"])
    assert repeated <= 2 * stats["most_in_flight"], (repeated, stats["most_in_flight"])
    assert json.loads(stdout)["integrations"][PERSPECTIVE]["labelled"] == POSTS
    print(
        f"killed {killed}; {repeated} calls repeated, {stats['most_in_flight']} in flight at most"
    )


@pytest.mark.long
def test_the_head_dies_and_the_same_command_completes_elsewhere(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    uris = prepared(lake, 3000)
    # Ray waits a minute for its head to come back.
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "15"}
    with ray_cluster(tmp_path / "ray", 1, env=patience) as cluster, api_server(latency=0.05) as api:
        run = start(cluster, api, *command(lake, "-i", "v,p", "--qps", "50"))
        wait_for("answers", lambda: len(api.stats()["good"]) > 100, run)
        for process in cluster.nodes[0].processes():
            process.kill()
        _, stderr = run.communicate(timeout=90)
        assert run.returncode == 1, stderr
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, stderr
        assert "run the same command again" in errors[0]
        assert "Traceback" not in stderr
        done = run_cli(*command(lake, "-i", "v,p", "--qps", "1000"), env=api.environment)
        stats = api.stats()
    assert done.returncode == 0, done.stderr
    assert_labelled_once(lake, uris, VALENCE)
    assert_labelled_once(lake, uris, PERSPECTIVE)
    assert sum(stats["asked"].values()) - len(stats["asked"]) <= stats["most_in_flight"]


def ours(cluster: Cluster) -> list[str]:
    """Actors of a run, wherever they are."""
    kinds = (BUFFER, LIMITER, STORE, WORKER)
    wait_for(
        "end of actors",
        lambda: not [p for node in cluster.nodes for kind in kinds for p in node.processes(kind)],
    )
    return [kind for node in cluster.nodes for kind in kinds for _ in node.processes(kind)]


def submit(cluster: Cluster, *arguments: str, wait: bool = True, api: Api | None = None) -> str:
    """`ray job submit` as in the README; the job's log and what Ray says about it."""
    secrets = api.environment if api else {}
    options = ["--address", cluster.dashboard, "--working-dir", str(ROOT)]
    options += ["--runtime-env-json", json.dumps({"env_vars": secrets})] if secrets else []
    options += [] if wait else ["--no-wait", "--submission-id", "stopped"]
    done = subprocess.run(
        [*RAY, "job", "submit", *options, "--", *cli_command(*arguments)],
        env=cluster.environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return f"{done.stdout}\nexit {done.returncode}"


def job(cluster: Cluster, verb: str) -> str:
    call = [*RAY, "job", verb, "--address", cluster.dashboard, "stopped"]
    done = subprocess.run(
        call, env=cluster.environment, text=True, capture_output=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.long
def test_jobs_on_a_head_that_does_no_work(tmp_path: Path) -> None:
    """Submitted before there is a worker: labelled by nodes that come later, and stopped cleanly."""
    lake = tmp_path / "lake"
    uris = prepared(lake, 4000)
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with ray_cluster(tmp_path / "ray", 0, dashboard=True, env=environment) as cluster:
        refused = submit(cluster, "status", "--data-dir", "lake")
        assert "error: this is a Ray job" in refused
        assert "exit code 1" in refused
        assert refused.endswith("exit 1")
        with api_server(latency=0.05) as api:
            slow = command(lake, "-i", "p", "--qps", "50", "--max-records-per-run", "2000")
            submit(cluster, *slow, wait=False, api=api)
            wait_for("answers", lambda: len(api.stats()["good"]) > 300)
            job(cluster, "stop")
            assert "was stopped" in job(cluster, "status")
            log, stats = job(cluster, "logs"), api.stats()
        assert "stopping; what is labelled is being saved" in log
        assert "Traceback" not in log
        assert len(lake_labels(lake, PERSPECTIVE)) >= len(stats["good"]) - _BLOCKS
        assert ours(cluster) == []

        run = subprocess.Popen(
            [*RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT), "--",
             *cli_command(*command(lake, "-i", "v"))],
            env=cluster.environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for("buffer", lambda: cluster.nodes[0].processes(BUFFER), run)
        workers = [cluster.add(1), cluster.add(1)]
        log, _ = run.communicate(timeout=_SECONDS)
        assert run.returncode == 0, log
        assert "succeeded" in log
        assert not cluster.nodes[0].processes(WORKER)
        assert len(workers) == 2
    # Answers of the run that was stopped: paid for, and kept for the next.
    assert list(lake.glob("queues/responses/*.db"))
    shutil.rmtree(lake / "queues" / "responses")
    assert_labelled_once(lake, uris, VALENCE)
    progress = [line for line in log.splitlines() if " posts" in line and "/s" in line]
    assert progress, log
    assert "\r" not in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), 1) as cluster:
        yield cluster


@pytest.mark.long
def test_without_the_token_nobody_gets_in(one_node: Cluster, tmp_path: Path) -> None:
    prepared(tmp_path / "lake", 10)
    stranger = {
        key: value for key, value in one_node.environment.items() if not key.startswith("RAY_")
    }
    run = start(
        replace(one_node, environment=stranger), None, *command(tmp_path / "lake", "-i", "v")
    )
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "check --ray-address, and that RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in stderr


_MAY_START_GPUS = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
from ray._private.worker import global_worker
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from actors.models.settings import ModelSettings
from actors.pool_sizes import size_pools
print(size_pools({"i": "model"}, {"i": ModelSettings()}, 1))
config = ClusterConfig()
group = config.node_group_configs.add(name="gpu", max_count=4)
group.resources.update({"CPU": 4, "GPU": 1})
global_worker.gcs_client.report_cluster_config(config.SerializeToString())
print(size_pools({"i": "model"}, {"i": ModelSettings()}, 1))
"""


@pytest.mark.long
def test_a_gpu_that_the_autoscaler_may_start_is_waited_for(one_node: Cluster) -> None:
    """What an autoscaler tells Ray of its configuration is told here by hand."""
    call = [sys.executable, "-c", _MAY_START_GPUS, one_node.address]
    environment = {**one_node.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        call, env=environment, cwd=ROOT, text=True, capture_output=True, check=True
    )
    before, after = done.stdout.splitlines()[-2:]
    assert before == "{'i': PoolSize(min_size=1, num_cpus=1.0, num_gpus=0.0)}"
    assert after == "{'i': PoolSize(min_size=1, num_cpus=0.25, num_gpus=1.0)}"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_an_interrupt_saves_what_is_labelled_and_leaves_no_actor(
    one_node: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    lake = tmp_path / "lake"
    prepared(lake, 1000)
    with api_server(latency=0.05) as api:
        run = start(one_node, api, *command(lake, "-i", "p", "--qps", "50"))
        wait_for("answers", lambda: len(api.stats()["good"]) > 300, run)
        run.send_signal(number)
        _, stderr = run.communicate(timeout=60)
        stats = api.stats()
    assert run.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert len(lake_labels(lake, PERSPECTIVE)) >= len(stats["good"]) - _BLOCKS
    assert not list(lake.glob("queues/output/**/*.parquet"))
    assert ours(one_node) == []
