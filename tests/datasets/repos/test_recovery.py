"""Recovery: flushes that were cut off at every possible moment, and lost databases."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datasets.database import Database, open_database
from datasets.lake import Lake
from datasets.repos.flush import flush, recover
from datasets.repos.staging import StagingReceipt, stage_rows, staged
from datasets.repos.state import create_tables, load_repos
from tests.datasets.repos.staged import (
    ALICE,
    BOB,
    CAROL,
    FIRST,
    SECOND,
    as_found,
    in_lake,
    rows,
    stage,
)


def test_segments_without_a_receipt_are_deleted(
    stores: tuple[Lake, Database],
) -> None:
    lake, database = stores
    whole = stage(lake, "r1", {ALICE: FIRST})
    stage_rows(lake, "r2.0", rows(BOB, FIRST, "r1"))
    stage(lake, "r3", {CAROL: FIRST})
    lake.delete("queues/pds/r3.0.parquet")
    recover(lake, database)
    assert staged(lake) == [whole]
    assert lake.files("queues/pds") + lake.files("queues/pds", ".json") == [
        "queues/pds/r1.0.parquet",
        "queues/pds/r1.json",
    ]


def test_a_lost_database_is_filled_from_the_manifests(
    stores: tuple[Lake, Database], tmp_path: Path
) -> None:
    lake, database = stores
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST, BOB: FIRST})], "b1")
    flush(lake, database, [stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-02")], "b2")
    fresh = open_database(f"sqlite:///{tmp_path}/fresh.db")
    create_tables(fresh)
    recover(lake, fresh)
    assert load_repos(fresh, [ALICE, BOB]) == load_repos(database, [ALICE, BOB])


def test_files_that_were_removed_are_fetched_again(stores: tuple[Lake, Database]) -> None:
    lake, database = stores
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    lake.delete("raw_sync/_batches/b1.json")
    recover(lake, database)
    found = load_repos(database, [ALICE])[ALICE]
    assert (found.rev, found.batch) == (None, None)


class Crash(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Crashing(Lake):
    """A lake whose process ends before its n-th change, in all of its threads."""

    left: list[int] = field(default_factory=lambda: [10**9])
    lock: Any = field(default_factory=threading.Lock)

    def _count(self) -> None:
        with self.lock:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise Crash

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        self._count()
        super().write_bytes(path, data)

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)


def crashes(
    lake: Crashing, database: Database, receipts: Iterable[StagingReceipt], after: int
) -> bool:
    lake.left[0] = after
    try:
        flush(lake, database, list(receipts), "b2")
    except Crash:
        return True
    finally:
        lake.left[0] = 10**9
    return False


@pytest.mark.parametrize("crash_again", [False, True])
def test_a_flush_that_is_cut_off_at_any_moment_is_finished(
    tmp_path: Path, *, crash_again: bool
) -> None:
    before, moments = {ALICE: FIRST, BOB: FIRST, CAROL: SECOND}, 0
    after = {ALICE: SECOND, BOB: FIRST, CAROL: {}}
    while True:
        root = tmp_path / str(moments)
        lake = Crashing(str(root / "lake"))
        database = open_database(f"sqlite:///{root}/x.db")
        create_tables(database)
        flush(lake, database, [stage(lake, "r1", before)], "b1")
        receipts = [
            stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-02"),
            stage(lake, "r3", {CAROL: {}}, "r2", "2026-01-02"),
        ]
        if not crashes(lake, database, receipts, moments):
            break
        database.close()
        database = open_database(f"sqlite:///{root}/x.db")
        if crash_again:
            lake.left[0] = moments // 2
            with suppress(Crash):
                recover(lake, database)
            lake.left[0] = 10**9
        recover(lake, database)
        if left := staged(lake):
            flush(lake, database, left, "b3")
        expected = {did: as_found(records) for did, records in after.items() if records}
        assert in_lake(Path(lake.root)) == expected, f"after a crash at moment {moments}"
        assert {did: s.rev for did, s in load_repos(database, after).items()} == {
            ALICE: "r2",
            BOB: "r1",
            CAROL: "r2",
        }
        assert lake.files("queues/pds") + lake.files("queues/pds", ".json") == []
        database.close()
        moments += 1
    assert moments > 12
