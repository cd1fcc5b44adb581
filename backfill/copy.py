"""Labels from one lake into another: a folder to S3, S3 to a folder, one group's into another's.

What the target has is found by its labels, not by notes of an earlier copy: so a copy that was
killed goes on where it was, one that is done does nothing, and posts that the target has labelled
itself keep its labels. Each post has one row afterwards.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.integrations import Integration
from backfill.config import new_run_id
from backfill.scope import BadFiles
from backfill.status_line import StatusLine
from datasets import queues
from datasets.errors import BackfillError, BadFile, ConfigError, from_os_error
from datasets.label_files import labelled_uris
from datasets.lake import Lake
from datasets.locks import ALL_DATES, Lock

# Partitions at a time; each holds one label file in memory.
_THREADS = 4


@dataclass
class Copied:
    """`rows` were copied, `already` were labelled in the target; `staged` wait in the source's output queue."""

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
    _make(target)
    run_id, dates = new_run_id(), (start or ALL_DATES[0], end or ALL_DATES[1])
    found = {integration.name: Copied() for integration in chosen}
    with ExitStack() as stack:
        for name in found:
            stack.enter_context(Lock(target, name, "run", run_id, dates=dates))
            stack.enter_context(Lock(target, name, "buffer", run_id, 60.0, dates))
        progress = stack.enter_context(closing(StatusLine(stream)))
        for integration in chosen:
            _copy_integration(source, target, integration, start, end, bad_files, found[integration.name], progress)
    return found


def _make(target: Lake) -> None:
    if target.is_local:
        try:
            os.makedirs(target.root, exist_ok=True)
        except OSError as error:
            raise from_os_error("make", target.root, error) from error
    target.check()


def _copy_integration(
    source: Lake,
    target: Lake,
    integration: Integration,
    start: str | None,
    end: str | None,
    bad_files: BadFiles,
    copied: Copied,
    progress: StatusLine,
) -> None:
    labels, counting = integration.labels, threading.Lock()
    days = source.partitions(labels.integration, start, end)
    there = labelled_uris(target, labels)
    copied.staged = queues.count(source, "output", labels.integration)

    def copy_day(day: str) -> None:
        known: list[pa.Array] = list(there(day).chunks)
        for path in days[day]:
            try:
                fresh, already, size = _copy_file(source, target, path, known)
            except BadFile as error:
                bad_files(error)
                continue
            known.append(fresh)
            with counting:
                copied.files += size > 0
                copied.rows += len(fresh)
                copied.bytes += size
                copied.already += already
                progress.show(f"{labels.integration}, {day}: {copied.rows:,} labels copied, {copied.already:,} there")

    _each(copy_day, sorted(days))


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


def _copy_file(source: Lake, target: Lake, path: str, known: Sequence[pa.Array]) -> tuple[pa.Array, int, int]:
    """The URIs that were copied, how many were known, and the bytes written."""
    data = source.read_bytes(path)
    shown = source.show(path)
    try:
        table = pq.read_table(pa.BufferReader(data))
        uris = table["uri"].cast(pa.string()).combine_chunks()
    except KeyError as error:
        raise BadFile(shown, "has no column 'uri'") from error
    except (pa.ArrowException, OSError) as error:
        raise BadFile(shown, f"not a readable Parquet file ({str(error).splitlines()[0]})") from error
    fresh = _fresh(uris, pa.chunked_array(known, pa.string()))
    count = int(fresh.sum())
    if not count:
        return uris.slice(0, 0), len(uris), 0
    if count < len(uris):
        sink = pa.BufferOutputStream()
        pq.write_table(table.filter(pa.array(fresh)), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
    if target.exists(path):  # of another origin, or its labels would be known
        path = f"{path.removesuffix('.parquet')}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    target.write_bytes(path, data)
    _verify(target, path, data, count)
    return uris.filter(pa.array(fresh)), len(uris) - count, len(data)


def _fresh(uris: pa.Array, known: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """True for the first of each URI that is not known."""
    first = np.zeros(len(uris), bool)
    first[np.unique(uris.dictionary_encode().indices.fill_null(-1).to_numpy(), return_index=True)[1]] = True
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
