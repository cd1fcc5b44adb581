"""What a copy copies: each post once, wherever the target or the source holds it, and however it is interrupted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.integrations import resolve
from backfill.labels.copy import Copied, copy
from backfill.labels.post_filter import BadFiles
from datasets import uri_index
from datasets.errors import BackfillError, ConfigError, FileGone
from datasets.lake import Lake
from datasets.locking import leases
from datasets.uri_index import UriIndex, every_hash, repeated_hashes
from tests.s3_server import BUCKET, Endpoint
from tests.support import DAY, VALENCE, make_uri, write_partition

DAYS = [DAY, "2024-10-02", "2024-10-03"]


def label(numbers: Sequence[int], model: str) -> list[dict[str, Any]]:
    return [
        {"uri": make_uri(n), "text": "t", "was_successfully_labeled": True, "label_model": model}
        for n in numbers
    ]


def copy_labels(
    source: Lake | Path, target: Lake | Path, start: str | None = None, *, skip: bool = False
) -> Copied:
    lakes = [lake if isinstance(lake, Lake) else Lake(str(lake)) for lake in (source, target)]
    return copy(*lakes, [resolve(VALENCE)], start, None, BadFiles(skip), io.StringIO())[VALENCE]


def rows(lake: Lake | Path) -> list[tuple[str, int, str]]:
    """(date, post, model) of each label row, sorted."""
    lake = lake if isinstance(lake, Lake) else Lake(str(lake))
    numbers = {make_uri(n): n for n in range(200)}
    schema = pa.schema([("uri", pa.string()), ("label_model", pa.string())])
    return sorted(
        (day, numbers[row["uri"]], row["label_model"])
        for day, paths in lake.partitions(VALENCE).items()
        for path in paths
        for batch in lake.read(path, schema)
        for row in batch.to_pylist()
    )


@pytest.fixture(params=["hashes", "equal-hashes"])
def hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all hashes collide: strings decide."""
    if request.param == "equal-hashes":
        monkeypatch.setattr(uri_index, "hash_uris", lambda uris: np.zeros(len(uris), np.uint64))


@pytest.mark.usefixtures("hashes")
def test_what_the_target_holds_in_any_partition_is_not_copied(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_partition(one, VALENCE, DAYS[0], label(range(10), "a"))
    write_partition(one, VALENCE, DAYS[1], label(range(10, 20), "a"))
    write_partition(two, VALENCE, DAYS[2], label([1, 2, 11], "b"), tier="active")
    write_partition(two, VALENCE, "2023-01-01", label([3], "b"))
    write_partition(two, VALENCE, DAYS[0], label([4, 100], "b"))
    staged = pq.read_table(write_partition(tmp_path / "x", VALENCE, DAY, label([5, 15], "b")))
    queue = two / "queues" / "output" / VALENCE
    queue.mkdir(parents=True)
    pq.write_table(
        staged.append_column("partition_date", [["2022-02-02"] * 2]), queue / "run-1-abc.parquet"
    )

    copied = copy_labels(one, two)
    assert (copied.rows, copied.already) == (20 - 7, 7)
    held = [(DAYS[2], n, "b") for n in (1, 2, 11)] + [
        ("2023-01-01", 3, "b"),
        (DAYS[0], 4, "b"),
        (DAYS[0], 100, "b"),
    ]
    fresh = [(DAYS[n // 10], n, "a") for n in range(20) if n not in (1, 2, 3, 4, 5, 11, 15)]
    assert rows(two) == sorted(held + fresh)
    again = copy_labels(one, two)
    assert (again.rows, again.already) == (0, 20)


@pytest.mark.usefixtures("hashes")
def test_what_the_source_holds_twice_is_one_row_of_the_first_date(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_partition(one, VALENCE, DAYS[0], label([*range(10), 3], "first"))
    write_partition(one, VALENCE, DAYS[0], label(range(8, 12), "other file"), "part-1")
    write_partition(one, VALENCE, DAYS[1], label(range(5, 20), "second"))
    write_partition(one, VALENCE, DAYS[2], label(range(25), "third"), tier="active")
    for _ in range(2):
        copy_labels(one, two)
        assert rows(two) == sorted(
            [(DAYS[0], n, "first") for n in range(10)]
            + [(DAYS[0], n, "other file") for n in (10, 11)]
            + [(DAYS[1], n, "second") for n in range(12, 20)]
            + [(DAYS[2], n, "third") for n in range(20, 25)]
        )


def test_the_first_date_is_that_of_the_range_that_is_copied(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for day, model in zip(DAYS, "abc", strict=True):
        write_partition(one, VALENCE, day, label(range(5), model))
    copy_labels(one, two, DAYS[1])
    copy_labels(one, two)
    assert rows(two) == [(DAYS[1], n, "b") for n in range(5)]


def test_what_a_skipped_file_holds_is_copied_from_another_date(tmp_path: Path) -> None:
    """A column other than the URIs is damaged: the file passes until it is copied."""
    one, two = tmp_path / "one", tmp_path / "two"
    path = write_partition(one, VALENCE, DAYS[0], label(range(5), "damaged"))
    write_partition(one, VALENCE, DAYS[0], label(range(5, 8), "whole"), "part-1")
    write_partition(one, VALENCE, DAYS[1], label(range(10), "second"))
    column = pq.read_metadata(path).row_group(0).column(3)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 12] = b"\xff" * 12
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"part-0\.parquet: not a readable Parquet file"):
        copy_labels(one, two)
    copied = copy_labels(one, two, skip=True)
    assert copied.rows + copied.already == 3 + 10
    expected = [(DAYS[0], n, "whole") for n in (5, 6, 7)] + [
        (DAYS[1], n, "second") for n in (*range(5), 8, 9)
    ]
    assert rows(two) == expected


def test_a_bad_label_file_of_the_target_is_named_or_gone_on_without(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_partition(one, VALENCE, DAY, label(range(5), "a"))
    write_partition(two, VALENCE, DAY, label([1], "b"))
    bad = write_partition(two, VALENCE, DAY, label([2], "b"), "bad")
    bad.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"bad\.parquet: not a readable Parquet file"):
        copy_labels(one, two)
    copied = copy_labels(one, two, skip=True)
    assert (copied.rows, copied.already) == (4, 1)
    bad.unlink()
    assert rows(two) == [(DAY, n, "b" if n == 1 else "a") for n in range(5)]


def test_copies_of_copies_have_names_of_their_own_that_do_not_grow(tmp_path: Path) -> None:
    lakes = [tmp_path / name for name in "abcd"]
    write_partition(lakes[0], VALENCE, DAY, label(range(5), "m"), "labels-0")
    for source, target in pairwise(lakes):
        copy_labels(source, target)
        write_partition(lakes[0], VALENCE, DAY, label(range(10), "m"), "labels-0")
        copy_labels(lakes[0], target)
    names = sorted(path.name for path in lakes[-1].rglob("*.parquet"))
    assert len(rows(lakes[-1])) == 10
    assert len({len(name) for name in names}) == 1
    assert all(name.startswith("labels-0-copy-") for name in names)


def test_text_views_are_copied_in_part(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    path = write_partition(one, VALENCE, DAY, label(range(5), "a"))
    table = pq.read_table(path)
    pq.write_table(table.cast(pa.schema([f.with_type(pa.string_view()) if f.type == pa.string() else f
                                         for f in table.schema])), path)  # fmt: skip
    write_partition(two, VALENCE, DAY, label([1], "b"))
    assert copy_labels(one, two).rows == 4
    assert rows(two) == [(DAY, n, "b" if n == 1 else "a") for n in range(5)]


@dataclass(frozen=True)
class Watched(Lake):
    """Calls back before it writes a label file."""

    on_write: Callable[[], None] = field(default=lambda: None)

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        if path.endswith(".parquet"):
            self.on_write()
        super().write_bytes(path, data)


def test_a_source_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_partition(one, VALENCE, DAY, label(range(5), "a"), "part-0")
    write_partition(one, VALENCE, DAY, label(range(5, 9), "a"), "part-1")

    def rewrite() -> None:
        write_partition(one, VALENCE, DAY, label(range(50, 54), "a"), "part-1")

    with pytest.raises(ConfigError, match=r"part-1\.parquet changed while it was copied"):
        copy_labels(one, Watched(str(two), on_write=rewrite))
    copy_labels(one, two)
    assert rows(two) == [(DAY, n, "a") for n in (*range(5), *range(50, 54))]


def test_a_copy_that_was_overtaken_leaves_no_doubles(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between asking for its lock and writing, until another has copied all and ended."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(leases, "SURE_SECONDS", 0.5)
    one, two = tmp_path / "one", Lake(f"s3://{BUCKET}/{tmp_path.name}")
    for file in range(3):
        write_partition(
            one, VALENCE, DAY, label(range(file * 5, file * 5 + 5), "a"), f"part-{file}"
        )
    writes = iter(range(10))
    found: list[Copied] = []

    def overtake() -> None:
        if next(writes) == 1:
            found.append(copy_labels(one, two))

    with pytest.raises(ConfigError, match=f"another run has taken over {VALENCE}"):
        copy_labels(one, Watched(two.root, on_write=overtake))
    assert (found[0].rows, found[0].already) == (10, 5)
    assert rows(two) == [(DAY, n, "a") for n in range(15)]


def test_an_index_holds_16_bytes_a_row_at_the_most(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    places: dict[str, list[str]] = {}
    for place in range(4):
        uris = [f"at://did:plc:x/{place}-{n}" for n in range(5000)] + ["in all of them", None]
        lake.write_parquet(f"x/{place}.parquet", pa.table({"uri": pa.array(uris, pa.string())}))
        places[str(place)] = [f"x/{place}.parquet"]
    index = UriIndex(lake, places, every_hash)
    assert index.nbytes <= 16 * 4 * 5001
    assert UriIndex(lake, places, repeated_hashes).nbytes <= 8 * 4 * 5001 + 8
    asked = pa.chunked_array(
        [["at://did:plc:x/2-7", "nowhere"], [], ["in all of them"]], pa.string()
    )
    assert index.holds(asked, places).tolist() == [True, False, True]
    assert index.holds(asked, ["0", "no place"]).tolist() == [False, False, True]
    assert index.holds(asked, []).tolist() == [False, False, False]
    assert index.holds(asked.slice(0, 0), places).tolist() == []
    (tmp_path / "x" / "1.parquet").unlink()
    with pytest.raises(FileGone, match=r"1\.parquet was removed"):
        UriIndex(lake, places, every_hash)
    left = UriIndex(lake, places, every_hash, may_go=True)
    assert left.holds(asked, places).tolist() == [True, False, True]
    with pytest.raises(FileGone, match=r"1\.parquet was removed"):
        index.holds(pa.chunked_array([["at://did:plc:x/1-7"]]), places)
    none: Mapping[str, Sequence[str]] = {}
    assert UriIndex(lake, none, every_hash).holds(asked, none).tolist() == [False] * 3


def test_what_fails_to_be_written_leaves_nothing(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_partition(one, VALENCE, DAY, label(range(5), "a"))

    def fail() -> None:
        raise BackfillError("the disk is full")

    with pytest.raises(BackfillError, match="the disk is full"):
        copy_labels(one, Watched(str(two), on_write=fail))
    assert list(two.rglob("*.parquet")) == []
