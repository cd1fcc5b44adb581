from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from datasets import queues
from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.schemas import POST_SCHEMA
from tests.support import DAY, make_uri, post

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def table(numbers: range, day: str = DAY) -> pa.Table:
    return pa.Table.from_pylist(
        [{**post(n), "partition_date": day} for n in numbers], schema=POST_SCHEMA
    )


def test_a_queue_counts_what_was_enqueued_and_clears_by_name(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    queues.enqueue(lake, "x", table(range(5)), NOW)
    queues.enqueue(lake, "x", table(range(5, 7), "2024-10-02"), NOW)
    queues.enqueue(lake, "y", table(range(3)), NOW)
    assert (
        queues.count(lake, "input", "x"),
        queues.count(lake, "input", "y"),
        queues.count(lake, "output", "x"),
    ) == (
        7,
        3,
        0,
    )
    for path in (tmp_path / "queues/input/x").iterdir():
        path.write_bytes(b"no payload is read to clear a queue")
    assert queues.clear(lake, "input", "x") == 2
    assert queues.queued_posts(lake, "x") == {}
    assert queues.count(lake, "input", "y") == 3


def test_the_same_posts_enqueued_twice_in_a_second_are_one_segment(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    assert queues.enqueue(lake, "x", table(range(5)), NOW) == queues.enqueue(
        lake, "x", table(range(5)), NOW
    )
    assert queues.count(lake, "input", "x") == 5


def test_segments_are_found_by_date_and_by_time_of_enqueueing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    old = queues.enqueue(lake, "x", table(range(5)), NOW - timedelta(hours=5))
    new = queues.enqueue(lake, "x", table(range(5, 9)), NOW)
    other = queues.enqueue(lake, "x", table(range(9, 10), "2024-10-02"), NOW)
    assert queues.queued_posts(lake, "x") == {DAY: [old, new], "2024-10-02": [other]}
    assert queues.queued_posts(lake, "x", NOW - timedelta(hours=1)) == {
        DAY: [new],
        "2024-10-02": [other],
    }


def test_what_is_left_of_a_segment_keeps_its_time(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    segment = queues.enqueue(lake, "x", table(range(5)), NOW - timedelta(days=2))
    queues.requeue(lake, "x", segment, table(range(5)))
    assert queues.queued_posts(lake, "x") == {DAY: [segment]}, "nothing was done: the segment stays"
    queues.requeue(lake, "x", segment, table(range(2)))
    assert queues.count(lake, "input", "x") == 2
    assert queues.queued_posts(lake, "x", NOW - timedelta(days=1)) == {}
    (left,) = queues.queued_posts(lake, "x")[DAY]
    queues.requeue(lake, "x", left, None)
    assert queues.queued_posts(lake, "x") == {}


def test_a_half_written_segment_is_never_seen(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    queues.enqueue(lake, "x", table(range(5)), NOW)
    (
        tmp_path / "queues/input/x" / ".20261101T120000Z-2024-10-01-ff.parquet.aside-0badcafe"
    ).write_bytes(b"PAR1 half")
    assert queues.count(lake, "input", "x") == 5


@pytest.mark.parametrize(
    "name",
    ["notes", "part-0", "20261101T120000Z", "20261101T120000Z-2024-13-01-ff", "2026-2024-10-01-ff"],
)
def test_a_file_that_is_none_of_the_queues_is_named(tmp_path: Path, name: str) -> None:
    lake = Lake(str(tmp_path))
    segment = queues.enqueue(lake, "x", table(range(5)), NOW)
    stray = tmp_path / "queues/input/x" / f"{name}.parquet"
    stray.write_bytes((tmp_path / segment).read_bytes())
    with pytest.raises(
        ConfigError,
        match=rf"{name}\.parquet is not a segment of the input queue .*; move it elsewhere",
    ):
        queues.queued_posts(lake, "x")
    stray.unlink()
    assert queues.queued_posts(lake, "x") == {DAY: [segment]}


def test_a_caller_that_may_not_write_any_more_deletes_nothing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for day in (DAY, "2024-10-02"):
        queues.enqueue(lake, "x", table(range(5), day), NOW)
    asked = iter([True, False])

    def ensure() -> None:
        if not next(asked):
            raise ConfigError("taken over")

    with pytest.raises(ConfigError, match="taken over"):
        queues.clear(lake, "input", "x", ensure)
    [[left]] = queues.queued_posts(lake, "x").values()
    asked = iter([False])
    with pytest.raises(ConfigError, match="taken over"):
        queues.requeue(lake, "x", left, table(range(2), "2024-10-02"), ensure)
    asked = iter([True, False])
    with pytest.raises(ConfigError, match="taken over"):
        queues.requeue(lake, "x", left, table(range(2), "2024-10-02"), ensure)
    assert queues.count(lake, "input", "x") == 5 + 2, (
        "a post twice in the queue is labelled once; none is lost"
    )


def test_digest_tells_lists_apart() -> None:
    assert (
        len(
            {
                queues.digest(parts)
                for parts in ([make_uri(1)], [make_uri(1), ""], ["ab", "c"], ["a", "bc"], [])
            }
        )
        == 5
    )
