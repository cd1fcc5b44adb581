"""Repositories that are staged, flushed and replaced, with a crash at every possible moment."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backfill.repos.writer import report_outdated
from datasets.database import Database, open_database
from datasets.lake import Lake
from datasets.repos import flush as flush_module
from datasets.repos.coverage import RECORD_TYPES, RecordCoverage, covering
from datasets.repos.flush import flush, outdated, recover
from datasets.repos.record_schemas import STAGED_SCHEMA, record_schema
from datasets.repos.staging import StagingReceipt, acknowledge, stage_rows, staged
from datasets.repos.state import RepoState, create_tables, load_repos, save_repos, with_status
from tests.pds.repos import make_did

# Record key → its type and its day.
Records = Mapping[str, tuple[str, str]]
FIRST: Records = {
    "a": ("post", "2024-10-01"),
    "b": ("post", "2024-10-02"),
    "c": ("like", "2024-10-01"),
}
SECOND: Records = {"b": ("post", "2024-10-02"), "d": ("post", "2024-10-03")}


def rows(did: str, records: Records, rev: str) -> pa.Table:
    columns = {name: [None] * len(records) for name in STAGED_SCHEMA.names} | {
        "uri": [f"at://{did}/{key}" for key in records],
        "author": [did] * len(records),
        "record_type": [kind for kind, _ in records.values()],
        "partition_date": [day for _, day in records.values()],
        "rev": [rev] * len(records),
        "verified": [True] * len(records),
    }
    return pa.table(
        [pa.array(columns[f.name], f.type) for f in STAGED_SCHEMA], schema=STAGED_SCHEMA
    )


ALL = covering(RECORD_TYPES, None, None)


def stage(
    lake: Lake,
    name: str,
    repos: Mapping[str, Records],
    rev: str = "r1",
    at: str = "2026-01-01",
    replaces: Mapping[str, str] | None = None,
    coverage: RecordCoverage = ALL,
) -> StagingReceipt:
    states = [
        RepoState(did, rev=rev, synced_at=at, coverage=coverage, records={"x": len(records)})
        for did, records in repos.items()
    ]
    tables = [rows(did, records, rev) for did, records in repos.items()]
    stage_rows(lake, f"{name}.0", pa.concat_tables(tables))
    receipt = StagingReceipt(name, (f"{name}.0",), tuple(states), replaces or {})
    acknowledge(lake, receipt)
    return receipt


def in_lake(root: Path) -> dict[str, set[tuple[str, str, str]]]:
    """DID → (key, type, day) of its rows; fails if a row is there twice or out of place."""
    found: dict[str, set[tuple[str, str, str]]] = {}
    for path in root.glob("raw_sync/create/*/cache/partition_date=*/*.parquet"):
        table = pq.ParquetFile(path).read()
        kind, day = path.parts[-4], path.parent.name.removeprefix("partition_date=")
        assert table.schema.equals(record_schema(kind))
        assert len(table) > 0, "an empty file was left"
        for row in table.select(["uri", "author", "record_type"]).to_pylist():
            entry = (row["uri"].rpartition("/")[2], kind, day)
            assert row["record_type"] == kind
            assert entry not in found.setdefault(row["author"], set()), f"{entry} is there twice"
            found[row["author"]].add(entry)
    return found


def as_found(records: Records) -> set[tuple[str, str, str]]:
    return {(key, kind, day) for key, (kind, day) in records.items()}


@pytest.fixture
def place(tmp_path: Path) -> tuple[Lake, Database]:
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    create_tables(database)
    return Lake(str(tmp_path / "lake")), database


ALICE, BOB, CAROL = (make_did(n) for n in range(3))


def test_users_share_files_one_for_each_type_and_day(place: tuple[Lake, Database]) -> None:
    lake, database = place
    receipts = [stage(lake, "r1", {ALICE: FIRST, BOB: FIRST}), stage(lake, "r2", {CAROL: SECOND})]
    flush(lake, database, receipts, "b1")
    assert in_lake(Path(lake.root)) == {
        ALICE: as_found(FIRST),
        BOB: as_found(FIRST),
        CAROL: as_found(SECOND),
    }
    assert len(list(Path(lake.root).glob("raw_sync/**/*.parquet"))) == 4
    assert lake.files("queues/pds") == lake.files("queues/pds", ".json") == []
    states = load_repos(database, [ALICE, BOB, CAROL])
    assert {state.batch for state in states.values()} == {"b1"}
    assert {state.rev for state in states.values()} == {"r1"}


def test_a_repository_is_replaced_as_a_whole_and_the_others_stay(
    place: tuple[Lake, Database],
) -> None:
    lake, database = place
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST, BOB: FIRST, CAROL: {}})], "b1")
    flush(lake, database, [stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-02")], "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND), BOB: as_found(FIRST)}
    states = load_repos(database, [ALICE, BOB, CAROL])
    assert {did: (state.batch, state.rev) for did, state in states.items()} == {
        ALICE: ("b2", "r2"), BOB: ("b1", "r1"), CAROL: ("b1", "r1"),
    }  # fmt: skip
    # Once a batch has nobody left, nothing is left of it.
    flush(lake, database, [stage(lake, "r3", {BOB: {}, CAROL: {}}, "r3", "2026-01-03")], "b3")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND)}
    assert sorted(lake.files("raw_sync/_batches", ".json")) == [
        f"raw_sync/_batches/b{n}.json" for n in (2, 3)
    ]


def test_other_peoples_files_are_not_touched(place: tuple[Lake, Database]) -> None:
    lake, database = place
    path = Path(lake.root) / "raw_sync/create/post/cache/partition_date=2024-10-01/firehose.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows(ALICE, FIRST, "old").select(["uri", "author"]), path)
    before = path.read_bytes()
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    flush(lake, database, [stage(lake, "r2", {ALICE: {}}, "r2", "2026-01-02")], "b2")
    assert path.read_bytes() == before


@pytest.mark.parametrize("clock", ["forwards", "back", "still"])
def test_the_later_of_two_stagings_counts_whatever_the_clock_says(
    place: tuple[Lake, Database], clock: str
) -> None:
    lake, database = place
    one, two, three = {
        "forwards": ("2026-01-01", "2026-01-02", "2026-01-03"),
        "back": ("2026-01-03", "2026-01-02", "2026-01-01"),
        "still": ("2026-01-01", "2026-01-01", "2026-01-01"),
    }[clock]
    receipts = [
        stage(lake, "r1", {ALICE: SECOND, BOB: FIRST}, "r2", one),
        stage(lake, "r0", {ALICE: FIRST}, "r1", two),
    ]
    written = flush(lake, database, receipts, "b1")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND), BOB: as_found(FIRST)}
    assert outdated(receipts, written) == set()
    flush(lake, database, [stage(lake, "r3", {ALICE: FIRST}, "r3", three)], "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(FIRST), BOB: as_found(FIRST)}


def test_a_fetch_after_an_attempt_by_a_clock_that_was_ahead_is_taken(
    place: tuple[Lake, Database],
) -> None:
    lake, database = place
    with database.transaction():
        save_repos(
            database, [with_status(RepoState(ALICE), "unreachable", "no answer", "2099-01-01")]
        )
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(FIRST)}
    assert load_repos(database, [ALICE])[ALICE].status == "ok"


def test_what_is_older_than_the_lake_is_left_out_and_said(place: tuple[Lake, Database]) -> None:
    """A decoder has outlived its driver, and another run has fetched these users since."""
    lake, database = place
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST, BOB: FIRST, CAROL: FIRST})], "b1")
    since = {ALICE: "b1", BOB: "b1", CAROL: "b1"}
    flush(
        lake,
        database,
        [stage(lake, "r2", {ALICE: SECOND, CAROL: SECOND}, "r5", replaces=since)],
        "b2",
    )
    left = [stage(lake, "r3", {ALICE: {}, BOB: SECOND}, "r4", "2099-01-01", since)]
    left += [
        stage(lake, "r4", {CAROL: {}}, "r6", "2099-01-01", since, covering(["post"], None, None))
    ]
    written = flush(lake, database, left, "b3")
    assert outdated(left, written) == {ALICE, CAROL}, "of Carol it has fewer types than the lake"
    assert in_lake(Path(lake.root)) == {did: as_found(SECOND) for did in (ALICE, BOB, CAROL)}
    assert lake.files("queues/pds") == lake.files("queues/pds", ".json") == []
    said: list[str] = []
    report_outdated(left, written, said.append)
    assert said == [
        f"left out the fetched records of {min(ALICE, CAROL)} and 1 more: the lake has newer ones"
    ]


def test_a_host_that_went_back_to_an_earlier_revision_is_believed(
    place: tuple[Lake, Database],
) -> None:
    """From a backup, say. The fetch was made to replace what the lake has, so it is newer."""
    lake, database = place
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST}, "r9", "2026-01-02")], "b1")
    receipt = stage(lake, "r2", {ALICE: SECOND}, "r8", "2026-01-01", {ALICE: "b1"})
    assert staged(lake) == [receipt]
    flush(lake, database, staged(lake), "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND)}
    assert load_repos(database, [ALICE])[ALICE].rev == "r8"


def test_groups_bound_what_is_in_memory(
    place: tuple[Lake, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, database = place
    monkeypatch.setattr(flush_module, "GROUP_BYTES", 1)
    flush(lake, database, [stage(lake, f"r{n}", {make_did(n): FIRST}) for n in range(3)], "b1")
    assert in_lake(Path(lake.root)) == {make_did(n): as_found(FIRST) for n in range(3)}
    assert len(list(Path(lake.root).glob("raw_sync/**/*.parquet"))) == 9
    flush(lake, database, [stage(lake, "r9", {make_did(1): SECOND}, "r2", "2026-01-02")], "b2")
    assert in_lake(Path(lake.root))[make_did(1)] == as_found(SECOND)


def test_what_is_staged_without_a_receipt_was_not_acknowledged(
    place: tuple[Lake, Database],
) -> None:
    lake, database = place
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
    place: tuple[Lake, Database], tmp_path: Path
) -> None:
    lake, database = place
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST, BOB: FIRST})], "b1")
    flush(lake, database, [stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-02")], "b2")
    fresh = open_database(f"sqlite:///{tmp_path}/fresh.db")
    create_tables(fresh)
    recover(lake, fresh)
    assert load_repos(fresh, [ALICE, BOB]) == load_repos(database, [ALICE, BOB])


def test_files_that_were_removed_are_fetched_again(place: tuple[Lake, Database]) -> None:
    lake, database = place
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    lake.delete("raw_sync/_batches/b1.json")
    recover(lake, database)
    found = load_repos(database, [ALICE])[ALICE]
    assert (found.rev, found.batch) == (None, None)


def test_a_status_of_later_does_not_lose_what_the_lake_holds(place: tuple[Lake, Database]) -> None:
    lake, database = place
    [state] = flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    with database.transaction():
        save_repos(database, [with_status(state, "deactivated", None, "2026-01-02")])
    flush(lake, database, [stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-03")], "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND)}
    assert load_repos(database, [ALICE])[ALICE].status == "ok"


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
