"""A Ray that was there before the command: its workers' working directory is a copy of the project, not the user's."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import Cluster, ray_cluster
from tests.support import DAY, ROOT, VALENCE, cli_command, lake_labels, make_lake


def run(cluster: Cluster, folder: Path, *more: str) -> dict[str, Any]:
    select = ["-i", "v", "-r", "posts", "--start-date", DAY, "--end-date", DAY, "--json"]
    done = subprocess.run(
        cli_command("run", *select, "--ray-address", cluster.address, *more),
        cwd=folder, env={**cluster.environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["integrations"][VALENCE])


def rows(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return int(connection.execute(f'SELECT count(*) FROM "{VALENCE}"').fetchone()[0])


@pytest.mark.long
def test_relative_paths_are_the_users_with_a_ray_that_was_running(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for name in ("relative", "data"):
        (folder / name).mkdir(parents=True)
        make_lake(folder / name, 100, [DAY])
    with ray_cluster(tmp_path / "ray", 1) as cluster:
        named = ["--data-dir", "./relative", "--database-url", "sqlite:///x.db"]
        first, second = run(cluster, folder, *named), run(cluster, folder, *named)
        default = run(cluster, folder)
    assert (first["labelled"], second["eligible"]) == (100, 0)
    assert len(lake_labels(folder / "relative")) == rows(folder / "x.db") == 100
    assert (
        default["labelled"]
        == len(lake_labels(folder / "data"))
        == rows(folder / "data" / "backfill.db")
        == 100
    )
