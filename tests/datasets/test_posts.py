from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import posts
from datasets.errors import BadFile, ConfigError
from datasets.lake import Lake
from datasets.posts import (
    Sample,
    Selection,
    Sources,
    day_after,
    no_uris,
    post_sources,
    read_part,
    select,
    split_part,
)
from tests.s3_server import BUCKET, Endpoint
from tests.support import DAY, make_uri, post, write_partition, write_posts

DAYS = ["2024-10-01", "2024-10-02", "2024-10-03", "2024-10-04"]


def these(by_day: dict[str, Iterable[str]]) -> posts.UrisOf:
    return lambda day: pa.chunked_array([pa.array(sorted(by_day.get(day, ())), pa.string())])


def sources(
    root: Path,
    start: str = DAYS[0],
    end: str = DAYS[-1],
    record_type: str = "posts",
    lookback: int = 4,
) -> Sources:
    return post_sources(Lake(str(root)), record_type, start, end, lookback, posts.raise_bad_file)


def chosen(root: Path, selection: Selection) -> list[dict[str, Any]]:
    lake = Lake(str(root))
    return [
        row
        for part in selection.parts
        for table in read_part(lake, part)
        for row in table.to_pylist()
    ]


def uris(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [row["uri"] for row in rows]


def test_only_whole_posts_of_the_range_are_eligible(lake_dir: Path) -> None:
    rows = [
        post(0),
        post(1, text="   \n\t"),
        post(2, text="\u3000\u00a0"),
        post(3, text=None),
        post(4, text=""),
        post(5, preprocessing_timestamp=None),
        post(6, uri=None),
        post(7, text="\x00"),
        post(8, text="\u200f"),
    ]
    write_posts(lake_dir, DAYS[1], rows)
    write_posts(lake_dir, "2024-09-30", [post(20)])
    write_posts(lake_dir, "2024-10-05", [post(21)])
    found = select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"]
    assert uris(chosen(lake_dir, found)) == [make_uri(n) for n in (0, 7, 8)]
    assert found.by_date() == {DAYS[1]: 3}


def test_a_read_post_is_unchanged_and_knows_its_partition(lake_dir: Path) -> None:
    texts = ["a\x00b", "quo\"te'", "עברית و العربية", "\\n \n", "x" * 20_000, " padded "]
    write_posts(lake_dir, DAY, [post(n, text=text) for n, text in enumerate(texts)])
    rows = chosen(lake_dir, select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"])
    assert [row["text"] for row in rows] == texts
    assert {row["partition_date"] for row in rows} == {DAY}


def test_the_first_of_a_uri_is_taken_within_and_across_partitions(lake_dir: Path) -> None:
    write_posts(lake_dir, DAYS[0], [post(0, text="first"), post(0, text="again")], name="a")
    write_posts(lake_dir, DAYS[0], [post(0, text="other file"), post(1)], name="b")
    write_posts(lake_dir, DAYS[1], [post(1, text="later"), post(2)])
    write_posts(lake_dir, DAYS[2], [post(0, text="much later"), post(2, text="later too")])
    rows = chosen(lake_dir, select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"])
    assert [(row["uri"], row["partition_date"]) for row in rows] == [
        (make_uri(0), DAYS[0]), (make_uri(1), DAYS[0]), (make_uri(2), DAYS[1]),
    ]  # fmt: skip
    assert rows[0]["text"] == "first"


def test_a_blank_first_occurrence_does_not_hide_a_whole_one(lake_dir: Path) -> None:
    write_posts(lake_dir, DAYS[0], [post(0, text=" ")])
    write_posts(lake_dir, DAYS[1], [post(0)])
    assert select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"].by_date() == {
        DAYS[1]: 1
    }


def test_a_uri_labelled_in_any_partition_of_the_range_is_left_out(lake_dir: Path) -> None:
    write_posts(lake_dir, DAYS[0], [post(0), post(1)])
    write_posts(lake_dir, DAYS[1], [post(0), post(2)])
    excluded = {
        "early": these({DAYS[0]: [make_uri(0)]}),
        "late": these({DAYS[1]: [make_uri(0)]}),
        "none": no_uris,
    }
    found = select(Lake(str(lake_dir)), sources(lake_dir), excluded)
    assert {name: uris(chosen(lake_dir, selection)) for name, selection in found.items()} == {
        "early": [make_uri(1), make_uri(2)],
        "late": [make_uri(1), make_uri(2)],
        "none": [make_uri(0), make_uri(1), make_uri(2)],
    }


def test_equal_hashes_are_not_taken_for_equal_uris(
    lake_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.setattr(posts, "hash_uris", lambda uris, *_: np.zeros(len(uris), np.uint64))
    write_posts(lake_dir, DAYS[0], [post(0), post(1), post(0)])
    write_posts(lake_dir, DAYS[1], [post(1), post(2)])
    found = select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"]
    assert uris(chosen(lake_dir, found)) == [make_uri(0), make_uri(1), make_uri(2)]


def test_feeds_select_by_the_dates_of_feeds_and_look_back(lake_dir: Path) -> None:
    for index, day in enumerate(DAYS):
        write_posts(lake_dir, day, [post(10 * index + n) for n in range(3)])
    write_partition(
        lake_dir,
        "fetch_posts_used_in_feeds",
        DAYS[2],
        [{"uri": make_uri(n)} for n in (0, 10, 20, 30, 999)],
    )
    write_partition(
        lake_dir, "fetch_posts_used_in_feeds", DAYS[3], [{"uri": make_uri(n)} for n in (10, 31)]
    )
    lake = Lake(str(lake_dir))

    def pick(start: str, end: str, lookback: int) -> list[str]:
        where = sources(lake_dir, start, end, "posts_used_in_feeds", lookback)
        return uris(chosen(lake_dir, select(lake, where, {"x": no_uris})["x"]))

    assert pick(DAYS[2], DAYS[2], 4) == [make_uri(n) for n in (0, 10, 20)], (
        "30 is of the day after the feed"
    )
    assert pick(DAYS[2], DAYS[2], 1) == [make_uri(n) for n in (10, 20)]
    assert pick(DAYS[2], DAYS[3], 2) == [make_uri(n) for n in (0, 10, 20, 31)], (
        "10 once, though two feeds show it"
    )
    assert pick(DAYS[3], DAYS[3], 1) == [make_uri(31)]


def test_a_sample_is_the_same_for_every_integration_and_grows_with_its_proportion(
    lake_dir: Path,
) -> None:
    write_posts(lake_dir, DAYS[0], [post(n) for n in range(2000)])
    lake = Lake(str(lake_dir))

    def pick(proportion: float, seed: int = 0) -> dict[str, set[str]]:
        excluded = {"a": no_uris, "b": these({DAYS[0]: [make_uri(n) for n in range(1000)]})}
        found = select(lake, sources(lake_dir), excluded, Sample(proportion, seed))
        return {name: set(uris(chosen(lake_dir, selection))) for name, selection in found.items()}

    tenth, third, other = pick(0.1), pick(0.3), pick(0.1, seed=1)
    assert 140 < len(tenth["a"]) < 260
    assert tenth["a"] < third["a"]
    assert tenth["b"] == tenth["a"] & {make_uri(n) for n in range(1000, 2000)}
    assert tenth["a"] != other["a"]
    assert len(pick(1.0)["a"]) == 2000


def test_a_limit_takes_the_earliest_dates_first(lake_dir: Path) -> None:
    for index, day in enumerate(DAYS):
        write_posts(lake_dir, day, [post(10 * index + n) for n in range(3)])
    lake = Lake(str(lake_dir))
    for limit, expected in (
        (0, {}),
        (2, {DAYS[0]: 2}),
        (5, {DAYS[0]: 3, DAYS[1]: 2}),
        (99, dict.fromkeys(DAYS, 3)),
    ):
        assert (
            select(lake, sources(lake_dir), {"x": no_uris}, limit=limit)["x"].by_date() == expected
        )


def test_files_with_many_row_groups_are_cut_into_parts_that_read_back_the_same(
    lake_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "PART_ROWS", 25)
    rows = [post(n, text="" if n % 3 == 0 else f"text {n}") for n in range(200)]
    path = write_posts(lake_dir, DAY, rows)
    pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=7)
    found = select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"]
    assert len(found.parts) > 4
    assert max(part.chosen for part in found.parts) <= 25
    assert uris(chosen(lake_dir, found)) == [row["uri"] for row in rows if row["text"]]


def test_a_part_is_split_after_any_of_its_posts(lake_dir: Path) -> None:
    write_posts(lake_dir, DAY, [post(n, text="" if n % 3 else f"text {n}") for n in range(40)])
    [part] = select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"].parts
    whole = chosen(lake_dir, Selection((part,)))
    for rows in range(1, part.chosen):
        head, tail = split_part(part, rows)
        assert (head.chosen, tail.chosen) == (rows, part.chosen - rows)
        assert [chosen(lake_dir, Selection((half,))) for half in (head, tail)] == [
            whole[:rows],
            whole[rows:],
        ]


def test_a_bad_file_stops_or_is_reported(lake_dir: Path) -> None:
    write_posts(lake_dir, DAYS[0], [post(0)], name="good")
    write_posts(lake_dir, DAYS[0], [post(1)], name="bad").write_bytes(b"PAR1")
    lake, skipped = Lake(str(lake_dir)), []
    with pytest.raises(BadFile, match=r"bad\.parquet"):
        select(lake, sources(lake_dir), {"x": no_uris})
    found = select(lake, sources(lake_dir), {"x": no_uris}, on_bad=skipped.append)["x"]
    assert (found.total, [error.path for error in skipped]) == (
        1,
        [str(lake_dir / f"preprocessed_posts/cache/partition_date={DAYS[0]}/bad.parquet")],
    )


@pytest.mark.parametrize("column", ["uri", "text", "preprocessing_timestamp"])
@pytest.mark.parametrize(
    "bytes_", [b"\xff\xfe", b"\xed\xa0\x80"], ids=["no character", "lone surrogate"]
)
def test_text_that_is_not_utf8_is_a_bad_file(lake_dir: Path, column: str, bytes_: bytes) -> None:
    write_posts(lake_dir, DAY, [post(1)], name="good")
    path = write_posts(lake_dir, DAY, [post(0)], name="bad")
    offsets = pa.py_buffer(bytes([0, 0, 0, 0, len(bytes_), 0, 0, 0]))
    bad = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(bytes_)])
    pq.write_table(
        pa.table({"uri": ["a"], "text": ["b"], "preprocessing_timestamp": ["t"], column: bad}), path
    )
    lake, skipped = Lake(str(lake_dir)), []
    with pytest.raises(
        BadFile, match=rf"bad\.parquet: column '{column}' holds text that is not UTF-8"
    ):
        select(lake, sources(lake_dir), {"x": no_uris})
    found = select(lake, sources(lake_dir), {"x": no_uris}, on_bad=skipped.append)["x"]
    assert uris(chosen(lake_dir, found)) == [make_uri(1)]
    assert len(skipped) == 1


def rewritten(path: Path, rows: list[dict[str, Any]], *, in_place: bool) -> None:
    """Other rows under the same name: as pandas writes a file over, or by a rename."""
    if in_place:
        write_posts(path.parents[3], DAY, rows)
    else:
        new = write_posts(path.parents[3], DAY, rows, name="new")
        new.replace(path)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("count", [5, 9])
def test_a_file_that_changed_after_the_selection_is_not_read_by_its_bits(
    lake_dir: Path, count: int, *, in_place: bool
) -> None:
    path = write_posts(lake_dir, DAY, [post(n) for n in range(5)])
    found = select(Lake(str(lake_dir)), sources(lake_dir), {"x": no_uris})["x"]
    rewritten(path, [post(n) for n in range(count)][::-1], in_place=in_place)
    with pytest.raises(ConfigError, match="changed while it was read"):
        chosen(lake_dir, found)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_changes_while_it_is_read_gives_no_post_by_the_wrong_bits(
    lake_dir: Path, monkeypatch: pytest.MonkeyPatch, *, in_place: bool
) -> None:
    monkeypatch.setattr("datasets.lake.READ_ROWS", 10)
    rows = [post(n, text="" if n % 2 else "text") for n in range(100)]
    path = write_posts(lake_dir, DAY, rows)
    pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=10)
    lake = Lake(str(lake_dir))
    [part] = select(lake, sources(lake_dir), {"x": no_uris})["x"].parts
    reading = read_part(lake, part)
    seen = next(reading).to_pylist()
    rewritten(path, rows[::-1], in_place=in_place)
    with pytest.raises(ConfigError, match="changed while it was read"):
        seen.extend(row for table in reading for row in table.to_pylist())
    assert {row["uri"] for row in seen} <= {row["uri"] for row in rows if row["text"]}


def test_an_object_that_is_replaced_after_the_selection_is_not_read_by_its_bits(
    s3: Endpoint, tmp_path: Path
) -> None:
    lake = Lake(f"s3://{BUCKET}/{tmp_path.name}")
    path = f"preprocessed_posts/cache/partition_date={DAY}/part-0.parquet"
    rows = [post(n) for n in range(5)]
    lake.write_parquet(path, pa.Table.from_pylist(rows))
    found = select(lake, Sources({DAY: [path]}), {"x": no_uris})["x"]
    assert [len(table) for part in found.parts for table in read_part(lake, part)] == [5]
    lake.write_parquet(
        path, pa.Table.from_pylist(rows[::-1])
    )  # in the same second, of the same size
    with pytest.raises(ConfigError, match="changed while it was read"):
        list(read_part(lake, found.parts[0]))


@pytest.mark.parametrize("bucket", [1, 7, 1_000_000])
def test_repeated_uris_are_resolved_in_buckets_of_any_size(
    lake_dir: Path, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "_BUCKET_POSTS", bucket)
    rng = random.Random(bucket)
    first: dict[str, str] = {}
    labelled: dict[str, set[str]] = {day: {make_uri(rng.randrange(60))} for day in DAYS}
    for day in DAYS:
        rows = [post(n) for n in rng.sample(range(60), 40)]
        write_posts(lake_dir, day, rows)
        for row in rows:
            first.setdefault(row["uri"], day)
        labelled[day] &= set(uris(rows))
    done = set().union(*labelled.values())
    found = select(Lake(str(lake_dir)), sources(lake_dir), {"x": these(labelled), "y": no_uris})
    for name, without in (("x", done), ("y", set())):
        rows = chosen(lake_dir, found[name])
        assert sorted((row["uri"], row["partition_date"]) for row in rows) == sorted(
            (uri, day) for uri, day in first.items() if uri not in without
        )


def test_uris_that_repeat_over_partitions_cost_no_more_memory_than_others(
    lake_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their strings were all held at once, a hundred bytes and more each."""
    monkeypatch.setattr(posts, "_BUCKET_POSTS", 2_000)
    count = 60_000
    for day in DAYS[:2]:
        write_posts(
            lake_dir,
            day,
            [
                post(0, uri=f"at://did:plc:{n:024}/app.bsky.feed.post/3k{n:011}")
                for n in range(count)
            ],
        )
    scans = [
        posts._scan(
            Lake(str(lake_dir)), day, sources(lake_dir), {"x": no_uris}, None, posts.raise_bad_file
        )
        for day in DAYS[:2]
    ]
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    posts._keep_first_partition(Lake(str(lake_dir)), scans)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [int(scan.wanted["x"].sum()) for scan in scans] == [count, 0]
    assert peak < 2 * count * 30, f"{peak / (2 * count):.0f} bytes a post"
    assert pa.total_allocated_bytes() - before < 2**20


def test_a_lake_without_posts_or_feeds_is_named(lake_dir: Path) -> None:
    with pytest.raises(ConfigError, match="preprocessed_posts does not exist"):
        sources(lake_dir)
    write_posts(lake_dir, DAY, [post(0)])
    with pytest.raises(ConfigError, match="fetch_posts_used_in_feeds does not exist"):
        sources(lake_dir, record_type="posts_used_in_feeds")


@pytest.mark.parametrize("seed", range(12))
def test_selection_agrees_with_the_rules_applied_one_post_at_a_time(
    tmp_path: Path, seed: int
) -> None:
    """An oracle in plain Python over random small lakes, with duplicates and labels everywhere."""
    rng = random.Random(seed)
    lake_rows: dict[str, list[dict[str, Any]]] = {}
    for day in DAYS:
        lake_rows[day] = []
        for name in ("a", "b"):
            rows = [
                post(
                    rng.randrange(30),
                    text=rng.choice(["x", "y", " ", None]),
                    preprocessing_timestamp=rng.choice(["t", "t", None]),
                )
                for _ in range(rng.randrange(12))
            ]
            write_posts(tmp_path, day, rows, name=name)
            lake_rows[day] += rows
    labelled = {day: {make_uri(rng.randrange(30)) for _ in range(3)} for day in DAYS}
    feeds = {day: {make_uri(rng.randrange(30)) for _ in range(10)} for day in DAYS}
    for day in DAYS:
        write_partition(
            tmp_path, "fetch_posts_used_in_feeds", day, [{"uri": uri} for uri in sorted(feeds[day])]
        )
    lake = Lake(str(tmp_path))
    for record_type in ("posts", "posts_used_in_feeds"):
        where = sources(tmp_path, DAYS[1], DAYS[3], record_type, 1)
        found = select(lake, where, {"x": these(labelled)})["x"]
        days = DAYS[1:] if record_type == "posts" else DAYS
        shown = {
            day: set().union(*(feeds[d] for d in DAYS[max(1, i) : i + 2])) for i, day in enumerate(DAYS)
        }  # fmt: skip
        first: dict[str, str] = {}
        done: set[str] = set()
        for day in days:
            for row in lake_rows[day]:
                whole = row["preprocessing_timestamp"] and (row["text"] or "").strip()
                if not whole or (record_type != "posts" and row["uri"] not in shown[day]):
                    continue
                first.setdefault(row["uri"], day)
                if row["uri"] in labelled[day]:
                    done.add(row["uri"])
        expected = Counter((day, uri) for uri, day in first.items() if uri not in done)
        assert (
            Counter((row["partition_date"], row["uri"]) for row in chosen(tmp_path, found))
            == expected
        )


@pytest.mark.parametrize(
    ("day", "days", "expected"),
    [
        (DAY, -4, "2024-09-27"),
        ("0001-01-02", -1, "0001-01-01"),
        ("0001-01-02", -4, "0001-01-01"),
        (DAY, -(10**30), "0001-01-01"),
        ("9999-12-30", 4, "9999-12-31"),
    ],
)
def test_days_end_where_the_calendar_does(day: str, days: int, expected: str) -> None:
    assert day_after(day, days) == expected


@pytest.mark.parametrize("lookback", [4, 10**9])
def test_posts_of_feeds_are_found_at_both_ends_of_the_calendar(
    tmp_path: Path, lookback: int
) -> None:
    for day in ("0001-01-02", "9999-12-31"):
        write_posts(tmp_path, day, [post(1)])
        write_partition(tmp_path, "fetch_posts_used_in_feeds", day, [{"uri": make_uri(1)}])
        found = sources(tmp_path, day, day, "posts_used_in_feeds", lookback)
        assert found.members
        assert found.members(day).to_pylist() == [make_uri(1)]
