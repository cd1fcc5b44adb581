"""The phases without Ray: what leaves the input queue, and what a phase whose lock was lost may still do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from actors.integrations import resolve
from backfill.labels import phases
from backfill.workspace import Workspace
from datasets import queues
from datasets.errors import ConfigError
from datasets.labels import writing
from datasets.lake import Lake
from datasets.locking import leases
from datasets.locking.locks import Lock
from datasets.schemas import POST_SCHEMA, staged_schema
from tests.s3_server import BUCKET, Endpoint
from tests.support import DAY, VALENCE, lake_labels, make_uri, post, queue_files, write_partition

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
QUEUE = queues.folder("input", VALENCE)


def enqueue(lake: Lake, numbers: range, day: str = DAY) -> str:
    rows = [{**post(n), "partition_date": day} for n in numbers]
    return queues.enqueue(lake, VALENCE, pa.Table.from_pylist(rows, POST_SCHEMA), NOW)


def label(root: Path, numbers: range, day: str = DAY) -> None:
    rows = [{"uri": make_uri(n), "text": "t", "was_successfully_labeled": True} for n in numbers]
    write_partition(root, VALENCE, day, rows, "labels-0")


def queued(lake: Lake) -> list[str]:
    uris = []
    for path in lake.files(QUEUE):
        for batch in lake.read(path, pa.schema([("uri", pa.string())])):
            uris += batch["uri"].to_pylist()
    return sorted(uris)


@dataclass(frozen=True)
class Watched(Lake):
    """Calls back after it has listed a folder, and before it writes or deletes a file."""

    on_listed: Callable[[str], None] = field(default=lambda _: None)
    on_change: Callable[[str], None] = field(default=lambda _: None)

    def files(self, path: str, suffix: str = ".parquet") -> list[str]:
        found = super().files(path, suffix)
        self.on_listed(path)
        return found

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        self.on_change(path)
        super().write_bytes(path, data)

    def delete(self, path: str) -> None:
        self.on_change(path)
        super().delete(path)


@pytest.mark.parametrize("where", [QUEUE, f"queues/output/{VALENCE}"])
def test_what_is_enqueued_while_a_run_removes_what_is_done_stays(
    tmp_path: Path, where: str
) -> None:
    lake = Lake(str(tmp_path))
    enqueue(lake, range(10))
    label(tmp_path, range(8))
    times = iter([True])

    def on_listed(path: str) -> None:
        if path == where and next(times, False):
            enqueue(lake, range(20, 25))

    phases._remove_done(Watched(str(tmp_path), on_listed=on_listed), resolve(VALENCE), None)
    assert queued(lake) == sorted(make_uri(n) for n in [8, 9, *range(20, 25)])


def test_a_post_that_is_queued_for_two_dates_leaves_both_segments_once_it_is_labelled(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    enqueue(lake, range(10))
    enqueue(lake, range(5, 15), "2024-10-02")
    label(tmp_path, range(10))
    phases._remove_done(lake, resolve(VALENCE), None)
    assert queued(lake) == sorted(make_uri(n) for n in range(10, 15))


def test_what_is_left_of_one_segment_and_is_all_of_another_stays_queued(tmp_path: Path) -> None:
    """Two that enqueue in the same second: the rest has the name of the other segment."""
    lake = Lake(str(tmp_path))
    pairs = [(range(n), range(n - 1, n)) for n in range(2, 9)]
    first, second = next(
        (one, other) for one, other in pairs if enqueue(lake, one) < enqueue(lake, other)
    )
    queues.clear(lake, "input", VALENCE)
    assert enqueue(lake, first) < enqueue(lake, second)
    label(tmp_path, range(len(first) - 1))
    phases._remove_done(lake, resolve(VALENCE), None)
    assert queued(lake) == [make_uri(second[0])]


def test_removing_what_is_done_holds_one_segment_whatever_is_queued(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    days = [f"2024-10-{day:02}" for day in range(1, 13)]
    for number, day in enumerate(days):
        enqueue(lake, range(number * 2000, (number + 1) * 2000), day)
        label(tmp_path, range(number * 2000, number * 2000 + 10), day)
    [*_, segment] = lake.files(QUEUE)
    with lake.open_parquet(segment) as file:
        size = file.read().nbytes
    before = pa.total_allocated_bytes()
    held: list[int] = []
    watched = Watched(
        str(tmp_path), on_change=lambda _: held.append(pa.total_allocated_bytes() - before)
    )
    phases._remove_done(watched, resolve(VALENCE), None)
    assert queues.count(lake, "input", VALENCE) == 12 * 1990
    assert max(held) < 4 * size


@pytest.fixture
def s3_lake(s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """In which a holder that was not heard of for a moment counts as dead."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(leases, "SURE_SECONDS", 0.5)
    return Lake(f"s3://{BUCKET}/{tmp_path.name}")


def take_over(lake: Lake, role: str, held: list[Lock]) -> None:
    if not held:
        held.append(Lock(lake, VALENCE, role, "next"))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["run", "buffer"])
def test_a_clear_that_was_taken_over_deletes_nothing_more(
    s3_lake: Lake, tmp_path: Path, role: str
) -> None:
    for day in (DAY, "2024-10-02", "2024-10-03"):
        enqueue(s3_lake, range(5), day)
    held: list[Lock] = []
    listing = Watched(
        s3_lake.root,
        on_listed=lambda path: take_over(s3_lake, role, held) if path == QUEUE else None,
    )
    workspace = Workspace(listing, "sqlite:///never-opened.db")
    with pytest.raises(ConfigError, match=f"another run has taken over {VALENCE}"):
        phases.clear(workspace, [resolve(VALENCE)], ["input"])
    assert len(s3_lake.files(QUEUE)) == 3
    held[0].release()


def test_clearing_after_a_retry_that_was_killed_leaves_each_post_one_row(tmp_path: Path) -> None:
    """Half-way, the lake holds both what was written and the older files whose rejected rows it replaces."""
    kills = 0
    for point in range(20):
        root = tmp_path / f"{point}"
        rejected = [{**post(n), "was_successfully_labeled": n > 1} for n in range(3)]
        write_partition(root, VALENCE, DAY, rejected, "history", "active")
        labels = resolve(VALENCE).labels
        retried = pa.Table.from_pylist(
            [{**post(n), "was_successfully_labeled": True, "partition_date": DAY} for n in (0, 5)],
            schema=staged_schema(labels.schema),
        )
        writing.stage(Lake(str(root)), labels, "r1-a", retried)
        with suppress(Killed):
            writing.flush(dying(root, point), labels, ["r1-a"], "r1-1-1", replace=True)
            break
        kills += 1
        assert phases.clear(Workspace(Lake(str(root)), ""), [resolve(VALENCE)], ["output"])

        found = [row["uri"] for row in lake_labels(root)]
        assert len(found) == len(set(found)), f"killed before change {point}"
        assert {make_uri(n) for n in range(3)} <= set(found)
        assert queue_files(root) == []
    assert kills >= 5


class Killed(BaseException):
    """Where a process would be gone."""


def dying(root: Path, changes: int) -> Lake:
    """A lake whose process is killed before a further change."""
    left = iter(range(changes))

    def change(_: str) -> None:
        if next(left, None) is None:
            raise Killed

    return Watched(str(root), on_change=change)
