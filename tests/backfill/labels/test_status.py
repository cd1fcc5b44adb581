"""`status` and the write phase over lakes that lack things or hold bad files. None of this needs Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.integrations import resolve
from backfill.labels.status import rebuild_database
from backfill.workspace import Workspace, open_workspace
from cli.__main__ import main
from datasets import queues
from datasets.database import open_database
from datasets.labels.writing import stage
from datasets.lake import Lake
from datasets.schemas import PARTITION_DATE, staged_schema
from tests.support import (
    DAY,
    ROOT,
    VALENCE,
    database_labels,
    make_uri,
    post,
    queue_files,
    write_partition,
    write_posts,
)

IME = "ml_inference_ime"
LATER = "2024-10-02"


def workspace_of(root: Path) -> Workspace:
    return open_workspace(str(root), None, None, None, debug=False)


def call(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments, "--data-dir", str(root)])
    out, err = capsys.readouterr()
    return code, out, err


def label(
    root: Path, numbers: range, name: str = "history", day: str = DAY, integration: str = VALENCE
) -> Path:
    rows = [{**post(n), "was_successfully_labeled": True} for n in numbers]
    return write_partition(root, integration, day, rows, name)


def stage_labels(root: Path, numbers: range) -> None:
    labels = resolve(VALENCE).labels
    rows = [{**post(n), "was_successfully_labeled": True, PARTITION_DATE: DAY} for n in numbers]
    table = pa.Table.from_pylist(rows, schema=staged_schema(labels.schema))
    stage(Lake(str(root)), labels, "20260101T000000-abcdef-0123", table)


def only_labels(root: Path) -> None:
    label(root, range(3))


def labels_of_different_dates(root: Path) -> None:
    label(root, range(3))
    label(root, range(2), day=LATER, integration=IME)


def only_posts(root: Path) -> None:
    write_posts(root, DAY, [post(n) for n in range(3)])


def only_queues(root: Path) -> None:
    posts = pa.Table.from_pylist([{**post(1), PARTITION_DATE: DAY}])
    queues.enqueue(Lake(str(root)), VALENCE, posts, datetime(2026, 1, 1, tzinfo=UTC))
    stage_labels(root, range(2))


def posts_of_another_date_than_the_labels(root: Path) -> None:
    write_posts(root, LATER, [post(n) for n in range(3)])
    label(root, range(3))


def copied(root: Path) -> None:
    other = root.parent / "other"
    write_posts(other, DAY, [post(n) for n in range(3)])
    label(other, range(3))
    assert main(["copy", "--from", str(other), "--to", str(root), "-i", "v", "--json"]) == 0


def nothing(root: Path) -> None: ...


@pytest.mark.parametrize(
    ("make", "covered"),
    [
        (only_labels, {VALENCE: {DAY: (0, 3)}}),
        (labels_of_different_dates, {VALENCE: {DAY: (0, 3)}, IME: {LATER: (0, 2)}}),
        (only_posts, {VALENCE: {DAY: (3, 0)}, IME: {DAY: (3, 0)}}),
        (only_queues, {}),
        (
            posts_of_another_date_than_the_labels,
            {VALENCE: {DAY: (0, 3), LATER: (3, 0)}, IME: {LATER: (3, 0)}},
        ),
        (copied, {VALENCE: {DAY: (0, 3)}}),
        (nothing, {}),
    ],
)
def test_status_of_a_lake_that_lacks_things(
    capsys: pytest.CaptureFixture[str],
    lake_dir: Path,
    make: Callable[[Path], None],
    covered: dict[str, dict[str, tuple[int, int]]],
) -> None:
    make(lake_dir)
    capsys.readouterr()
    code, out, err = call(capsys, lake_dir, "status")
    assert (code, err) == (0, "")
    for day in {day for dates in covered.values() for day in dates}:
        assert out.count(f"\n{day} ") == 1
    code, out, err = call(capsys, lake_dir, "status", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["coverage"]
    assert {
        name: {day: (count["posts"], count["labelled"]) for day, count in found[name].items()}
        for name in (VALENCE, IME)
    } == {name: covered.get(name, {}) for name in (VALENCE, IME)}
    assert call(capsys, lake_dir, "status", "--rebuild-database")[0] == 0


def test_a_rebuild_names_a_bad_file_and_keeps_the_rows_or_goes_on_without_it(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    label(lake_dir, range(3), "a")
    bad = label(lake_dir, range(3, 6), "b")
    assert call(capsys, lake_dir, "status", "--rebuild-database")[0] == 0
    before = sorted(database_labels(lake_dir))
    bad.write_bytes(bad.read_bytes()[:100])
    code, out, err = call(capsys, lake_dir, "status", "--rebuild-database")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: {bad}: not a readable Parquet file")
    assert sorted(database_labels(lake_dir)) == before
    assert len(before) == 6
    code, out, err = call(capsys, lake_dir, "status", "--rebuild-database", "--skip-bad-files")
    assert code == 0
    assert f"skipped {bad}: not a readable Parquet file" in err
    assert {uri for uri, *_ in database_labels(lake_dir)} == {make_uri(n) for n in range(3)}


_REBUILD_AND_DIE = """
import os, signal, sys
from backfill.workspace import open_workspace
from backfill.labels.status import rebuild_database

def die(text):
    if "3 rows" in text:
        os.kill(os.getpid(), signal.SIGKILL)

rebuild_database(open_workspace(sys.argv[1], None, None, None, debug=False), die)
"""


def test_a_rebuild_that_is_killed_leaves_the_rows_that_were_there(lake_dir: Path) -> None:
    """By SIGKILL, when it has loaded the first of two files."""
    label(lake_dir, range(3), "a")
    label(lake_dir, range(3, 6), "b")
    assert rebuild_database(workspace_of(lake_dir), lambda _: None)[VALENCE] == 6
    killed = subprocess.run(
        [sys.executable, "-c", _REBUILD_AND_DIE, str(lake_dir)], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert {uri for uri, *_ in database_labels(lake_dir)} == {make_uri(n) for n in range(6)}
    assert rebuild_database(workspace_of(lake_dir), lambda _: None)[VALENCE] == 6


@pytest.mark.parametrize("name", ["history", "labels-20260101T000000-abcdef-1-1"])
def test_the_write_phase_goes_on_without_a_bad_file_where_it_is_told_to(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, name: str
) -> None:
    """The group's file or one of ours: the buffer fills the database too."""
    bad = label(lake_dir, range(3), name, LATER)
    bad.write_bytes(b"PAR1")
    stage_labels(lake_dir, range(5, 9))
    write = ["backfill", "--write-cache-buffer-to-storage", "--service-source-buffer", "v"]
    code, out, err = call(capsys, lake_dir, *write)
    assert (code, out) == (1, "")
    assert f"error: {bad}: " in err
    assert "--skip-bad-files" in err
    code, out, err = call(capsys, lake_dir, *write, "--skip-bad-files")
    assert code == 0
    assert err.startswith(f"skipped {bad}: not a readable Parquet file")
    assert err.count("\n") == 1
    assert {uri for uri, *_ in database_labels(lake_dir)} == {make_uri(n) for n in range(5, 9)}


def test_rows_without_a_uri_are_left_out_and_counted(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    rows = [{"uri": uri, "was_successfully_labeled": True} for uri in ("a", None, "a", None)]
    path = write_partition(lake_dir, VALENCE, DAY, rows)
    for arguments in (
        ["backfill", "--write-cache-buffer-to-storage", "--service-source-buffer", "v"],
        ["status", "--rebuild-database"],
    ):
        code, _, err = call(capsys, lake_dir, *arguments)
        assert code == 0
        assert "2 rows of 1 file have no uri" in err
        assert str(path) in err
        assert [uri for uri, *_ in database_labels(lake_dir)] == ["a"]


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"notes"])
def test_status_names_a_stray_file_in_a_queue_or_goes_on_without_it(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, kind: str, content: bytes
) -> None:
    only_queues(lake_dir)
    folder = lake_dir / "queues" / kind / VALENCE
    stray = folder / "stray.parquet"
    stray.write_bytes(content)
    (folder / "notes.txt").write_bytes(content)
    code, out, err = call(capsys, lake_dir, "status")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {stray}: not a readable Parquet file")
    code, out, err = call(capsys, lake_dir, "status", "--skip-bad-files", "--json")
    assert code == 0
    assert json.loads(out)["queues"][VALENCE] == {"input": 1, "output": 2}
    assert err.startswith(f"skipped {stray}: ")


def test_status_tells_a_bad_label_file_from_a_bad_database(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    label(lake_dir, range(3), "a")
    assert call(capsys, lake_dir, "status", "--rebuild-database")[0] == 0
    label(lake_dir, range(3, 5), "b")
    bad = label(lake_dir, range(5, 9), "c", LATER)
    bad.write_bytes(b"PAR1")
    code, out, err = call(capsys, lake_dir, "status", "--end-date", DAY)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {bad}: not a readable Parquet file")
    code, out, err = call(capsys, lake_dir, "status", "--end-date", DAY, "--skip-bad-files")
    assert code == 0
    assert "could not be read" not in out
    assert ["valence_classifier", "5", "0", "0", "0", "2"] in [
        line.split() for line in out.splitlines()
    ]
    assert err.startswith(f"skipped {bad}: ")


@pytest.mark.parametrize("content", [b"PAR1", None])
def test_a_bad_segment_of_the_input_queue_is_named_with_what_to_do(
    capsys: pytest.CaptureFixture[str], lake_dir: Path, content: bytes | None
) -> None:
    only_queues(lake_dir)
    [segment] = (lake_dir / "queues" / "input" / VALENCE).iterdir()
    if content is None:
        pq.write_table(pa.table({"uri": ["a"]}), segment)
    else:
        segment.write_bytes(content)
    for flags in ([], ["--skip-bad-files"]):
        code, _, err = call(capsys, lake_dir, "backfill", "--run-integrations", "-i", "v", *flags)
        assert code == 1
        assert f"error: {segment} holds no queued posts (" in err
        assert "move it out of the queue" in err
        assert "--skip-bad-files" not in err
        assert segment.exists()


def test_a_run_fills_the_database_without_a_label_file_of_ours_that_is_bad(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    """Of another date than it is about, so that only the database needs it. All is labelled: no Ray is started."""
    only_posts(lake_dir)
    label(lake_dir, range(3), "labels-1")
    bad = label(lake_dir, range(3, 6), "labels-2", LATER)
    bad.write_bytes(b"PAR1")
    run = ["run", "-i", "v", "-r", "posts", "--start-date", DAY, "--end-date", DAY]
    code, _, err = call(capsys, lake_dir, *run)
    assert code == 1
    assert f"{bad}: not a readable Parquet file" in err
    code, _, err = call(capsys, lake_dir, *run, "--skip-bad-files")
    assert code == 0
    assert err.count(f"skipped {bad}: ") == 1
    assert {uri for uri, *_ in database_labels(lake_dir)} == {make_uri(n) for n in range(3)}


def cut_off_retry(root: Path, *, done: bool) -> None:
    """A flush that was killed right before or after its commit: post 0 was rejected, and is labelled now."""
    labels = resolve(VALENCE).labels
    stage_labels(root, range(1))
    old = write_partition(
        root, VALENCE, DAY, [{**post(0), "was_successfully_labeled": False}], "old", "active"
    )
    label(root, range(1), "labels-20260101T000000-abcdef-1-1")
    intent = {
        "staged": ["20260101T000000-abcdef-0123"], "file": "", "keep": False, "replace": True,
        **({"done": True, "replaced": [str(old.relative_to(root))]} if done else {}),
    }  # fmt: skip
    Lake(str(root)).write_bytes(
        f"{labels.queue}/flush-20260101T000000-abcdef-1-1.json", json.dumps(intent).encode()
    )


@pytest.mark.parametrize("done", [False, True])
def test_a_rebuild_finishes_a_flush_that_was_cut_off(lake_dir: Path, *, done: bool) -> None:
    """Of the two rows that the post has until then, the database would keep the one that the lake is about to lose."""
    cut_off_retry(lake_dir, done=done)
    workspace = workspace_of(lake_dir)
    assert rebuild_database(workspace, lambda _: None)[VALENCE] == 1
    with closing(open_database(workspace.database_url)) as database:
        outcomes = database.execute(f'SELECT was_successfully_labeled FROM "{VALENCE}"')
    assert [bool(outcome) for (outcome,) in outcomes] == [True]


def test_a_run_takes_up_what_a_killed_one_has_left_without_a_bad_label_file(
    capsys: pytest.CaptureFixture[str], lake_dir: Path
) -> None:
    write_posts(lake_dir, DAY, [post(0)])
    cut_off_retry(lake_dir, done=False)
    bad = label(lake_dir, range(5, 7), "bad")
    bad.write_bytes(b"PAR1")
    run = ["run", "-i", "v", "-r", "posts", "--start-date", DAY, "--end-date", DAY]
    code, _, err = call(capsys, lake_dir, *run)
    assert (code, f"{bad}: not a readable Parquet file" in err) == (1, True)
    code, _, err = call(capsys, lake_dir, *run, "--skip-bad-files")
    assert (code, err.count(f"skipped {bad}: ")) == (0, 1)
    assert queue_files(lake_dir) == []
