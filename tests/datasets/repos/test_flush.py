"""Staged repositories that are flushed into the lake, and replace earlier ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from backfill.repos.writer import report_outdated
from datasets.database import Database
from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.repos import flush as flush_module
from datasets.repos.coverage import covering
from datasets.repos.flush import flush, outdated, recover
from datasets.repos.staging import staged
from datasets.repos.state import RepoState, load_repos, save_repos, with_status
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
from tests.pds.repos import make_did


def test_users_share_files_one_for_each_type_and_day(stores: tuple[Lake, Database]) -> None:
    lake, database = stores
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
    stores: tuple[Lake, Database],
) -> None:
    lake, database = stores
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST, BOB: FIRST, CAROL: {}})], "b1")
    flush(lake, database, [stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-02")], "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND), BOB: as_found(FIRST)}
    states = load_repos(database, [ALICE, BOB, CAROL])
    assert {did: (state.batch, state.rev) for did, state in states.items()} == {
        ALICE: ("b2", "r2"),
        BOB: ("b1", "r1"),
        CAROL: ("b1", "r1"),
    }
    # A batch without repositories has no manifest and no files.
    flush(lake, database, [stage(lake, "r3", {BOB: {}, CAROL: {}}, "r3", "2026-01-03")], "b3")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND)}
    assert sorted(lake.files("raw_sync/_batches", ".json")) == [
        f"raw_sync/_batches/b{n}.json" for n in (2, 3)
    ]


def test_files_of_other_tools_are_not_changed(stores: tuple[Lake, Database]) -> None:
    lake, database = stores
    path = Path(lake.root) / "raw_sync/create/post/cache/partition_date=2024-10-01/firehose.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows(ALICE, FIRST, "old").select(["uri", "author"]), path)
    before = path.read_bytes()
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    flush(lake, database, [stage(lake, "r2", {ALICE: {}}, "r2", "2026-01-02")], "b2")
    assert path.read_bytes() == before


@pytest.mark.parametrize("clock", ["forwards", "back", "still"])
def test_the_later_of_two_stagings_counts_whatever_the_clock_says(
    stores: tuple[Lake, Database], clock: str
) -> None:
    lake, database = stores
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
    stores: tuple[Lake, Database],
) -> None:
    lake, database = stores
    with database.transaction():
        save_repos(
            database, [with_status(RepoState(ALICE), "unreachable", "no answer", "2099-01-01")]
        )
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(FIRST)}
    assert load_repos(database, [ALICE])[ALICE].status == "ok"


def test_rows_older_than_the_lake_are_left_out_and_reported(stores: tuple[Lake, Database]) -> None:
    """A decoder has outlived its driver, and another run has fetched the same users since."""
    lake, database = stores
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


def test_a_host_that_returned_to_an_earlier_revision_is_accepted(
    stores: tuple[Lake, Database],
) -> None:
    """It may have restored a backup. The fetch was to replace what the lake has, so it is newer."""
    lake, database = stores
    flush(lake, database, [stage(lake, "r1", {ALICE: FIRST}, "r9", "2026-01-02")], "b1")
    receipt = stage(lake, "r2", {ALICE: SECOND}, "r8", "2026-01-01", {ALICE: "b1"})
    assert staged(lake) == [receipt]
    flush(lake, database, staged(lake), "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND)}
    assert load_repos(database, [ALICE])[ALICE].rev == "r8"


def test_groups_limit_memory(
    stores: tuple[Lake, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, database = stores
    monkeypatch.setattr(flush_module, "GROUP_BYTES", 1)
    flush(lake, database, [stage(lake, f"r{n}", {make_did(n): FIRST}) for n in range(3)], "b1")
    assert in_lake(Path(lake.root)) == {make_did(n): as_found(FIRST) for n in range(3)}
    assert len(list(Path(lake.root).glob("raw_sync/**/*.parquet"))) == 9
    flush(lake, database, [stage(lake, "r9", {make_did(1): SECOND}, "r2", "2026-01-02")], "b2")
    assert in_lake(Path(lake.root))[make_did(1)] == as_found(SECOND)


def test_a_later_status_keeps_the_state_of_the_lake(stores: tuple[Lake, Database]) -> None:
    lake, database = stores
    [state] = flush(lake, database, [stage(lake, "r1", {ALICE: FIRST})], "b1")
    with database.transaction():
        save_repos(database, [with_status(state, "deactivated", None, "2026-01-02")])
    flush(lake, database, [stage(lake, "r2", {ALICE: SECOND}, "r2", "2026-01-03")], "b2")
    assert in_lake(Path(lake.root)) == {ALICE: as_found(SECOND)}
    assert load_repos(database, [ALICE])[ALICE].status == "ok"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
@pytest.mark.parametrize(
    "path", ["queues/pds/flush-b1.json", "queues/pds/r1.json", "raw_sync/_batches/b1.json"]
)
def test_a_damaged_record_is_named(
    stores: tuple[Lake, Database], path: str, content: bytes
) -> None:
    lake, database = stores
    lake.write_bytes(path, content)
    named = rf"{path} is not a record of `pds sync` .*; move it .*elsewhere"
    read = staged if path.endswith("r1.json") else partial(recover, database=database)
    with pytest.raises(ConfigError, match=named):
        read(lake)
