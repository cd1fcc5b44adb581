"""`preprocess`: from new raw posts and replies to `preprocessed_posts`, from which runs select.

A post goes to the partition of its `created_at` date. It is left out if its text is blank or if
that partition already has its URI. Running it again adds nothing, or completes a killed run.
It never removes: a post that was deleted from its repository stays among the preprocessed posts.

On S3, a run that was suspended for long may be overtaken by another (backfill/overtaken.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
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
from datasets.lake import POSTS, Lake, partition_date
from datasets.locking.locks import Lock
from datasets.posts import read_uris
from datasets.repos.record_schemas import RAW
from datasets.schemas import PARTITION_DATE
from datasets.timestamps import pipeline_day, pipeline_time, utc_now
from pds.syntax import utc_date

_RECORD_TYPES = ("post", "reply")


def _strings(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


_READ = _strings("uri", "text", "author", "created_at")
_OPTIONAL = ("author", "created_at")
_WRITTEN = _strings("uri", "text", "preprocessing_timestamp", "author", "created_at")

# Rows in memory before they are written, which is the size of the larger files.
_PENDING_ROWS = 200_000


@dataclass
class PreprocessResult:
    """Numbers of posts. `written` is by partition date."""

    read: int = 0
    blank: int = 0
    repeated: int = 0
    written: Counter[str] = field(default_factory=Counter)


def preprocess(
    workspace: Workspace, start: str | None, end: str | None, bad_files: BadFiles, stream: TextIO
) -> PreprocessResult:
    """Preprocesses the raw partitions of an inclusive range of dates. Raises BackfillError."""
    lake = workspace.lake
    if not lake.exists(RAW):
        raise ConfigError(
            f"there is nothing to preprocess: {lake.show(RAW)} does not exist; run `pds sync` first"
        )

    files = _raw_files(lake, start, end)
    result = PreprocessResult()
    run_id = new_run_id()
    progress = StatusLine(stream)
    with Lock(lake, POSTS, "run", run_id) as lock, closing(progress):
        for day, paths in files.items():
            written = result.written.total()
            progress.show(f"{day}: {result.read:,} raw posts read, {written:,} new ones written")

            posts = _NewPosts(Writer(lake, POSTS, run_id, [lock]), result, day, bad_files)
            for path in paths:
                try:
                    for batch in lake.read(path, _READ, _OPTIONAL):
                        posts.add(batch, day)
                except BadFile as error:
                    bad_files(error)
            posts.write()

    return result


def _raw_files(lake: Lake, start: str | None, end: str | None) -> dict[str, list[str]]:
    """Partition date → files with posts and replies, by date."""
    files: dict[str, list[str]] = {}
    for kind in _RECORD_TYPES:
        for day, paths in lake.partitions(f"{RAW}/{kind}", start, end).items():
            files.setdefault(day, []).extend(paths)
    return dict(sorted(files.items()))


class _NewPosts:
    """The new posts of one raw partition.

    Nearly all of them have the same date; files that other tools wrote may have several.
    """

    def __init__(
        self, writer: Writer, result: PreprocessResult, raw_day: str, bad_files: BadFiles
    ) -> None:
        self._writer = writer
        self._lake = writer.lake
        self._result = result
        self._name = f"preprocessed-{writer.run_id}-{raw_day}"
        self._bad_files = bad_files
        self._files = 0
        self._known: dict[str, list[pa.Array]] = {}
        self._pending: dict[str, list[pa.RecordBatch]] = {}
        self._rows = 0

    def add(self, batch: pa.RecordBatch, raw_day: str) -> None:
        kept = batch.filter(pc.and_(_has_text(batch), pc.is_valid(batch["uri"])))
        self._result.read += len(batch)
        self._result.blank += len(batch) - len(kept)

        for day, posts in _by_day(kept, raw_day):
            new = posts.filter(pa.array(self._is_new(day, posts["uri"])))
            self._result.repeated += len(posts) - len(new)
            if len(new):
                self._pending.setdefault(day, []).append(new)
                self._known[day].append(new["uri"])
                self._rows += len(new)

        if self._rows >= _PENDING_ROWS:
            self.write()

    def _is_new(self, day: str, uris: pa.Array) -> npt.NDArray[np.bool_]:
        """True for the first occurrence of each URI that the partition does not have."""
        if day not in self._known:
            files = self._lake.partitions(POSTS, day, day).get(day, [])
            self._known[day] = list(read_uris(self._lake, files, self._bad_files).chunks)

        codes = uris.dictionary_encode().indices.to_numpy()
        first_positions = np.unique(codes, return_index=True)[1]
        new = np.zeros(len(uris), bool)
        new[first_positions] = True

        known = pa.chunked_array(self._known[day], pa.string())
        if len(known):
            new &= ~pc.is_in(uris, value_set=known).to_numpy(zero_copy_only=False)
        return new

    def write(self) -> None:
        """Writes the pending posts, one file per date."""
        now = pa.scalar(pipeline_time(utc_now()))
        for day, batches in self._pending.items():
            posts = pa.Table.from_batches(batches)
            posts = posts.append_column("preprocessing_timestamp", pa.repeat(now, len(posts)))

            self._files += 1
            path = f"{POSTS}/cache/{PARTITION_DATE}={day}/{self._name}-{self._files}.parquet"
            with self._writer.writing(path, day, posts["uri"]):
                self._lake.write_parquet(path, posts.select(_WRITTEN.names))
            self._result.written[day] += len(posts)

        self._pending = {}
        self._rows = 0


def _has_text(batch: pa.RecordBatch) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(batch["text"])
    return pc.greater(pc.binary_length(trimmed), 0).fill_null(False)


def _by_day(posts: pa.RecordBatch, raw_day: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The posts by the date of their `created_at`; by `raw_day` if it cannot be read."""
    created = posts["created_at"].to_pylist()
    days = np.array([_day(text) or raw_day for text in created], dtype=object)

    for day in sorted(set(days.tolist())):
        yield day, posts.filter(pa.array(days == day))


def _day(created: str | None) -> str | None:
    """The day, if it can be a partition date. The year 0 cannot."""
    if created is None:
        return None

    day = pipeline_day(created) or utc_date(created)
    return partition_date(f"{PARTITION_DATE}={day}")
