"""`preprocess`: new raw posts and replies → `preprocessed_posts`, from which runs choose.

A post goes under the date of its `created_at`, and is left out where its text is blank or its URI
is in that partition already. Running it again adds nothing, and after a kill the rest. It adds
only: a post that was deleted from its repository stays among the preprocessed ones. On S3, one that
was stopped for long may be overtaken by another (backfill/overtaken.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from backfill.labels.post_filter import BadFiles
from backfill.overtaken import Writer
from backfill.status_line import StatusLine
from backfill.workspace import Workspace, new_run_id
from datasets.errors import BadFile, ConfigError
from datasets.lake import POSTS, partition_date
from datasets.locking.locks import Lock
from datasets.posts import read_uris
from datasets.repos.record_schemas import RAW
from datasets.schemas import PARTITION_DATE
from pds.syntax import utc_date

_KINDS = ("post", "reply")
_READ = pa.schema([(name, pa.string()) for name in ("uri", "text", "author", "created_at")])
_OPTIONAL = ("author", "created_at")
_WRITTEN = pa.schema(
    [
        (name, pa.string())
        for name in ("uri", "text", "preprocessing_timestamp", "author", "created_at")
    ]
)
# Rows in memory before they are written: the size of the larger files.
_PENDING_ROWS = 200_000
# The group's own form of a time, in files that others wrote.
_PIPELINE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)-\d\d:\d\d:\d\d")


@dataclass
class PreprocessResult:
    """Counts of posts; `written` by partition date."""

    read: int = 0
    blank: int = 0
    repeated: int = 0
    written: Counter[str] = field(default_factory=Counter)


def preprocess(
    workspace: Workspace, start: str | None, end: str | None, bad_files: BadFiles, stream: TextIO
) -> PreprocessResult:
    """The raw partitions of an inclusive range of dates. Raises BackfillError."""
    lake = workspace.lake
    if not lake.exists(RAW):
        raise ConfigError(
            f"there is nothing to preprocess: {lake.show(RAW)} does not exist; run `pds sync` first"
        )
    files: dict[str, list[str]] = {}
    for kind in _KINDS:
        for day, paths in lake.partitions(f"{RAW}/{kind}", start, end).items():
            files.setdefault(day, []).extend(paths)
    result = PreprocessResult()
    progress = StatusLine(stream)
    run_id = new_run_id()
    with Lock(lake, POSTS, "run", run_id) as lock, closing(progress):
        for day, paths in sorted(files.items()):
            progress.show(
                f"{day}: {result.read:,} raw posts read, {sum(result.written.values()):,} new ones written"
            )
            posts = _NewPosts(Writer(lake, POSTS, run_id, [lock]), result, day, bad_files)
            for path in paths:
                try:
                    for batch in lake.read(path, _READ, _OPTIONAL):
                        posts.add(batch, day)
                except BadFile as error:
                    bad_files(error)
            posts.write()
    return result


class _NewPosts:
    """What one raw partition brings. Nearly all of it belongs to one date, a file of others' may have more."""

    def __init__(
        self, writer: Writer, result: PreprocessResult, raw_day: str, bad_files: BadFiles
    ) -> None:
        self._writer, self._lake, self._result = writer, writer.lake, result
        self._name = f"preprocessed-{writer.run_id}-{raw_day}"
        self._bad_files = bad_files
        self._files = 0
        self._known: dict[str, list[pa.Array]] = {}
        self._pending: dict[str, list[pa.RecordBatch]] = {}
        self._rows = 0

    def add(self, batch: pa.RecordBatch, raw_day: str) -> None:
        self._result.read += len(batch)
        there = pc.greater(pc.binary_length(pc.utf8_trim_whitespace(batch["text"])), 0).fill_null(
            False
        )
        kept = batch.filter(pc.and_(there, pc.is_valid(batch["uri"])))
        self._result.blank += len(batch) - len(kept)
        for day, posts in _by_day(kept, raw_day):
            fresh = posts.filter(pa.array(self._fresh(day, posts["uri"])))
            self._result.repeated += len(posts) - len(fresh)
            if len(fresh):
                self._pending.setdefault(day, []).append(fresh)
                self._known[day].append(fresh["uri"])
                self._rows += len(fresh)
        if self._rows >= _PENDING_ROWS:
            self.write()

    def _fresh(self, day: str, uris: pa.Array) -> npt.NDArray[np.bool_]:
        """The first of each URI that the partition does not have."""
        if day not in self._known:
            there = self._lake.partitions(POSTS, day, day).get(day, [])
            self._known[day] = list(read_uris(self._lake, there, self._bad_files).chunks)
        known = pa.chunked_array(self._known[day], pa.string())
        fresh = np.zeros(len(uris), bool)
        fresh[np.unique(uris.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = True
        if len(known):
            fresh &= ~pc.is_in(uris, value_set=known).to_numpy(zero_copy_only=False)
        return fresh

    def write(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d-%H:%M:%S")
        for day, batches in self._pending.items():
            posts = pa.Table.from_batches(batches)
            posts = posts.append_column(
                "preprocessing_timestamp", pa.repeat(pa.scalar(now), len(posts))
            )
            self._files += 1
            path = f"{POSTS}/cache/{PARTITION_DATE}={day}/{self._name}-{self._files}.parquet"
            with self._writer.writing(path, day, posts["uri"]):
                self._lake.write_parquet(path, posts.select(_WRITTEN.names))
            self._result.written[day] += len(posts)
        self._pending, self._rows = {}, 0


def _by_day(posts: pa.RecordBatch, raw_day: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The posts by the date of their `created_at`; one that cannot be read leaves a post where it is."""
    days = np.array(
        [_day(created) or raw_day for created in posts["created_at"].to_pylist()], dtype=object
    )
    for day in sorted(set(days.tolist())):
        yield day, posts.filter(pa.array(days == day))


def _day(created: str | None) -> str | None:
    """A day that can be a partition (the year 0 cannot), None where there is none."""
    if created is None:
        return None
    match = _PIPELINE_TIME.fullmatch(created)
    day = match[1] if match else utc_date(created)
    return partition_date(f"{PARTITION_DATE}={day}")
