"""Labels from one lake into another: a folder to S3, S3 to a folder, one group's into another's.

What the target has is found by its labels, not by notes of an earlier copy: so a copy that was
killed goes on where it was, one that is done does nothing, and posts that the target has labelled
itself keep its labels. Each post has one row afterwards: what the target holds in any partition, or
has staged, is not copied, and what the source holds in several is copied from the first of them.

On S3 a copy that was stopped for long may be overtaken by another (backfill/overtaken.py). So each
names its files after itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.integrations import Integration
from backfill.labels.post_filter import BadFiles
from backfill.overtaken import Writer
from backfill.status_line import StatusLine
from backfill.workspace import new_run_id
from datasets import queues
from datasets.errors import BackfillError, BadFile, ConfigError
from datasets.labels.reading import Labels
from datasets.lake import Lake, ensure_lake
from datasets.locking.locks import ALL_DATES, Lock
from datasets.posts import read_uris
from datasets.uri_index import UriIndex, every_hash, repeated_hashes

# Partitions at a time; each holds one label file in memory.
_THREADS = 4
# The place in an index of what waits in the output queue.
_STAGED = "staged"
# What a copy adds to the name of a file. The run's id is new for each copy.
_COPIED = re.compile(r"-copy-\d{8}T\d{6}-[0-9a-f]{6}-[0-9a-f]{16}$")


@dataclass
class Copied:
    """`rows` were copied, `already` were not: their posts have one; `staged` wait in the source's output queue."""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    already: int = 0
    staged: int = 0


def copy(
    source: Lake,
    target: Lake,
    chosen: Sequence[Integration],
    start: str | None,
    end: str | None,
    bad_files: BadFiles,
    stream: TextIO,
) -> dict[str, Copied]:
    """Every label file of an inclusive range of dates, in either tier. Raises BackfillError."""
    if not source.exists(""):
        raise ConfigError(f"there is no lake at {source.root}; check --from")
    ensure_lake(target)
    run_id, dates = new_run_id(), (start or ALL_DATES[0], end or ALL_DATES[1])
    found = {integration.name: Copied() for integration in chosen}
    with ExitStack() as stack:
        locks: dict[str, list[Lock]] = {}
        for name in found:
            run = stack.enter_context(Lock(target, name, "run", run_id, dates=dates))
            locks[name] = [
                run,
                stack.enter_context(Lock(target, name, "buffer", run_id, 60.0, dates)),
            ]
        progress = stack.enter_context(closing(StatusLine(stream)))
        for integration in chosen:
            name = integration.name
            writer = Writer(target, name, run_id, locks[name])
            work = _Copying(source, writer, integration.labels, bad_files, found[name], progress)
            work.copy(source.partitions(name, start, end))
    return found


@dataclass
class _Copying:
    """One integration's labels; a few partitions at a time."""

    source: Lake
    writer: Writer
    labels: Labels
    bad_files: BadFiles
    copied: Copied
    progress: StatusLine

    def __post_init__(self) -> None:
        self.target = self.writer.lake
        self._counting = threading.Lock()

    def copy(self, days: Mapping[str, Sequence[str]]) -> None:
        """Partition date → label files of the source."""
        self.copied.staged = queues.count(self.source, "output", self.labels.integration)
        before = {
            path
            for paths in self.target.partitions(self.labels.integration).values()
            for path in paths
        }
        again = False
        while bad := self._copy_days(days, again=again):
            # What a bad file has was left out of later partitions. Without it, they are the first.
            days = {day: [path for path in paths if path not in bad] for day, paths in days.items()}
            again = True
        self.writer.remove_late(
            before, lambda path: bool(_COPIED.search(path.removesuffix(".parquet")))
        )

    def _copy_days(self, days: Mapping[str, Sequence[str]], *, again: bool) -> set[str]:
        """The files that turned out to be bad when they were copied."""
        # First what is staged: what a flush moves meanwhile is then seen twice, and never missed.
        waiting = UriIndex(
            self.target, {_STAGED: self.target.files(self.labels.queue)}, every_hash, may_go=True
        )
        there = self.target.partitions(self.labels.integration)
        labelled = UriIndex(self.target, there, every_hash, self.bad_files)
        found = UriIndex(self.source, days, repeated_hashes, self.bad_files)
        bad: set[str] = set()

        def copy_day(day: str) -> None:
            scanned = {path: uris for path in days[day] if (uris := self._scan(path)) is not None}
            uris = pa.chunked_array(
                [chunk for these in scanned.values() for chunk in these.chunks], pa.string()
            )
            held = waiting.holds(uris, [_STAGED])
            held |= labelled.holds(uris, sorted(there, key=lambda workspace: workspace != day))
            held |= found.holds(uris, [earlier for earlier in days if earlier < day])

            known = list(uris.filter(pa.array(held)).chunks)
            for path, these in scanned.items():
                try:
                    known.append(
                        self._copy_file(
                            path, day, these, pa.chunked_array(known, pa.string()), again=again
                        )
                    )
                except BadFile as error:
                    self.bad_files(error)
                    bad.add(path)

        _each(copy_day, sorted(days))
        return bad

    def _scan(self, path: str) -> pa.ChunkedArray | None:
        """Its URIs, None where they cannot be read."""
        try:
            return read_uris(self.source, [path]).drop_null()
        except BadFile as error:
            self.bad_files(error)
            return None

    def _copy_file(
        self, path: str, day: str, scanned: pa.ChunkedArray, known: pa.ChunkedArray, *, again: bool
    ) -> pa.Array:
        """Copies the rows whose URIs are not known, and returns these. `again`: they were counted as `already`."""
        data = self.source.read_bytes(path)
        table = _table(data, self.source.show(path))
        uris = table["uri"].cast(pa.string()).combine_chunks()
        if not pc.all(pc.is_in(uris.drop_null(), value_set=scanned), min_count=0).as_py():
            raise ConfigError(
                f"{self.source.show(path)} changed while it was copied; run the same command again"
            )

        fresh = _fresh(uris, known)
        count = int(fresh.sum())
        if count:
            if count < len(uris):
                sink = pa.BufferOutputStream()
                pq.write_table(table.filter(pa.array(fresh)), sink, compression="zstd")
                data = sink.getvalue().to_pybytes()
            to = _name(path, self.writer.run_id)
            with self.writer.writing(to, day, uris.filter(pa.array(fresh))):
                self.target.write_bytes(to, data)
                _verify(self.target, to, data, count)

        with self._counting:
            copied = self.copied
            copied.files += count > 0
            copied.rows += count
            copied.bytes += len(data) if count else 0
            copied.already += -count if again else len(uris) - count
            line = f"{self.labels.integration}, {day}: {copied.rows:,} labels copied, {copied.already:,} there"
            self.progress.show(line)
        return uris.filter(pa.array(fresh))


def _each(work: Callable[[str], None], days: Sequence[str]) -> None:
    """In threads; after the first error no other day is begun."""
    with ThreadPoolExecutor(_THREADS) as threads:
        running = [threads.submit(work, day) for day in days]
        try:
            for future in running:
                future.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _name(path: str, run_id: str) -> str:
    """The name of a file's copy, of which there is one in a run. A copy of a copy has no longer name."""
    return f"{_COPIED.sub('', path.removesuffix('.parquet'))}-copy-{run_id}-{queues.digest([path])[:16]}.parquet"


def _table(data: bytes, shown: str) -> pa.Table:
    """All columns. Views, which cannot be filtered, become strings."""
    try:
        table = pq.read_table(pa.BufferReader(data))
        plain = [
            f.with_type(pa.large_string()) if pa.types.is_string_view(f.type) else f
            for f in table.schema
        ]
        return table.cast(pa.schema(plain, table.schema.metadata))
    except (pa.ArrowException, OSError) as error:
        raise BadFile(
            shown, f"not a readable Parquet file ({str(error).splitlines()[0]})"
        ) from error


def _fresh(uris: pa.Array, known: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """True for the first of each URI that is not known."""
    first = np.zeros(len(uris), bool)
    first[
        np.unique(uris.dictionary_encode().indices.fill_null(-1).to_numpy(), return_index=True)[1]
    ] = True
    wanted = pc.and_(pc.is_valid(uris), pc.invert(pc.is_in(uris, value_set=known)))
    return np.asarray(first & wanted.to_numpy(zero_copy_only=False), bool)


def _verify(target: Lake, path: str, data: bytes, rows: int) -> None:
    back = target.read_bytes(path)
    if back != data or pq.read_metadata(pa.BufferReader(back)).num_rows != rows:
        target.delete(path)
        raise BackfillError(
            f"{target.show(path)} reads back other bytes than were written, and was removed; "
            "check the storage, then run the same command again"
        )
