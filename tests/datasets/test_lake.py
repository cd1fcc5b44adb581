from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import errors
from datasets.lake import Lake, partition_date
from tests.s3_server import BUCKET, Endpoint
from tests.support import DAY, ROOT, post, write_posts

URI_TEXT = pa.schema([("uri", pa.string()), ("text", pa.string())])


def read(lake: Lake, path: str, schema: pa.Schema = URI_TEXT, **options: object) -> pa.Table:
    return pa.Table.from_batches(lake.read(path, schema, **options), schema)  # type: ignore[arg-type]


def relative(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


def test_a_written_file_reads_back_and_leaves_nothing_aside(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    table = pa.table({"uri": ["a", "b"], "text": ["x", None]}, schema=URI_TEXT)
    lake.write_parquet("d/cache/partition_date=2024-10-01/f.parquet", table, {"key": "value"})
    assert read(lake, "d/cache/partition_date=2024-10-01/f.parquet") == table
    with lake.open_parquet("d/cache/partition_date=2024-10-01/f.parquet") as file:
        assert file.schema_arrow.metadata[b"key"] == b"value"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["f.parquet"]


def test_writing_replaces_and_never_shows_a_part(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write_bytes("f", b"old")
    seen = lake.read_bytes("f")
    lake.write_bytes("f", b"new and longer")
    assert (seen, lake.read_bytes("f")) == (b"old", b"new and longer")


def test_partitions_hold_both_tiers_of_the_range_and_only_data_files(tmp_path: Path) -> None:
    for day, tier in (
        ("2024-09-30", "cache"),
        ("2024-10-01", "active"),
        ("2024-10-01", "cache"),
        ("2024-10-02", "cache"),
    ):
        write_posts(tmp_path, day, [post(1)], tier=tier)
    folder = tmp_path / "preprocessed_posts" / "cache" / "partition_date=2024-10-01"
    for name in (
        ".hidden.parquet",
        "_temporary.parquet",
        ".part-1.parquet.aside-01234567",
        "notes.txt",
    ):
        (folder / name).write_bytes(b"not data")
    (folder.parent / "partition_date=someday").mkdir()
    found = Lake(str(tmp_path)).partitions("preprocessed_posts", "2024-10-01", "2024-10-02")
    base = "preprocessed_posts/{}/partition_date={}/part-0.parquet"
    assert found == {
        "2024-10-01": [base.format("cache", "2024-10-01"), base.format("active", "2024-10-01")],
        "2024-10-02": [base.format("cache", "2024-10-02")],
    }


def test_partitions_of_a_dataset_that_is_not_there_are_none(tmp_path: Path) -> None:
    assert Lake(str(tmp_path)).partitions("nothing") == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("partition_date=2024-02-29", "2024-02-29"),
        ("partition_date=2023-02-29", None),
        ("partition_date=x", None),
        ("2024-01-01", None),
    ],
)
def test_partition_date(name: str, expected: str | None) -> None:
    assert partition_date(name) == expected


def test_sweep_removes_what_killed_writers_left_and_no_data(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write_bytes("q/data.parquet", b"1")
    (tmp_path / "q" / ".data.parquet.aside-0a1b2c3d").write_bytes(b"half")
    lake.sweep("q")
    assert os.listdir(tmp_path / "q") == ["data.parquet"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "no parquet", "footer only"])
def test_a_file_that_is_not_whole_parquet_is_named(tmp_path: Path, damage: str) -> None:
    path = write_posts(tmp_path, DAY, [post(n) for n in range(100)])
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": data[: len(data) // 2],
            "no parquet": b"hello" * 50,
            "footer only": data[-200:],
        }[damage]
    )
    with pytest.raises(errors.BadFile, match=r"part-0\.parquet") as raised:
        read(Lake(str(tmp_path)), relative(tmp_path, path))
    assert "--skip-bad-files" in str(raised.value)


def test_damage_inside_a_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(
        pa.table({"uri": [f"uri-{n}" * 20 for n in range(5000)], "text": ["t"] * 5000}),
        path,
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    data[50:4000] = b"\xff" * 3950
    path.write_bytes(data)
    with pytest.raises(errors.BadFile, match=r"f\.parquet"):
        read(Lake(str(tmp_path)), "f.parquet")


def test_a_missing_column_and_a_wrong_type_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a"]}), tmp_path / "missing.parquet")
    pq.write_table(pa.table({"uri": ["a"], "text": [1]}), tmp_path / "wrong.parquet")
    lake = Lake(str(tmp_path))
    with pytest.raises(errors.BadFile, match="no column 'text'"):
        read(lake, "missing.parquet")
    with pytest.raises(errors.BadFile, match="column 'text' is int64, not string"):
        read(lake, "wrong.parquet")
    assert read(lake, "missing.parquet", optional=["text"])["text"].to_pylist() == [None]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.null()]
)
def test_other_forms_of_text_are_read_as_text(tmp_path: Path, kind: pa.DataType) -> None:
    values = [None, None] if pa.types.is_null(kind) else ["é", None]
    text = (
        pa.array(values, pa.string()).dictionary_encode()
        if pa.types.is_dictionary(kind)
        else pa.array(values, kind)
    )
    pq.write_table(pa.table({"uri": ["a", "b"], "text": text}), tmp_path / "f.parquet")
    assert read(Lake(str(tmp_path)), "f.parquet")["text"].to_pylist() == values


def test_a_folder_that_cannot_be_written_is_named_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.ConfigError, match=r"cannot write .*file/x.*--data-dir"):
        Lake(str(tmp_path)).write_bytes("file/x", b"data")


def test_check_wants_a_root_that_exists(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="there is no data folder"):
        Lake(str(tmp_path / "nowhere")).check()
    Lake(str(tmp_path)).check()
    assert os.listdir(tmp_path) == []


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match="neither a folder nor an s3"):
        Lake("gs://bucket").exists("")


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("set it"),
        errors.BadFile("f.parquet", "is cut off"),
        errors.RetryableError("wait", retry_after=3.0, kind="http_429"),
        errors.RejectedPost("too long"),
        errors.FatalError("no key"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_process_borders(error: errors.BackfillError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


CUT = """
import gc, os, sys
from datasets.errors import ConfigError
from datasets.lake import Lake
try:
    Lake(sys.argv[1], patient=False).write_bytes("big", b"x" * 25_000_000)
except ConfigError as error:
    print(error)
os.unlink(sys.argv[2])
gc.collect()
"""


def test_an_upload_that_fails_half_way_leaves_no_object(s3: Endpoint, tmp_path: Path) -> None:
    lake = Lake(f"s3://{BUCKET}/{tmp_path.name}")
    s3.parts.touch()
    command = [sys.executable, "-c", CUT, lake.root, str(s3.parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == f"cannot write {lake.root}/big: S3 asks to slow down; run the same command again later\n"
    )
    assert not lake.exists("big")
    lake.write_bytes("big", b"x" * 25_000_000)
    assert len(lake.read_bytes("big")) == 25_000_000


@pytest.mark.usefixtures("s3")
def test_s3_lists_reads_and_deletes_as_a_folder_does(tmp_path: Path) -> None:
    lake, folder = Lake(f"s3://{BUCKET}/{tmp_path.name} x"), Lake(str(tmp_path))
    table = pa.table({"uri": ["a", "b"], "text": ["x", None]}, schema=URI_TEXT)
    names = (
        "d/cache/partition_date=2024-10-01/f",
        "d/active/partition_date=2024-10-01/g",
        "d/cache/x/h",
        "d/cache/_i",
    )
    for one in (lake, folder):
        one.check()
        for name in names:
            one.write_parquet(f"{name}.parquet", table)
        one.write_bytes("d/cache/partition_date=2024-10-01/.hidden.parquet", b"")
        one.write_bytes("d/cache/partition_date=2024-10-03/f.json", b"{}")
        one.delete("nothing")
    for look in (
        lambda one: one.partitions("d"),
        lambda one: one.partitions("d", "2024-10-02"),
        lambda one: one.partitions("none"),
        lambda one: one.folders("d/cache"),
        lambda one: one.files("d/cache/partition_date=2024-10-01"),
        lambda one: one.files("d/cache/partition_date=2024-10-03", ".json"),
        lambda one: read(one, f"{names[0]}.parquet"),
        lambda one: one.num_rows(f"{names[0]}.parquet"),
    ):
        assert look(lake) == look(folder)
    with pytest.raises(errors.FileGone):
        lake.num_rows("d/none.parquet")
    lake.write_bytes("d/no.parquet", b"no parquet")
    with pytest.raises(errors.BadFile):
        lake.num_rows("d/no.parquet")


def test_a_bucket_that_is_not_there_and_an_endpoint_that_is_down_are_told_within_seconds(
    s3: Endpoint, tmp_path: Path
) -> None:
    with pytest.raises(errors.ConfigError, match="there is no such bucket"):
        Lake("s3://no-such-bucket-here/lake").check()
    started = time.monotonic()
    with s3.down(), pytest.raises(errors.ConfigError, match="run the same command again later"):
        Lake(f"s3://{BUCKET}/{tmp_path.name}").check()
    assert time.monotonic() - started < 10


def test_an_endpoint_that_is_down_is_no_fault_of_a_file(s3: Endpoint, tmp_path: Path) -> None:
    """So that --skip-bad-files does not skip it."""
    lake = Lake(f"s3://{BUCKET}/{tmp_path.name}", patient=False)
    lake.write_parquet("f.parquet", pa.table({"uri": ["a"], "text": ["b"]}))
    with s3.down(), pytest.raises(errors.ConfigError) as raised:
        read(lake, "f.parquet")
    assert not isinstance(raised.value, errors.BadFile)
