"""Runs against a real API server with a quota and faults: all rows, none paid twice, the quota kept and shared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors.remote.rate_limiter import limiter_name
from datasets.scratch import scratch_folder
from tests.api_server import KEY, Api, api_server, share
from tests.support import (
    DAY,
    ROOT,
    VALENCE,
    cli_command,
    cli_environment,
    lake_labels,
    make_lake,
    queue_files,
    run_cli,
)

PERSPECTIVE = "ml_inference_perspective_api"
SOCIOPOLITICAL = "ml_inference_sociopolitical"
NEXT_DAY = "2024-10-02"
QUIET: dict[str, Any] = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
pytestmark = pytest.mark.usefixtures("ray_here")


def address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def options(root: Path, *integrations: str) -> list[str]:
    chosen = [part for name in integrations for part in ("-i", name)]
    where = [
        "--data-dir",
        str(root),
        "--ray-address",
        address(),
        "--config",
        str(root / "backfill.toml"),
    ]
    return ["run", *chosen, "-r", "posts", "--start-date", DAY, "--end-date", DAY, "--json", *where]


def lake(root: Path, posts: int, config: str = "", first: int = 0) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    make_lake(root, posts, [DAY], first=first)
    (root / "backfill.toml").write_text(config)
    return root


def counts(stdout: str, name: str) -> dict[str, Any]:
    return dict(json.loads(stdout)["integrations"][name])


def test_faults_of_every_kind_end_as_one_row_a_post_none_paid_twice(lake_dir: Path) -> None:
    config = f"[integrations.{PERSPECTIVE}]\ntimeout = 4.0\nattempts = 12\n"
    lake(lake_dir, 400, config)
    with api_server(
        latency=0.05, quota=100, p429=0.05, p503=0.05, broken=0.02, hang=0.005, refused=0.02
    ) as api:
        result = run_cli(*options(lake_dir, "p"), "--qps", "100", env=api.environment)
        stats = api.stats()
    assert result.returncode == 0, result.stderr
    rows = lake_labels(lake_dir, PERSPECTIVE)
    rejected = [row for row in rows if not row["was_successfully_labeled"]]
    assert len(rows) == len({row["uri"] for row in rows}) == 400
    assert {row["reason"].split(":")[0] for row in rejected} == {
        "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"
    }
    assert set(stats["good"].values()) == {1}
    assert stats["faults"].get("quota", 0) == 0
    found = counts(result.stdout, PERSPECTIVE)
    assert (found["labelled"], found["rejected"], found["failed"]) == (
        400 - len(rejected),
        len(rejected),
        0,
    )
    assert found["api"]["calls"] == stats["calls"]
    assert found["api"]["repeated_calls"] == stats["calls"] - 400
    assert queue_files(lake_dir) == []
    assert {row["label_model"] for row in rows} == {"perspective at 127.0.0.1"}
    assert KEY not in result.stdout + result.stderr + json.dumps(rows)
    shown = run_cli("status", "--data-dir", str(lake_dir)).stdout
    assert f"{stats['calls']:,} calls" in shown
    assert "LANGUAGE_NOT_SUPPORTED" in shown


def test_a_wrong_key_stops_that_integration_and_the_others_finish(lake_dir: Path) -> None:
    lake(lake_dir, 200)
    with api_server(latency=0.05) as api:
        environment = {**api.environment, "PERSPECTIVE_API_KEY": "wrong-key-9000"}
        result = run_cli(*options(lake_dir, "p", "v"), env=environment)
        assert api.stats()["calls"] <= 3
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "set PERSPECTIVE_API_KEY" in errors[0]
    assert "wrong-key" not in result.stderr
    assert len(lake_labels(lake_dir, VALENCE)) == 200
    assert lake_labels(lake_dir, PERSPECTIVE) == []


@pytest.mark.long
def test_a_missing_key_stops_only_its_integration(lake_dir: Path) -> None:
    lake(lake_dir, 50)
    result = run_cli(*options(lake_dir, "p", "v"))
    assert result.returncode == 1
    assert "there is no key for the Perspective API; set PERSPECTIVE_API_KEY" in result.stderr
    assert len(lake_labels(lake_dir, VALENCE)) == 50


@pytest.mark.long
def test_what_fails_for_a_passing_reason_is_left_with_exit_code_3(lake_dir: Path) -> None:
    lake(lake_dir, 20, f"[integrations.{PERSPECTIVE}]\nattempts = 2\n")
    with api_server(p503=0.5, seed=1) as api:
        first = run_cli(*options(lake_dir, "p"), "--qps", "100", env=api.environment)
        paid = set(api.stats()["good"])
    assert first.returncode == 3, first.stderr
    assert "http_503" in first.stderr
    left = counts(first.stdout, PERSPECTIVE)["failed"]
    assert 0 < left < 20
    with api_server() as api:
        again = run_cli(*options(lake_dir, "p"), "--qps", "100", env=api.environment)
        asked = api.stats()["asked"]
    assert again.returncode == 0, again.stderr
    assert counts(again.stdout, PERSPECTIVE)["eligible"] == left == len(asked)
    assert not paid & set(asked)
    assert len(lake_labels(lake_dir, PERSPECTIVE)) == 20
    assert queue_files(lake_dir) == []


@pytest.mark.long
def test_a_pause_of_a_day_ends_this_run_and_the_next_one_and_they_say_until_when(
    lake_dir: Path,
) -> None:
    lake(lake_dir, 300)
    with api_server(p429=1.0, retry_after="86400") as api:
        runs = [
            run_cli(*options(lake_dir, "p"), "--qps", "100", env=api.environment) for _ in range(2)
        ]
        assert api.stats()["calls"] == 1
        # Another test's server may get this port within the day.
        os.unlink(os.path.join(scratch_folder("limits"), limiter_name(api.base, KEY)))
    for run in runs:
        assert run.returncode == 3, run.stderr
        until = r"300 posts are left for the next run \(asked to wait until \d{4}-\d\d-\d\d \d\d:\d\d UTC 300\)"
        assert re.search(until, run.stderr), run.stderr
    assert lake_labels(lake_dir, PERSPECTIVE) == []


def test_a_killed_run_asks_again_only_what_was_on_its_way(lake_dir: Path) -> None:
    lake(lake_dir, 400)
    command = [*options(lake_dir, "p"), "--qps", "100"]
    with api_server(latency=0.2) as api:
        for fraction in (0.25, 0.6):
            env = cli_environment(api.environment)
            process = subprocess.Popen(cli_command(*command), cwd=ROOT, env=env, **QUIET)
            wait_for_answers(api, int(400 * fraction), process)
            process.kill()
            process.wait()
        assert run_cli(*command, env=api.environment).returncode == 0
        stats = api.stats()
    assert (
        len({row["uri"] for row in lake_labels(lake_dir, PERSPECTIVE)})
        == len(lake_labels(lake_dir, PERSPECTIVE))
        == 400
    )
    repeated = sum(stats["asked"].values()) - 400
    assert repeated <= 2 * stats["most_in_flight"], f"{repeated} calls were repeated after 2 kills"
    assert queue_files(lake_dir) == []


def test_runs_over_other_dates_leave_the_answers_of_a_killed_run_alone(lake_dir: Path) -> None:
    """One ends while it is at work, one has nothing to do after it was killed; then rejected posts are asked again."""
    make_lake(lake_dir, 300, [DAY])
    make_lake(lake_dir, 20, [NEXT_DAY], first=300)
    (lake_dir / "backfill.toml").write_text("")
    command = [*options(lake_dir, "p"), "--qps", "60"]
    other = [NEXT_DAY if part == DAY else part for part in command]
    with api_server(latency=0.1, refused=0.1) as api:
        process = subprocess.Popen(
            cli_command(*command), cwd=ROOT, env=cli_environment(api.environment), **QUIET
        )
        wait_for_answers(api, 40, process)
        beside = run_cli(*other, env=api.environment)
        assert beside.returncode == 0, beside.stderr
        wait_for_answers(api, 200, process)
        process.kill()
        process.wait()
        assert run_cli(*other, env=api.environment).returncode == 0
        before = api.stats()
        done = run_cli(*command, "--retry-rejected", env=api.environment)
        stats = api.stats()
    assert done.returncode == 0, done.stderr
    assert (
        len(lake_labels(lake_dir, PERSPECTIVE))
        == len({row["uri"] for row in lake_labels(lake_dir, PERSPECTIVE)})
        == 320
    )
    refused = {text for text in stats["asked"] if share("refused" + text) < 0.1}
    once_more = {
        text for text, times in stats["asked"].items() if times > before["asked"].get(text, 0) > 0
    }
    there = {
        row["text"] for row in lake_labels(lake_dir, PERSPECTIVE) if row["partition_date"] == DAY
    }
    assert len(once_more - refused) <= before["most_in_flight"], "what was on its way at the kill"
    assert once_more >= refused & there & before["asked"].keys(), (
        "what was rejected before the kill"
    )
    assert max(stats["asked"].values()) == 2


def wait_for_answers(api: Api, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(api.stats()["good"]) < number:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.long
def test_two_runs_at_once_share_the_quota(tmp_path: Path) -> None:
    roots = [lake(tmp_path / name, 250, first=first) for name, first in (("one", 0), ("two", 250))]
    with api_server(latency=0.1, quota=50) as api, ThreadPoolExecutor() as threads:
        runs = [
            threads.submit(run_cli, *options(root, "p"), "--qps", "50", env=api.environment)
            for root in roots
        ]
        results = [run.result() for run in runs]
        stats = api.stats()
    assert [result.returncode for result in results] == [0, 0], (
        results[0].stderr + results[1].stderr
    )
    assert stats["most_in_a_second"] <= 52
    assert stats["faults"].get("quota", 0) <= 1
    assert set(stats["asked"].values()) == {1} or stats["faults"].get("quota")


@pytest.mark.long
def test_integrations_of_one_run_go_side_by_side(lake_dir: Path) -> None:
    """Perspective at 15 posts a second takes 20 s for 300, the LLM 10 s, valence less than one."""
    config = f'[integrations.{SOCIOPOLITICAL}]\nbackend = "llm"\nmodel = "test-model"\nposts_per_prompt = 10\n'
    lake(lake_dir, 300, config + "requests_per_minute = 180.0\nprice_in = 1.0\nprice_out = 2.0\n")
    with api_server(latency=0.3) as api:
        result = run_cli(*options(lake_dir, "p", "s", "v"), "--qps", "15", env=api.environment)
    assert result.returncode == 0, result.stderr
    times = {
        name: sorted(row["label_timestamp"] for row in lake_labels(lake_dir, name))
        for name in (PERSPECTIVE, SOCIOPOLITICAL, VALENCE)
    }
    # The slowest has begun before the second ends, and it ends last.
    assert times[PERSPECTIVE][0] < times[SOCIOPOLITICAL][-1] < times[PERSPECTIVE][-1]
    assert times[VALENCE][-1] < times[PERSPECTIVE][-1]
    llm = counts(result.stdout, SOCIOPOLITICAL)["api"]
    # Ten posts a call; fewer where others were not read yet.
    assert 30 <= llm["calls"] <= 34
    assert (llm["tokens_in"], llm["tokens_out"]) == (100 * llm["calls"] + 20 * 300, 10 * 300)
    assert llm["price"] == pytest.approx(
        (llm["tokens_in"] * 1 + llm["tokens_out"] * 2) / 1e6, abs=1e-4
    )
    assert len(lake_labels(lake_dir, SOCIOPOLITICAL)) == 300
