"""From raw posts to preprocessed posts: by date, no blanks, no duplicates."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backfill.labels.post_filter import BadFiles, PostFilter, find_posts
from backfill.repos import preprocess as preprocess_module
from backfill.repos.preprocess import PreprocessResult, preprocess
from backfill.workspace import Workspace, open_workspace
from datasets.errors import BadFile, ConfigError
from datasets.lake import POSTS, Lake
from datasets.locking import leases
from datasets.posts import no_uris, read_uris
from datasets.repos.record_schemas import record_schema
from tests.s3_server import BUCKET, Endpoint
from tests.support import make_uri, write_posts


def raw(
    root: Path,
    kind: str,
    day: str,
    rows: Sequence[Mapping[str, Any]],
    name: str = "x",
    tier: str = "cache",
) -> Path:
    folder = root / "raw_sync/create" / kind / tier / f"partition_date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    schema = record_schema(kind)
    full = [{**dict.fromkeys(schema.names), **row} for row in rows]
    path = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(full, schema), path)
    return path


def entry(number: int, day: str, text: str = "some text", **changes: Any) -> dict[str, Any]:
    return {
        "uri": make_uri(number),
        "text": text,
        "created_at": f"{day}T12:00:00.000Z",
        "author": "did:plc:x",
        **changes,
    }


def run(
    root: Path, start: str | None = None, end: str | None = None, *, skip: bool = False
) -> PreprocessResult:
    workspace = open_workspace(str(root), None, None, None, debug=False)
    return preprocess(workspace, start, end, BadFiles(skip), io.StringIO())


def found(root: Path) -> list[tuple[str, str]]:
    """(partition date, URI) of every preprocessed post."""
    rows = []
    for path in root.glob("preprocessed_posts/*/partition_date=*/*.parquet"):
        day = path.parent.name.removeprefix("partition_date=")
        rows += [(day, uri) for uri in pq.ParquetFile(path).read(["uri"])["uri"].to_pylist()]
    return sorted(rows)


def test_posts_and_replies_go_to_the_partition_of_their_creation_date(tmp_path: Path) -> None:
    raw(tmp_path, "post", "2024-10-01", [entry(1, "2024-10-01"), entry(2, "2024-10-02")])
    raw(tmp_path, "reply", "2024-10-01", [entry(3, "2024-10-01")], tier="active")
    raw(tmp_path, "like", "2024-10-01", [{"uri": make_uri(9)}])
    late = entry(4, "2024-10-03", created_at="2024-10-03T23:30:00-02:00")
    pipeline = entry(5, "", created_at="2024-10-05-01:02:03")
    unreadable = entry(6, "", created_at="yesterday")
    year_zero = entry(7, "0000-01-01")
    raw(tmp_path, "post", "2024-10-03", [late, pipeline, unreadable, year_zero])
    result = run(tmp_path)
    assert found(tmp_path) == sorted(
        [
            ("2024-10-01", make_uri(1)),
            ("2024-10-02", make_uri(2)),
            ("2024-10-01", make_uri(3)),
            ("2024-10-04", make_uri(4)),
            ("2024-10-05", make_uri(5)),
            ("2024-10-03", make_uri(6)),
            ("2024-10-03", make_uri(7)),
        ]
    )
    assert (result.read, result.blank, result.repeated, result.written.total()) == (7, 0, 0, 7)
    [path] = tmp_path.glob("preprocessed_posts/cache/partition_date=2024-10-04/*.parquet")
    [row] = pq.ParquetFile(path).read().to_pylist()
    assert (row["text"], row["author"], row["created_at"]) == (
        "some text",
        "did:plc:x",
        late["created_at"],
    )
    assert len(row["preprocessing_timestamp"]) == len("2024-10-01-12:00:00")


def test_blank_texts_and_repetitions_are_left_out(tmp_path: Path) -> None:
    day = "2024-10-01"
    raw(
        tmp_path,
        "post",
        day,
        [
            entry(1, day),
            entry(1, day),
            entry(2, day, ""),
            entry(3, day, " \n\t "),
            entry(4, day, None),
        ],
    )  # type: ignore[arg-type]
    raw(tmp_path, "post", day, [entry(1, day), entry(5, day)], "firehose")
    raw(tmp_path, "reply", "2024-10-02", [entry(5, day)])
    raw(tmp_path, "post", "2024-10-02", [entry(6, day, uri=None), entry(7, day)])
    write_posts(
        tmp_path,
        day,
        [{"uri": make_uri(7), "text": "x", "preprocessing_timestamp": "y"}],
        tier="active",
    )
    result = run(tmp_path)
    assert found(tmp_path) == sorted((day, make_uri(n)) for n in (1, 5, 7))
    assert (result.read, result.blank, result.repeated) == (10, 4, 4)


def test_running_it_again_adds_nothing_and_later_posts_are_added(tmp_path: Path) -> None:
    days = ["2024-10-01", "2024-10-02"]
    for n, day in enumerate(days):
        raw(tmp_path, "post", day, [entry(n * 100 + m, day) for m in range(50)])
    run(tmp_path)
    before = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("preprocessed_posts/**/*.parquet")
    }
    assert run(tmp_path).written.total() == 0
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("preprocessed_posts/**/*.parquet")
    } == before
    raw(tmp_path, "post", days[0], [entry(m, days[0]) for m in range(45, 60)], "later")
    assert run(tmp_path).written == {days[0]: 10}
    assert len(found(tmp_path)) == len(set(found(tmp_path))) == 110


def test_a_kill_between_files_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    """A killed run leaves some of its files, each complete. Any of them may be missing."""
    rng = random.Random(3)
    days = [f"2024-10-{day:02}" for day in range(1, 8)]
    rows = [entry(n, rng.choice(days)) for n in range(300)]
    raw(tmp_path, "post", days[0], rows[:200])
    raw(tmp_path, "reply", days[1], rows[150:])
    run(tmp_path)
    whole = found(tmp_path)
    for _ in range(5):
        written = list(tmp_path.glob("preprocessed_posts/**/*.parquet"))
        for path in rng.sample(written, rng.randrange(1, len(written))):
            path.unlink()
        run(tmp_path)
        assert found(tmp_path) == whole


@dataclass(frozen=True)
class Watched(Lake):
    """Calls back before it writes posts."""

    on_write: Callable[[], None] = field(default=lambda: None)

    def write_bytes(self, path: str, data: bytes | pa.Buffer) -> None:
        if path.endswith(".parquet"):
            self.on_write()
        super().write_bytes(path, data)


def test_a_run_that_lost_its_lock_leaves_no_duplicates(
    s3: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended between checking its lock and writing, until another run has finished."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(leases, "SURE_SECONDS", 0.5)
    lake = Lake(f"s3://{BUCKET}/{tmp_path.name}")
    days = ["2024-10-01", "2024-10-02", "2024-10-03"]
    for n, day in enumerate(days):
        path = raw(tmp_path, "post", day, [entry(n * 10 + m, day) for m in range(5)])
        lake.write_bytes(str(path.relative_to(tmp_path)), path.read_bytes())
    writes = iter(range(10))

    def overtake() -> None:
        if next(writes) == 1:
            preprocess(Workspace(lake, ""), None, None, BadFiles(), io.StringIO())

    with pytest.raises(ConfigError, match="another run has taken over preprocessed_posts"):
        preprocess(
            Workspace(Watched(lake.root, on_write=overtake), ""),
            None,
            None,
            BadFiles(),
            io.StringIO(),
        )
    posts = [
        (day, uri)
        for day, paths in lake.partitions(POSTS).items()
        for uri in read_uris(lake, paths).to_pylist()
    ]
    assert sorted(posts) == sorted(
        (day, make_uri(n * 10 + m)) for n, day in enumerate(days) for m in range(5)
    )


def test_files_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess_module, "_PENDING_ROWS", 40)
    day = "2024-10-01"
    for n in range(3):
        raw(tmp_path, "post", day, [entry(n * 100 + m, day) for m in range(50)], str(n))
    run(tmp_path)
    assert len(list(tmp_path.glob("preprocessed_posts/**/*.parquet"))) == 3
    assert run(tmp_path).written.total() == 0
    assert len(found(tmp_path)) == 150


def test_a_range_of_dates(tmp_path: Path) -> None:
    days = [f"2024-10-0{n}" for n in range(1, 5)]
    for n, day in enumerate(days):
        raw(tmp_path, "post", day, [entry(n, day)])
    run(tmp_path, days[1], days[2])
    assert found(tmp_path) == [(days[n], make_uri(n)) for n in (1, 2)]


def test_files_of_other_tools_need_only_uri_and_text(tmp_path: Path) -> None:
    folder = tmp_path / "raw_sync/create/post/active/partition_date=2024-10-01"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"uri": [make_uri(1)], "text": ["x"], "more": [1]}), folder / "firehose.parquet"
    )
    run(tmp_path)
    assert found(tmp_path) == [("2024-10-01", make_uri(1))]


def test_a_bad_file_is_named_and_may_be_skipped(tmp_path: Path) -> None:
    path = raw(tmp_path, "post", "2024-10-01", [entry(1, "2024-10-01")])
    raw(tmp_path, "post", "2024-10-02", [entry(2, "2024-10-02")])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadFile, match=r"x\.parquet"):
        run(tmp_path)
    run(tmp_path, skip=True)
    assert found(tmp_path) == [("2024-10-02", make_uri(2))]


def test_a_bad_file_of_preprocessed_posts_keeps_no_raw_post_out(tmp_path: Path) -> None:
    days = ["2024-10-01", "2024-10-02"]
    raw(tmp_path, "post", days[0], [entry(n, day) for n, day in enumerate(days)])
    bad = write_posts(tmp_path, days[0], [{"uri": make_uri(9), "text": "t"}], "bad")
    bad.write_bytes(b"PAR1")
    with pytest.raises(BadFile, match=r"bad\.parquet"):
        run(tmp_path)
    run(tmp_path, skip=True)
    bad.unlink()
    assert found(tmp_path) == [(day, make_uri(n)) for n, day in enumerate(days)]


def test_nothing_to_preprocess(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `pds sync` first"):
        run(tmp_path)


def test_what_is_preprocessed_is_eligible(tmp_path: Path) -> None:
    day = "2024-10-01"
    raw(tmp_path, "post", day, [entry(n, day) for n in range(20)])
    run(tmp_path)
    workspace = open_workspace(str(tmp_path), None, None, None, debug=False)
    selection = find_posts(workspace.lake, PostFilter("posts", day, day), {"x": no_uris})
    assert selection["x"].total == 20
