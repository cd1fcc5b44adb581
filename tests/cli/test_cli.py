"""The command line as a user calls it: what it refuses, what it says, what it prints for programs."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest

from cli.__main__ import COMMANDS, main, make_cli
from tests.support import (
    DAY,
    ROOT,
    VALENCE,
    lake_labels,
    make_lake,
    make_uri,
    post,
    queue_files,
    run_cli,
    write_partition,
    write_posts,
)

RANGE = ["--start-date", DAY, "--end-date", "2024-10-02"]
SELECT = ["-i", "v", "-r", "posts", *RANGE]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def all_commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += all_commands(command, (*path, name))
    return found


def test_help_is_instant_because_it_imports_nothing_heavy() -> None:
    heavy = ("ray", "torch", "transformers", "pyarrow", "pandas", "numpy", "httpx", "psycopg")
    code = (
        "import sys; from cli.__main__ import main; main(['--help']);"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stderr == "[]\n"
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize(
    ("path", "command"),
    all_commands(make_cli()),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_and_option_has_help(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts} has no help"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "-i", "x", "-r", "posts", *RANGE], "there is no integration 'x'"),
        (["run", "-i", "v", "-r", "likes", *RANGE], "'likes' is not one of"),
        (["run", "-r", "posts", *RANGE], "--integrations is required"),
        (["run", "-i", "v", *RANGE], "--record-type is required"),
        (["run", "-i", "v", "-r", "posts"], "--start-date and --end-date are required"),
        (
            ["run", "-i", "v", "-r", "posts", "--start-date", "2024-02-30", "--end-date", DAY],
            "'2024-02-30' is not a date",
        ),
        (
            ["run", "-i", "v", "-r", "posts", "--start-date", "20241001", "--end-date", DAY],
            "'20241001' is not a date",
        ),
        (
            ["run", "-i", "v", "-r", "posts", "--start-date", "2024-10-02", "--end-date", DAY],
            "is after --end-date",
        ),
        (["run", *SELECT, "--max-records-per-run", "-1"], "-1 is not in the range"),
        (["run", *SELECT, "--sample-proportion", "1.5"], "1.5 is not in the range"),
        (["run", *SELECT, "--no-such-flag"], "--no-such-flag"),
        (["fly"], "No such command 'fly'"),
        (["backfill"], "nothing to do"),
        (
            ["backfill", "--add-to-queue", "-i", "v"],
            "--record-type and --start-date and --end-date are required",
        ),
        (["backfill", "--run-integrations"], "--integrations is required"),
        (["backfill", "--write-cache-buffer-to-storage"], "--service-source-buffer is required"),
        (
            ["backfill", "--clear-queue", "--add-to-queue", *SELECT],
            "--clear-queue needs --write-cache-buffer-to-storage",
        ),
        (
            [
                "backfill",
                "--write-cache-buffer-to-storage",
                "--service-source-buffer",
                "v",
                "--bypass-write",
            ],
            "--bypass-write needs",
        ),
        (
            ["backfill", "--add-to-queue", *SELECT, "--sample-records"],
            "--sample-proportion is required",
        ),
        (
            ["backfill", "--add-to-queue", *SELECT, "--sample-proportion", "0.5"],
            "--sample-proportion needs --sample-records",
        ),
        (
            ["backfill", "--run-integrations", "-i", "v", "-p", "days"],
            "--backfill-period needs --backfill-duration",
        ),
        (
            ["backfill", "--add-to-queue", *SELECT, "--source-data-location", "s3"],
            "BACKFILL_S3_LAKE",
        ),
        (["backfill", "--clear-input-queues"], "--integrations is required"),
        (["status", "--start-date", "2024-10-02", "--end-date", DAY], "is after --end-date"),
    ],
)
def test_wrong_usage_is_one_sentence_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, arguments: list[str], sentence: str
) -> None:
    make_lake(lake_dir, 3)
    before = sorted(lake_dir.rglob("*"))
    code, out, err = call(capsys, *arguments, "--data-dir", str(lake_dir))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert sorted(lake_dir.rglob("*")) == before


def test_errors_of_the_data_are_one_sentence_that_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    empty.mkdir()
    write_posts(bad, DAY, [post(1)]).write_bytes(b"")
    for root, sentence in (
        (tmp_path / "nowhere", "there is no data folder"),
        (empty, "preprocessed_posts does not exist"),
        (bad, "part-0.parquet: not a readable Parquet file"),
    ):
        for verb in ("plan", "run"):
            code, out, err = call(capsys, verb, *SELECT, "--data-dir", str(root))
            assert (code, out) == (1, ""), err
            assert err.startswith("error: ") or "\nerror: " in err
            assert sentence in err.splitlines()[-1]
            assert "Traceback" not in err


def test_a_database_that_refuses_is_named_and_nothing_is_labelled(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    make_lake(lake_dir, 3)
    (lake_dir / "backfill.db").write_bytes(b"not a database" * 99)
    code, _, err = call(capsys, "run", *SELECT, "--data-dir", str(lake_dir))
    assert code == 1
    assert "backfill.db cannot be used" in err
    assert lake_labels(lake_dir) == queue_files(lake_dir) == []


def test_a_locked_database_is_named(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.database.LOCK_SECONDS", 0.2)
    make_lake(lake_dir, 3)
    with closing(sqlite3.connect(lake_dir / "backfill.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        code, _, err = call(capsys, "run", *SELECT, "--data-dir", str(lake_dir))
    assert code == 1
    assert "backfill.db is locked by another process" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    make_lake(lake_dir, 3)
    lake_dir.chmod(0o500)
    code, _, err = call(capsys, "run", *SELECT, "--data-dir", str(lake_dir))
    lake_dir.chmod(0o700)
    assert code == 1
    assert "permission denied" in err


def test_plan_counts_by_date_for_people_and_programs(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    make_lake(lake_dir, 3)
    write_partition(
        lake_dir, VALENCE, DAY, [{"uri": make_uri(0), "was_successfully_labeled": True}]
    )
    before = sorted(lake_dir.rglob("*"))
    code, out, err = call(capsys, "plan", *SELECT, "--json", "--data-dir", str(lake_dir))
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "integrations": {VALENCE: {"pending": {DAY: 2, "2024-10-02": 3}, "total": 5}}
    }
    code, out, _ = call(capsys, "--data-dir", str(lake_dir), "plan", *SELECT)
    assert code == 0
    assert out.split("\n")[-2].split() == ["total", "5"]
    assert sorted(lake_dir.rglob("*")) == before


def test_status_prints_tables_that_fit_a_terminal(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    make_lake(lake_dir, 3)
    rows = [
        {
            "uri": make_uri(0),
            "was_successfully_labeled": False,
            "reason": "a reason that goes on " * 9,
        }
    ]
    write_partition(lake_dir, VALENCE, DAY, rows)
    code, out, _ = call(capsys, "status", "--data-dir", str(lake_dir))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = call(capsys, "status", "--json", "--data-dir", str(lake_dir))
    found = json.loads(out)
    assert found["coverage"][VALENCE][DAY] == {"posts": 3, "labelled": 0, "rejected": 1}
    assert found["queues"][VALENCE] == {"input": 0, "output": 0}
    assert found["runs"] == []


def test_skipped_files_are_reported(capsys: pytest.CaptureFixture[str], lake_dir: Path) -> None:
    make_lake(lake_dir, 3)
    write_posts(lake_dir, DAY, [post(1)], name="bad").write_bytes(b"PAR1")
    code, out, err = call(
        capsys, "plan", *SELECT, "--json", "--skip-bad-files", "--data-dir", str(lake_dir)
    )
    assert code == 0
    assert json.loads(out)["integrations"][VALENCE]["total"] == 6
    assert "skipped " in err
    assert "bad.parquet" in err


def test_clearing_asks_and_names_exactly_the_queues_that_it_clears(lake_dir: Path) -> None:
    make_lake(lake_dir, 3)
    where = ["--data-dir", str(lake_dir)]
    assert run_cli("backfill", "--add-to-queue", *SELECT, *where).returncode == 0
    clear = ["backfill", "--clear-input-queues", "-i", "v", *where]
    refused = run_cli(*clear, input="n\n")
    assert refused.returncode == 2
    assert f"Delete everything in queues/input/{VALENCE} of {lake_dir}?" in refused.stderr
    assert "output" not in refused.stderr
    assert len(queue_files(lake_dir)) == 2
    done = run_cli(*clear, input="y\n")
    assert (done.returncode, done.stdout) == (0, f"cleared queues/input/{VALENCE}: 2 segments\n")
    assert queue_files(lake_dir) == []
    both = run_cli(
        "backfill", "--clear-input-queues", "--clear-output-queues", "-i", "v", "--yes", *where
    )
    assert both.stdout.splitlines() == [
        f"cleared queues/{kind}/{VALENCE}: 0 segments" for kind in ("input", "output")
    ]


def test_a_run_prints_one_json_object_and_says_nothing_of_ray(lake_dir: Path) -> None:
    """In a process of its own that starts its own Ray, as on a laptop."""
    make_lake(lake_dir, 30)
    result = run_cli("run", *SELECT, "--json", "--data-dir", str(lake_dir))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    counts = found["integrations"][VALENCE]
    assert {key: counts[key] for key in ("eligible", "labelled", "rejected", "failed")} == {
        "eligible": 60, "labelled": 60, "rejected": 0, "failed": 0,
    }  # fmt: skip
    assert counts["seconds"] > 0
    assert found["run_id"] in result.stderr
    assert "60 of 60 posts" in result.stderr
    assert "ray" not in result.stderr.lower().replace("starting ray", "")


def test_a_hidden_datasets_package_is_one_plain_sentence(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['cli', 'plan'];"
        "runpy.run_module('cli', run_name='__main__', alter_sys=True)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: the package `datasets` in ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("days", ["4", "999999999", "1" + "0" * 30])
def test_a_look_back_may_reach_to_before_the_first_date_that_there_is(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, days: str
) -> None:
    write_posts(lake_dir, "0001-01-01", [post(1), post(2)])
    write_partition(lake_dir, "fetch_posts_used_in_feeds", "0001-01-02", [{"uri": make_uri(1)}])
    dates = ["-r", "posts_used_in_feeds", "--start-date", "0001-01-02", "--end-date", "9999-12-31"]
    code, out, err = call(
        capsys,
        "plan",
        "-i",
        "v",
        *dates,
        "--feed-lookback-days",
        days,
        "--json",
        "--data-dir",
        str(lake_dir),
    )
    assert code == 0, err
    assert json.loads(out)["integrations"][VALENCE]["pending"] == {"0001-01-01": 1}


@pytest.mark.parametrize("period", ["days", "hours"])
@pytest.mark.parametrize("duration", ["1", "999999999", "1" + "0" * 30])
def test_a_duration_may_be_longer_than_time_is(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, period: str, duration: str
) -> None:
    make_lake(lake_dir, 3)
    code, _, err = call(
        capsys,
        "backfill",
        "--run-integrations",
        "-i",
        "v",
        "-p",
        period,
        "-d",
        duration,
        "--data-dir",
        str(lake_dir),
    )
    assert code == 0, err


def test_a_limit_may_be_any_number(capsys: pytest.CaptureFixture[str], lake_dir: Path) -> None:
    make_lake(lake_dir, 3)
    limit = ["--max-records-per-run", "1" + "0" * 30]
    code, out, err = call(capsys, "plan", *SELECT, *limit, "--json", "--data-dir", str(lake_dir))
    assert code == 0, err
    assert json.loads(out)["integrations"][VALENCE]["total"] == 6
