from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from actors.batch_counts import BatchCounts
from actors.buffer import LabelBuffer
from actors.contract import Outcome
from actors.flush_policy import FlushPolicy
from actors.integrations import resolve
from actors.pool import label_rows
from datasets.errors import ConfigError, RejectedPost, RetryableError
from datasets.labels import writing
from datasets.lake import Lake
from datasets.schemas import POST_SCHEMA
from tests.support import (
    DAY,
    VALENCE,
    assert_labelled_once,
    lake_labels,
    make_uri,
    post,
    queue_files,
)

LABELS = resolve(VALENCE).labels


class Model:
    model, revision = "m", "1"

    def classify(self, texts: object) -> list[Outcome]:
        raise AssertionError("not used")


def batch(numbers: range, outcome: Outcome | None = None, day: str = DAY) -> pa.Table:
    posts = pa.Table.from_pylist(
        [{**post(n), "partition_date": day} for n in numbers], schema=POST_SCHEMA
    )
    outcomes: list[Outcome] = [outcome or {"compound": 0.5, "valence_label": "positive"}] * len(
        posts
    )
    return label_rows(resolve(VALENCE), Model(), "run-1", posts, outcomes)


def buffer(
    root: Path,
    policy: FlushPolicy | None = None,
    run_id: str = "run-1",
    url: str | None = None,
) -> LabelBuffer:
    return LabelBuffer(
        Lake(str(root)),
        VALENCE,
        run_id,
        url or f"sqlite:///{root}/backfill.db",
        policy or FlushPolicy(),
    )


def uris(numbers: range) -> dict[str, set[str]]:
    return {DAY: {make_uri(n) for n in numbers}}


def test_an_acknowledged_batch_is_on_disk(lake_dir: Path) -> None:
    opened = buffer(lake_dir)
    receipt = opened.stage(batch(range(5)))
    assert (receipt.labelled, receipt.rejected.total(), receipt.failed.total()) == (
        5,
        0,
        0,
    )
    assert len(writing.staged(Lake(str(lake_dir)), LABELS)) == 1
    assert opened.close() is None
    assert_labelled_once(lake_dir, uris(range(5)))


def test_the_same_batch_twice_is_one(lake_dir: Path) -> None:
    opened = buffer(lake_dir, FlushPolicy(rows=5))
    opened.stage(batch(range(5)))
    wait_for_flush(lake_dir)
    opened.stage(batch(range(5)))
    opened.close()
    assert_labelled_once(lake_dir, uris(range(5)))


def test_a_batch_made_again_with_fewer_failures_makes_no_second_row_and_counts_what_is_stored(
    lake_dir: Path,
) -> None:
    first = pa.concat_tables(
        [batch(range(3)), batch(range(3, 5), RetryableError("busy", kind="http_503"))]
    )
    opened = buffer(lake_dir)
    stored = opened.stage(first)
    assert (stored.labelled, stored.failed) == (3, {"http_503": 2})
    assert opened.stage(batch(range(5))) == stored
    opened.close()
    assert_labelled_once(lake_dir, uris(range(3)))


@pytest.mark.parametrize("flushed", [True, False])
def test_a_batch_made_again_after_a_restart_counts_what_is_stored(
    lake_dir: Path, *, flushed: bool
) -> None:
    first = buffer(lake_dir, FlushPolicy(never=not flushed))
    first.stage(
        pa.concat_tables(
            [
                batch(range(3)),
                batch(range(3, 5), RetryableError("busy", kind="http_503")),
            ]
        )
    )
    first.close()
    again = buffer(lake_dir)
    made_anew = pa.concat_tables(
        [batch(range(4)), batch(range(4, 5), RetryableError("busy", kind="timeout"))]
    )
    assert again.stage(made_anew) == BatchCounts(
        3, Counter(), Counter({"answered_late": 1, "timeout": 1})
    )
    again.close()
    assert_labelled_once(lake_dir, uris(range(3)))


def test_what_is_staged_is_flushed_after_a_first_opening_that_failed(lake_dir: Path) -> None:
    damaged = lake_dir / LABELS.queue / "flush-r0-1-1.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    opened = buffer(lake_dir)
    for _ in range(2):
        with pytest.raises(ConfigError, match="is not a record of a flush"):
            opened.stage(batch(range(5)))
    damaged.unlink()
    assert opened.stage(batch(range(5))).labelled == 5
    assert opened.close() is None
    assert_labelled_once(lake_dir, uris(range(5)))


def wait_for_flush(root: Path) -> None:
    deadline = time.monotonic() + 20
    while queue_files(root):
        assert time.monotonic() < deadline, "no flush"
        time.sleep(0.05)


def test_it_flushes_by_size_while_it_goes_on(lake_dir: Path) -> None:
    opened = buffer(lake_dir, FlushPolicy(rows=10))
    for start in range(0, 30, 5):
        opened.stage(batch(range(start, start + 5)))
    deadline = time.monotonic() + 20
    while len(lake_labels(lake_dir)) < 25:  # up to nine rows wait for a tenth
        assert time.monotonic() < deadline, "no flush"
        time.sleep(0.05)
    opened.close()
    assert_labelled_once(lake_dir, uris(range(30)))


def test_it_flushes_by_age(lake_dir: Path) -> None:
    opened = buffer(lake_dir, FlushPolicy(seconds=0.2))
    opened.stage(batch(range(5)))
    wait_for_flush(lake_dir)
    opened.close()


class SlowLake(Lake):
    """A disk that writes label files slowly."""

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        if path.startswith(VALENCE):
            time.sleep(0.1)
        super().write_bytes(path, data)


def test_a_slow_disk_delays_staging(lake_dir: Path) -> None:
    url = f"sqlite:///{lake_dir}/backfill.db"
    opened = LabelBuffer(SlowLake(str(lake_dir)), VALENCE, "run-1", url, FlushPolicy(rows=10))
    most: list[int] = []

    def stage(start: int) -> None:
        opened.stage(batch(range(start, start + 5)))
        most.append(sum(dict(opened._rows).values()))

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(stage, range(0, 400, 5)))
    opened.close()
    assert max(most) <= 5 * 10 + 4 * 5, "five flushes, and a batch of each thread"
    assert max(most) > 20, "the disk was not slow"
    assert_labelled_once(lake_dir, uris(range(400)))


def test_rejected_rows_are_kept_and_transient_failures_are_not(
    lake_dir: Path,
) -> None:
    opened = buffer(lake_dir)
    rejected = opened.stage(batch(range(5), RejectedPost("too long")))
    failed = opened.stage(batch(range(5, 9), RetryableError("busy", kind="http_503")))
    assert (rejected.rejected, failed.failed, failed.labelled) == (
        {"too long": 5},
        {"http_503": 4},
        0,
    )
    opened.close()
    assert_labelled_once(lake_dir, uris(range(5)))
    assert {row["reason"] for row in lake_labels(lake_dir)} == {"too long"}


def test_a_successor_finishes_what_a_killed_buffer_has_staged(lake_dir: Path) -> None:
    killed = buffer(lake_dir)
    killed.stage(batch(range(5)))
    assert killed._lock
    killed._lock.release()  # as the end of its process does
    successor = buffer(lake_dir, run_id="run-2")
    assert successor.open() == BatchCounts(0)
    assert not writing.staged(Lake(str(lake_dir)), LABELS)
    successor.stage(batch(range(5, 8)))
    successor.close()
    assert_labelled_once(lake_dir, uris(range(8)))


def test_a_restarted_buffer_knows_what_its_run_has_flushed(lake_dir: Path) -> None:
    first = buffer(lake_dir)
    first.stage(batch(range(5)))
    first.close()
    again = buffer(lake_dir)
    again.stage(batch(range(5)))
    again.close()
    assert_labelled_once(lake_dir, uris(range(5)))


def test_never_flushing_leaves_all_in_the_output_queue_for_a_write_phase(
    lake_dir: Path,
) -> None:
    opened = buffer(lake_dir, FlushPolicy(rows=5, never=True))
    for start in range(0, 60, 5):
        opened.stage(batch(range(start, start + 5)))
    opened.close()
    assert lake_labels(lake_dir) == []
    writer = buffer(lake_dir, FlushPolicy(keep=True), run_id="write-1")
    writer.close()
    assert len(lake_labels(lake_dir)) == 60
    assert len(queue_files(lake_dir)) == 12 + 1
    buffer(lake_dir, FlushPolicy(keep=True), run_id="write-2").close()
    assert len(lake_labels(lake_dir)) == 60, "writing twice writes once"
    buffer(lake_dir, run_id="run-3").close()
    assert_labelled_once(lake_dir, uris(range(60)))


def test_retried_posts_take_the_place_of_their_rejected_rows(lake_dir: Path) -> None:
    first = buffer(lake_dir)
    first.stage(batch(range(5), RejectedPost("too long")))
    first.close()
    second = buffer(lake_dir, FlushPolicy(replace=True), run_id="run-2")
    second.stage(batch(range(3)))
    second.close()
    assert_labelled_once(lake_dir, uris(range(5)))
    assert sorted(row["was_successfully_labeled"] for row in lake_labels(lake_dir)) == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_database_that_is_down_costs_no_label_and_catches_up(
    lake_dir: Path,
) -> None:
    opened = buffer(lake_dir, url="postgresql://me:s3cret@127.0.0.1:1/x")
    opened.stage(batch(range(5)))
    behind = opened.close()
    assert behind
    assert "does not answer" in behind
    assert "s3cret" not in behind
    assert len(lake_labels(lake_dir)) == 5
    later = buffer(lake_dir, run_id="run-2")
    later.stage(batch(range(5, 6)))
    assert later.close() is None
    assert_labelled_once(lake_dir, uris(range(6)))


def test_a_failed_flush_reaches_the_next_caller_and_loses_nothing(
    lake_dir: Path,
) -> None:
    opened = buffer(lake_dir, FlushPolicy(rows=5))
    (lake_dir / VALENCE).write_bytes(b"a file where the folder should be")
    opened.stage(batch(range(5)))
    with pytest.raises(ConfigError, match="cannot write"):
        opened.close()
    (lake_dir / VALENCE).unlink()
    assert opened._lock
    opened._lock.release()
    buffer(lake_dir, run_id="run-2").close()
    assert_labelled_once(lake_dir, uris(range(5)))
