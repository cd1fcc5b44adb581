"""Two writers of the same posts, of which one was overtaken: every order of what they see, write and remove."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pytest

from backfill.overtaken import Writer
from datasets.errors import ConfigError
from datasets.lake import Lake
from tests.support import DAY

EARLY, LATE = "20261101T000000-aaaaaa", "20261101T000001-000000"
POSTS = pa.chunked_array([["a", "b", "c"]])


class Lost:
    """A lock that is held when it is asked for first, and not again."""

    def __init__(self) -> None:
        self.asked = 0

    def ensure(self) -> None:
        self.asked += 1
        if self.asked > 1:
            raise ConfigError("taken over")


def rows(lake: Lake) -> list[str]:
    schema = pa.schema([("uri", pa.string())])
    paths = lake.partitions("x").get(DAY, [])
    return sorted(
        uri
        for path in paths
        for batch in lake.read(path, schema)
        for uri in batch["uri"].to_pylist()
    )


def test_in_every_order_each_post_has_one_row(tmp_path: Path) -> None:
    """The overtaken one's file lands, then it wakes up; the other lists, writes what it lacks, looks again."""
    for number, mine in enumerate(combinations(range(5), 2)):
        lake = Lake(str(tmp_path / str(number)))
        early = Writer(lake, "x", EARLY, [Lost()])  # type: ignore[list-item]
        late = Writer(lake, "x", LATE, [])
        paths = [f"x/cache/partition_date={DAY}/f-copy-{run}.parquet" for run in (EARLY, LATE)]

        def overtaken(early: Writer = early, lake: Lake = lake, path: str = paths[0]):  # type: ignore[no-untyped-def]
            with pytest.raises(ConfigError, match="taken over"), early.writing(path, DAY, POSTS):  # noqa: PT012 - steps
                lake.write_parquet(path, pa.table({"uri": POSTS}))
                yield
            yield

        def other(late: Writer = late, lake: Lake = lake, path: str = paths[1]):  # type: ignore[no-untyped-def]
            before = {path for paths in lake.partitions("x").values() for path in paths}
            yield
            if not before:
                with late.writing(path, DAY, POSTS):
                    lake.write_parquet(path, pa.table({"uri": POSTS}))
            yield
            late.remove_late(before, lambda path: "-copy-" in path)
            yield

        one, two = overtaken(), other()
        for step in range(5):
            next(one if step in mine else two)
        assert rows(lake) == ["a", "b", "c"], mine


def test_files_of_others_and_of_later_runs_stay(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    folder = f"x/cache/partition_date={DAY}"
    names = [
        f"f-copy-{EARLY}",
        f"g-copy-{LATE}",
        f"labels-{EARLY}-1",
        "history",
        "f-copy-20261101T000002-000000",
    ]
    for name in names:
        lake.write_parquet(f"{folder}/{name}.parquet", pa.table({"uri": POSTS}))
    lake.write_parquet(f"{folder}/more-copy-{EARLY}.parquet", pa.table({"uri": ["a", "d"]}))
    Writer(lake, "x", LATE, []).remove_late(set(), lambda path: "-copy-" in path)
    left = [path.rpartition("/")[2].removesuffix(".parquet") for path in lake.files(folder)]
    assert left == sorted([*names[1:], f"more-copy-{EARLY}"])
