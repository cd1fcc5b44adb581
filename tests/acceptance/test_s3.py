"""Lakes on S3 through the command line: every phase, two runs at once, kills, an endpoint that is down."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from datasets.database import open_database
from datasets.lake import FEEDS, Lake
from tests.clusters import Cluster, ray_cluster
from tests.s3_server import BUCKET, Endpoint
from tests.support import (
    DAY,
    ROOT,
    VALENCE,
    assert_labelled_once,
    cli_command,
    cli_environment,
    make_lake,
    run_cli,
)

DAYS = [DAY, "2024-10-02", "2024-10-03", "2024-10-04"]
_URIS = pa.schema([("uri", pa.string())])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: Endpoint) -> Iterator[Cluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), 2, env=s3_server.environment) as cluster:
        yield cluster


@pytest.fixture
def lake(s3: Endpoint, tmp_path: Path) -> Lake:
    return Lake(f"s3://{BUCKET}/{tmp_path.name}")


def upload(
    lake: Lake, folder: Path, posts_per_day: int, days: Iterable[str] = DAYS
) -> dict[str, set[str]]:
    uris = make_lake(folder, posts_per_day, days)
    for path in folder.rglob("*.parquet"):
        lake.write_bytes(str(path.relative_to(folder)), path.read_bytes())
    return uris


def command(
    lake: Lake, folder: Path, cluster: Cluster, start: str = DAYS[0], end: str = DAYS[-1]
) -> list[str]:
    config = folder / "backfill.toml"
    config.write_text("[run]\nflush_rows = 3000\nblock_rows = 500\n")
    return [
        *(
            "run",
            "-i",
            "v",
            "-r",
            "posts",
            "--start-date",
            start,
            "--end-date",
            end,
            "--json",
            "--data-dir",
            lake.root,
        ),
        *("--database-url", f"sqlite:///{folder}/backfill.db", "--config", str(config)),
        *("--ray-address", cluster.address),
    ]


def popen(arguments: list[str], cluster: Cluster) -> subprocess.Popen[str]:
    return subprocess.Popen(
        cli_command(*arguments), cwd=ROOT, env=cli_environment(cluster.environment),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def uris_of(lake: Lake, dataset: str = VALENCE) -> list[tuple[str, str]]:
    """(partition date, URI) of every label."""
    return sorted(
        (day, uri)
        for day, paths in lake.partitions(dataset).items()
        for path in paths
        for batch in lake.read(path, _URIS)
        for uri in batch["uri"].to_pylist()
    )


def assert_once(lake: Lake, database: Path, expected: Mapping[str, Iterable[str]]) -> None:
    pairs = sorted((day, uri) for day, uris in expected.items() for uri in uris)
    assert uris_of(lake) == pairs
    opened = open_database(f"sqlite:///{database}")
    assert sorted(opened.execute(f'SELECT uri FROM "{VALENCE}"')) == sorted(
        (uri,) for _, uri in pairs
    )
    opened.close()
    assert lake.modified(f"queues/output/{VALENCE}", "") == {}


def wait_for(found: Any, what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_plan_run_status_and_every_phase(lake: Lake, tmp_path: Path, cluster: Cluster) -> None:
    uris = upload(lake, tmp_path / "lake", 1000, DAYS[:2])
    run = command(lake, tmp_path, cluster, DAYS[0], DAYS[0])
    plan = run_cli("plan", *run[1 : run.index("--database-url")], env=cluster.environment)
    assert json.loads(plan.stdout)["integrations"][VALENCE]["pending"] == dict.fromkeys(
        DAYS[:1], 1000
    ), plan.stderr
    workspace = [*run[run.index("--data-dir") : run.index("--ray-address")]]
    without = run_cli(
        *run[: run.index("--database-url")],
        "--ray-address",
        cluster.address,
        env=cluster.environment,
    )
    assert (
        without.returncode,
        "set --database-url or BACKFILL_DATABASE_URL" in without.stderr,
    ) == (1, True)
    assert uris_of(lake) == []
    first = run_cli(*run, env=cluster.environment)
    assert first.returncode == 0, first.stderr
    dates = ["--start-date", DAYS[0], "--end-date", DAYS[1]]
    phases = [
        ["-r", "posts", "--add-to-queue", "-i", "v", *dates],
        ["--run-integrations", "-i", "v", "--ray-address", cluster.address],
        ["--write-cache-buffer-to-storage", "--service-source-buffer", "v", "--clear-queue"],
    ]
    for phase, (queued, staged) in zip(phases, ((1000, 0), (0, 1000), (0, 0)), strict=True):
        done = run_cli("backfill", *phase, *workspace, env=cluster.environment)
        assert done.returncode == 0, done.stderr
        status = json.loads(run_cli("status", "--json", *workspace, env=cluster.environment).stdout)
        assert status["queues"][VALENCE] == {"input": queued, "output": staged}
    assert [day["labelled"] for day in status["coverage"][VALENCE].values()] == [1000, 1000]
    assert status["behind"][VALENCE] == 0
    assert_once(lake, tmp_path / "backfill.db", {day: uris[day] for day in DAYS[:2]})
    demo = run_cli("demo", "--data-dir", lake.root, env=cluster.environment)
    assert (demo.returncode, "give it another --data-dir" in demo.stderr) == (1, True)


@pytest.mark.long
def test_two_runs_at_once_exclude_each_other_where_their_dates_overlap_and_only_there(
    lake: Lake, tmp_path: Path, cluster: Cluster
) -> None:
    uris = upload(lake, tmp_path / "lake", 8000)
    first = popen(command(lake, tmp_path, cluster, DAYS[0], DAYS[1]), cluster)
    wait_for(lambda: lake.files(f"queues/output/{VALENCE}"), "no label staged")
    overlapping = popen(command(lake, tmp_path, cluster, DAYS[1], DAYS[2]), cluster)
    disjoint = popen(command(lake, tmp_path, cluster, DAYS[2], DAYS[3]), cluster)
    for process in (first, disjoint):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert json.loads(out)["integrations"][VALENCE]["labelled"] == 16_000
    refused = overlapping.communicate(timeout=60)[1]
    assert overlapping.returncode == 1, refused
    assert f"{VALENCE} is being written by run " in refused
    assert_once(lake, tmp_path / "backfill.db", uris)


@pytest.mark.long
def test_a_run_that_was_stopped_until_another_took_over_ends_and_doubles_nothing(
    lake: Lake, tmp_path: Path, cluster: Cluster
) -> None:
    """As a machine that is suspended. Until it wakes up it is as good as dead, and holds nobody up for long."""
    uris = upload(lake, tmp_path / "lake", 10_000, DAYS[:2])
    run = command(lake, tmp_path, cluster)
    # With a database of its own: a process that is stopped in a transaction keeps an SQLite file locked.
    own = ["--database-url", f"sqlite:///{tmp_path}/stopped.db"]
    stopped = popen([*run[: run.index("--ray-address")], *own], cluster)
    wait_for(lambda: uris_of(lake), "no label flushed")
    processes = [psutil.Process(stopped.pid), *psutil.Process(stopped.pid).children(recursive=True)]
    for process in processes:
        process.suspend()
    assert stopped.poll() is None
    try:
        again = run_cli(*run, env=cluster.environment)
    finally:
        for process in reversed(processes):
            process.resume()
    assert again.returncode == 0, again.stderr
    assert 0 < json.loads(again.stdout)["integrations"][VALENCE]["eligible"] < 20_000
    err = stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 1, err
    assert "another run has taken over" in err
    rerun = run_cli(*run, env=cluster.environment)
    assert (rerun.returncode, json.loads(rerun.stdout)["integrations"][VALENCE]["eligible"]) == (
        0,
        0,
    ), rerun.stderr
    assert_once(lake, tmp_path / "backfill.db", uris)


@pytest.mark.long
def test_an_endpoint_that_answers_503_for_20_s_costs_time_only(
    s3: Endpoint, lake: Lake, tmp_path: Path, cluster: Cluster
) -> None:
    uris = upload(lake, tmp_path / "lake", 10_000)
    with popen(command(lake, tmp_path, cluster), cluster) as process:
        wait_for(lambda: uris_of(lake), "no label flushed")
        with s3.down():
            time.sleep(20)
            assert process.poll() is None
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["integrations"][VALENCE]["labelled"] == 40_000
    assert_once(lake, tmp_path / "backfill.db", uris)


def test_posts_and_label_history_from_s3_are_labelled_into_a_folder(
    lake: Lake, tmp_path: Path, cluster: Cluster
) -> None:
    """As the replaced system does with --source-data-location s3."""
    uris = upload(lake, tmp_path / "lake", 300, DAYS[:2])
    folder = tmp_path / "here"
    folder.mkdir()
    history = sorted(uris[DAY])[:100]
    labels = pa.table({"uri": history})
    lake.write_parquet(f"{VALENCE}/active/partition_date={DAY}/history.parquet", labels)
    shown = pa.table({"uri": sorted(uris[DAY])[50:200]})
    lake.write_parquet(f"{FEEDS}/cache/partition_date={DAYS[1]}/feeds.parquet", shown)
    workspace, env = (
        ["--data-dir", str(folder)],
        {**cluster.environment, "BACKFILL_S3_LAKE": lake.root},
    )
    enqueue = ["backfill", "--add-to-queue", "-i", "v", "--source-data-location", "s3"]
    feeds = run_cli(
        *enqueue,
        "-r",
        "posts_used_in_feeds",
        "--start-date",
        DAYS[1],
        "--end-date",
        DAYS[1],
        *workspace,
        env=env,
    )
    assert feeds.returncode == 0, feeds.stderr
    assert feeds.stdout.split()[-1] == "100"
    posts = run_cli(
        *enqueue, "-r", "posts", "--start-date", DAY, "--end-date", DAYS[1], *workspace, env=env
    )
    assert posts.stdout.split()[-1] == "400", posts.stderr
    run = [
        "--run-integrations",
        "--write-cache-buffer-to-storage",
        "--service-source-buffer",
        "v",
        "--clear-queue",
    ]
    done = run_cli(
        "backfill",
        "-i",
        "v",
        *run,
        *workspace,
        "--ray-address",
        cluster.address,
        env=cluster.environment,
    )
    assert done.returncode == 0, done.stderr
    assert_labelled_once(folder, {DAY: uris[DAY] - set(history), DAYS[1]: uris[DAYS[1]]})
    assert uris_of(lake) == [(DAY, uri) for uri in history]


@pytest.mark.long
def test_two_runs_of_disjoint_dates_at_once_in_a_folder(tmp_path: Path, cluster: Cluster) -> None:
    uris = make_lake(tmp_path, 3000, DAYS)
    ranges = ((DAYS[0], DAYS[1]), (DAYS[2], DAYS[3]))
    runs = [command(Lake(str(tmp_path)), tmp_path, cluster, *dates) for dates in ranges]
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda run: run_cli(*run, env=cluster.environment), runs))
    assert [run.returncode for run in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_labelled_once(tmp_path, uris)
