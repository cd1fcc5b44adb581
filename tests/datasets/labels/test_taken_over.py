"""A writer that is paused at any point, taken for dead, overtaken, and then wakes up or dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import ConfigError
from datasets.labels import writing
from datasets.labels.reading import labelled_uris
from datasets.lake import Lake, _write_local
from tests.datasets.labels.test_writing import LABELS, NEXT, expect, labelled, rows
from tests.support import DAY, lake_labels, make_uri, queue_files, write_partition

POSTS = {DAY: range(6), NEXT: range(6, 9)}


class Killed(BaseException):
    """Where a process would be gone."""


class Remote(Lake):
    """A folder that is used as S3 is: a writer does not end with its lock."""

    @property
    def is_local(self) -> bool:
        return False

    def write_bytes(self, path: str, data: Any) -> None:
        _write_local(self._full(path), data)


class Paused(Remote):
    """Pauses before operation number `at`, which is when `meanwhile` happens, and dies `left` operations later."""

    at: int
    left: int | None
    meanwhile: Callable[[], None]
    count: int
    overtaken: bool

    def _step(self) -> None:
        if self.overtaken and self.left is not None:
            if self.left == 0:
                raise Killed
            object.__setattr__(self, "left", self.left - 1)
        object.__setattr__(self, "count", self.count + 1)
        if self.count == self.at:
            self.meanwhile()
            object.__setattr__(self, "overtaken", True)

    def ensure(self) -> None:
        """What a lease says that was lost meanwhile."""
        overtaken = self.overtaken  # asked before the pause, it was still held
        self._step()
        if overtaken:
            raise ConfigError("another run has taken over")

    def write_bytes(self, path: str, data: Any) -> None:
        self._step()
        super().write_bytes(path, data)

    def delete(self, path: str) -> None:
        self._step()
        super().delete(path)

    def open_parquet(self, path: str) -> Any:
        self._step()
        return super().open_parquet(path)


def paused(root: Path, at: int, left: int | None, meanwhile: Callable[[], None]) -> Paused:
    lake = Paused(str(root))
    for name, value in {
        "at": at,
        "left": left,
        "meanwhile": meanwhile,
        "count": 0,
        "overtaken": False,
    }.items():
        object.__setattr__(lake, name, value)
    return lake


def stage(lake: Lake, run: str, numbers: Sequence[int], day: str, *, ok: bool) -> str:
    name = writing.segment_name(run, f"{day}{numbers[0]}")
    writing.stage(lake, LABELS, name, rows(numbers, day, was_successfully_labeled=ok, run_id=run))
    return name


def take_over(lake: Lake, run: str, *, retry: bool) -> None:
    """A whole run: what dead ones have left, then what has no label, or a rejected one with `retry`."""
    writing.recover(lake, LABELS)
    if left := writing.staged(lake, LABELS):
        writing.adopt(lake, LABELS, left, f"{run}-1-1", keep=False, ensure=lambda: None)
    done = labelled_uris(lake, LABELS, retry_rejected=retry)
    names = []
    for day, numbers in POSTS.items():
        known = set(done(day).to_pylist())
        if missing := [n for n in numbers if make_uri(n) not in known]:
            names.append(stage(lake, run, missing, day, ok=True))
    if names:
        writing.flush(lake, LABELS, names, f"{run}-2-2", replace=retry)


@pytest.mark.parametrize("first_retries", [False, True])
@pytest.mark.parametrize("other_retries", [False, True])
@pytest.mark.parametrize("left", [None, 0, 1, 2, 3])
def test_a_flush_that_is_overtaken_at_any_point_leaves_each_post_one_row(
    tmp_path: Path, left: int | None, *, first_retries: bool, other_retries: bool
) -> None:
    """The first run labels posts 0 to 2 and 6, and rejects 3, 4 and 7; where it retries, these were rejected before."""
    points = 0
    for at in range(1, 60):
        root = tmp_path / f"{at}"
        history = [
            {"uri": make_uri(n), "was_successfully_labeled": n > 4, "mine": "x"}
            for n in ((3, 4, 5) if first_retries else (5,))
        ]
        write_partition(root, LABELS.integration, DAY, history, name="history", tier="active")
        lake = Remote(str(root))
        names = [
            stage(lake, "r1", [0, 1, 2], DAY, ok=True),
            stage(lake, "r1", [3, 4], DAY, ok=first_retries),
            stage(lake, "r1", [6], NEXT, ok=True),
            stage(lake, "r1", [7], NEXT, ok=False),
        ]
        first = paused(
            root, at, left, lambda r=root: take_over(Remote(str(r)), "r2", retry=other_retries)
        )
        with suppress(ConfigError, Killed):
            writing.flush(
                first, LABELS, names, "r1-1-1", replace=first_retries, ensure=first.ensure
            )
        points += first.overtaken

        take_over(lake, "r3", retry=other_retries)
        where = f"paused before operation {at}"
        assert labelled(root) == expect((DAY, POSTS[DAY]), (NEXT, POSTS[NEXT])), where
        failed = {
            row["uri"]
            for row in lake_labels(root, LABELS.integration)
            if not row["was_successfully_labeled"]
        }
        rejected = [7] if first_retries else [3, 4, 7]
        assert failed == (set() if other_retries else {make_uri(n) for n in rejected}), where
        assert queue_files(root) == [], where
        if not first.overtaken:
            break
    assert points > 10, "it must have been overtaken at many points"


@pytest.mark.parametrize("left", [None, 0, 1, 2, 3])
def test_a_recovery_that_is_overtaken_at_any_point_leaves_each_post_one_row(
    tmp_path: Path, left: int | None
) -> None:
    """It finishes, as a retry, a flush that died before its commit, when a third run takes over from it."""
    for at in range(1, 80):
        root = tmp_path / f"{at}"
        rejected = [{"uri": make_uri(n), "was_successfully_labeled": n > 4} for n in (3, 4, 5)]
        write_partition(root, LABELS.integration, DAY, rejected, name="history", tier="active")
        lake = Remote(str(root))
        names = [stage(lake, "r1", [0, 3, 4], DAY, ok=True), stage(lake, "r1", [6], NEXT, ok=True)]
        dying = paused(root, 12, 0, lambda: None)
        with pytest.raises(Killed):
            writing.flush(dying, LABELS, names, "r1-1-1", replace=True)

        second = paused(root, at, left, lambda r=root: take_over(Remote(str(r)), "r3", retry=True))
        with suppress(ConfigError, Killed):
            writing.recover(second, LABELS, ensure=second.ensure)
        take_over(lake, "r4", retry=True)
        assert labelled(root) == expect((DAY, POSTS[DAY]), (NEXT, POSTS[NEXT])), (
            f"paused before operation {at}"
        )
        assert queue_files(root) == []
        if not second.overtaken:
            return
    raise AssertionError("it never came to its end")


def test_rejected_rows_in_a_file_with_string_views_are_replaced(tmp_path: Path) -> None:
    """As newer pyarrow and polars write them. They cannot be searched nor filtered as they are."""
    path = write_partition(tmp_path, LABELS.integration, DAY, [{"uri": "x"}], name="history")
    views = pa.table(
        {
            "uri": pa.array([make_uri(3), make_uri(9)], pa.string_view()),
            "was_successfully_labeled": [False, False],
            "note": pa.array(["a", "b"], pa.string_view()),
        }
    )
    pq.write_table(views, path)
    lake = Lake(str(tmp_path))
    name = stage(lake, "r1", [3], DAY, ok=True)
    writing.flush(lake, LABELS, [name], "r1-1-1", replace=True)
    assert labelled(tmp_path) == expect((DAY, [3, 9]))
    found = {row["uri"]: row.get("note") for row in lake_labels(tmp_path, LABELS.integration)}
    assert found == {make_uri(3): None, make_uri(9): "b"}
    writing.recover(lake, LABELS)
    assert queue_files(tmp_path) == []


def test_what_killed_writers_left_aside_is_removed_from_label_partitions(tmp_path: Path) -> None:
    path = write_partition(tmp_path, LABELS.integration, DAY, [{"uri": "x"}])
    aside = path.with_name(f".{path.name}.aside-0123abcd")
    aside.write_bytes(b"half a file")
    lake = Lake(str(tmp_path))
    writing.recover(lake, LABELS, {"r2": (NEXT, NEXT)})
    assert aside.exists(), "it may be of the run that is alive"
    writing.recover(lake, LABELS)
    assert (aside.exists(), path.exists()) == (False, True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
@pytest.mark.parametrize("name", ["flush-r1-1-1.json", "written-r1-1-1.json"])
def test_a_damaged_record_of_a_flush_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    lake = Lake(str(tmp_path))
    stage(lake, "r1", [1], DAY, ok=True)
    lake.write_bytes(f"{LABELS.queue}/{name}", content)
    with pytest.raises(ConfigError, match=rf"{name} is not a record of a flush"):
        writing.recover(lake, LABELS)
    (tmp_path / LABELS.queue / name).unlink()
    take_over(lake, "r2", retry=False)
    assert (DAY, make_uri(1)) in labelled(tmp_path)


def test_staged_uris_are_read_a_date_at_a_time(tmp_path: Path) -> None:
    """Held of a queue are names, not the URIs of all dates."""
    lake = Lake(str(tmp_path))
    names = [stage(lake, "r1", [n], f"2024-10-{n:02}", ok=True) for n in range(1, 20)]
    opened: list[str] = []

    class Watching(Lake):
        def open_parquet(self, path: str) -> Any:
            opened.append(path)
            return super().open_parquet(path)

    uris_of = labelled_uris(Watching(str(tmp_path)), LABELS)
    opened.clear()
    assert uris_of("2024-10-05").to_pylist() == [make_uri(5)]
    assert opened == [f"{LABELS.queue}/{names[4]}.parquet"]


def test_what_is_flushed_or_replaced_after_a_selection_has_listed_is_still_seen(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    rejected = [{"uri": make_uri(n), "was_successfully_labeled": n == 2} for n in (1, 2)]
    write_partition(tmp_path, LABELS.integration, DAY, rejected, name="history")
    first = stage(lake, "r1", [3], DAY, ok=True)
    uris_of = labelled_uris(lake, LABELS)
    writing.flush(
        lake, LABELS, [first, stage(lake, "r1", [1], DAY, ok=True)], "r1-1-1", replace=True
    )
    assert sorted(uris_of(DAY).to_pylist()) == sorted(make_uri(n) for n in (1, 2, 3))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"parquet of others"])
def test_a_stray_file_in_the_output_queue_is_named(tmp_path: Path, content: bytes) -> None:
    lake = Lake(str(tmp_path))
    if content == b"parquet of others":
        lake.write_parquet(f"{LABELS.queue}/stray.parquet", pa.table({"x": [1]}))
    else:
        lake.write_bytes(f"{LABELS.queue}/stray.parquet", content)
    named = r"stray\.parquet holds no staged labels .*; move it out of the queue"
    with pytest.raises(ConfigError, match=named):
        labelled_uris(lake, LABELS)
    with pytest.raises(ConfigError, match=named):
        writing.adopt(
            lake, LABELS, writing.staged(lake, LABELS), "r1-1-1", keep=False, ensure=lambda: None
        )
    if content != b"parquet of others":
        with pytest.raises(ConfigError, match=named):
            writing.count_staged(lake, LABELS, writing.staged(lake, LABELS))
