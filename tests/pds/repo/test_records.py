from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from datasets.repos.coverage import RECORD_TYPES, RecordCoverage, covering
from datasets.repos.record_schemas import STAGED_SCHEMA, record_schema
from pds.repo.car import read_repo
from pds.repo.records import RecordCounts, record_tables
from tests.pds.repos import cid, make_did, make_repo, post, posts
from tests.pds.support import WITH_CAR, car, expected, identity, needs_fixtures

DID = make_did(2)
EVERYTHING = covering(RECORD_TYPES, None, None)
SYNCED = "2026-11-23-13:00:00"
SUBJECT = {"uri": "at://did:plc:x/app.bsky.feed.post/3k2", "cid": "bafy"}


def made_rows(
    records: dict[str, Any], coverage: RecordCoverage = EVERYTHING
) -> tuple[list[dict[str, Any]], RecordCounts]:
    made = make_repo(DID, records)
    counts = RecordCounts()
    tables = list(
        record_tables(read_repo(made.car(), DID, made.key.did_key), coverage, SYNCED, counts)
    )
    assert all(table.schema == STAGED_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()], counts


def kind_of(record: dict[str, Any]) -> str | None:
    name = record["uri"].split("/")[3]
    if name == "app.bsky.feed.post":
        return "reply" if "reply" in record["value"] else "post"
    last = name.rpartition(".")[2]
    return last if name.startswith("app.bsky.") and last in RECORD_TYPES else None


@needs_fixtures
@pytest.mark.parametrize("name", WITH_CAR)
def test_the_rows_of_the_fixtures(name: str) -> None:
    who, counts = identity(name), RecordCounts()
    repo = read_repo(car(name), who.did, who.key)
    found = [
        row
        for table in record_tables(repo, EVERYTHING, SYNCED, counts)
        for row in table.to_pylist()
    ]
    wanted = [record for record in expected(name) if kind_of(record)]
    assert sorted((row["uri"], row["cid"], row["record_type"]) for row in found) == sorted(
        (record["uri"], record["cid"], kind_of(record)) for record in wanted
    )
    values = {record["uri"]: record["value"] for record in wanted}
    for row in found:
        value = values[row["uri"]]
        assert row["author"] == who.did
        assert (row["rev"], row["verified"], row["synctimestamp"]) == (repo.rev, True, SYNCED)
        assert row["created_at"] == value["createdAt"]
        assert row["text"] == value.get("text")
        assert row["langs"] == (",".join(value["langs"]) if value.get("langs") else None)
        assert row["tags"] == (",".join(value["tags"]) if value.get("tags") else None)
        for field in ("facets", "embed", "entities", "labels", "reply", "subject"):
            assert (json.loads(row[field]) if row[field] else None) == value.get(field)
    assert sum(counts.skipped.values()) == len(expected(name)) - len(wanted)
    assert counts.unreadable_dates == counts.malformed == 0


def test_a_day_is_inclusive_and_in_utc() -> None:
    records = {
        "app.bsky.feed.post/a": post("before", createdAt="2024-10-01T23:59:59Z"),
        "app.bsky.feed.post/b": post("first", createdAt="2024-10-02T00:00:00Z"),
        "app.bsky.feed.post/c": post("also the first", createdAt="2024-10-01T23:00:00-07:00"),
        "app.bsky.feed.post/d": post("last", createdAt="2024-10-03T23:59:59.999Z"),
        "app.bsky.feed.post/e": post("after", createdAt="2024-10-04T00:00:00Z"),
    }
    found, counts = made_rows(records, covering(RECORD_TYPES, "2024-10-02", "2024-10-03"))
    assert [(row["text"], row["partition_date"]) for row in found] == [
        ("first", "2024-10-02"),
        ("also the first", "2024-10-02"),
        ("last", "2024-10-03"),
    ]
    assert counts.records == {"post": 3}


@pytest.mark.parametrize(
    "created", ["yesterday", "2024-13-01T00:00:00Z", "", None, 5, ["2024-10-01T00:00:00Z"]]
)
def test_a_record_whose_date_cannot_be_read_is_kept_under_the_day_of_the_sync(created: Any) -> None:
    record = {**post("when?"), "createdAt": created}
    [row], counts = made_rows(
        {"app.bsky.feed.post/a": record}, covering(RECORD_TYPES, "2024-10-01", "2024-10-01")
    )
    assert row["partition_date"] == "2026-11-23"
    assert row["created_at"] == (created if isinstance(created, str) else None)
    assert counts.unreadable_dates == 1


def test_the_year_0_is_a_date_and_no_partition() -> None:
    record = {**post("long ago"), "createdAt": "0000-01-01T00:00:00.000Z"}
    [row], counts = made_rows({"app.bsky.feed.post/a": record})
    assert (row["partition_date"], row["created_at"]) == ("2026-11-23", record["createdAt"])
    assert counts.unreadable_dates == 0
    found, _ = made_rows(
        {"app.bsky.feed.post/a": record}, covering(RECORD_TYPES, "2024-10-01", None)
    )
    assert found == []


def test_types_that_are_not_wanted_and_other_lexicons() -> None:
    records = {
        **posts(2),
        "app.bsky.feed.post/zz": post("a reply", reply={"root": SUBJECT, "parent": SUBJECT}),
        "app.bsky.feed.like/a": {"createdAt": "2024-10-01T00:00:00Z", "subject": SUBJECT},
        "app.bsky.actor.profile/self": {"displayName": "x"},
        "com.example.thing/a": {"x": 1},
        "com.example.thing/b": {"x": 2},
    }
    found, counts = made_rows(records, covering(["reply", "like"], None, None))
    assert [row["record_type"] for row in found] == ["like", "reply"]
    assert counts.records == {"reply": 1, "like": 1}
    assert counts.skipped == {"app.bsky.actor.profile": 1, "com.example.thing": 2}


def test_the_subject_is_json_whatever_it_is() -> None:
    records = {
        "app.bsky.feed.repost/a": {"createdAt": "2024-10-01T00:00:00Z", "subject": SUBJECT},
        "app.bsky.graph.follow/a": {"createdAt": "2024-10-01T00:00:00Z", "subject": "did:plc:x"},
    }
    found, _ = made_rows(records)
    assert [json.loads(row["subject"]) for row in found] == [SUBJECT, "did:plc:x"]


def test_values_of_wrong_types_are_kept_and_counted() -> None:
    records = {
        "app.bsky.feed.like/a": {"createdAt": "2024-10-01T00:00:00Z"},
        "app.bsky.feed.post/a": {
            "createdAt": "2024-10-01T00:00:00Z",
            "text": 5,
            "langs": "en",
            "tags": [1, "x"],
        },
        "app.bsky.feed.post/b": {
            "createdAt": "2024-10-01T00:00:00Z",
            "text": "nul \x00 and 😀",
            "langs": [],
        },
        "app.bsky.feed.post/c": [1, 2],
    }
    found, counts = made_rows({path: value for path, value in records.items() if path[-1] != "c"})
    like, odd, fine = found
    assert like["subject"] is None
    assert (odd["text"], odd["langs"], odd["tags"]) == (None, '"en"', '[1, "x"]')
    assert (fine["text"], fine["langs"]) == ("nul \x00 and 😀", None)
    assert counts.malformed == 2
    import libipld

    found, counts = made_rows({"app.bsky.feed.post/c": libipld.encode_dag_cbor([1, 2])})
    assert (found, counts.malformed) == ([], 1)


def test_links_and_bytes_in_json() -> None:
    link = cid(b"an image", 0x55)
    embed = {"image": {"$type": "blob", "ref": link, "size": 8}, "key": b"\x00\xff"}
    [row], _ = made_rows({"app.bsky.feed.post/a": post("x", embed=embed)})
    ref = json.loads(row["embed"])["image"]["ref"]["$link"]
    assert ref.startswith("bafkrei")
    assert json.loads(row["embed"])["key"] == {"$bytes": "AP8"}


def test_a_value_too_deep_for_json_is_dropped_alone() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [{"x": deep}]
    [row], _ = made_rows({"app.bsky.feed.post/a": post("x", embed=deep)})
    assert row["text"] == "x"


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_schemas(kind: str) -> None:
    names = record_schema(kind).names
    assert names[:6] == ["uri", "cid", "author", "created_at", "record_type", "synctimestamp"]
    assert names[-2:] == ["rev", "verified"]
    posts_own = ["text", "langs", "tags", "facets", "embed", "entities", "labels"]
    own = {"post": posts_own, "reply": [*posts_own, "reply"]}.get(kind, ["subject"])
    assert names[6:-2] == own
    assert record_schema(kind).field("verified").type == pa.bool_()


def test_collections_without_end_are_counted_together() -> None:
    records = {f"com.example.c{n}/a": {"x": n} for n in range(80)}
    _, counts = made_rows(records)
    assert counts.skipped.total() == 80
    assert len(counts.skipped) == 51
    assert counts.skipped["others"] == 30
