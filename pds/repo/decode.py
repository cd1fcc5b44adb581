"""From downloaded CARs to staged rows: the body of a Ray task, so that fetchers need not decode."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from datasets.lake import Lake
from datasets.repos.staging import StagingReceipt, acknowledge, discard, stage_rows
from datasets.repos.state import RepoState
from datasets.timestamps import iso_milliseconds, pipeline_time, utc_now
from pds.errors import BadSignature, RejectedRepo
from pds.jobs import Fetch
from pds.repo.car import Data, read_repo
from pds.repo.records import RecordCounts, record_tables

# Rows are written in segments of about this size.
_SEGMENT_BYTES = 64 * 1024**2
# A larger file is mapped instead of being read into memory.
_MAPPED_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Spooled:
    """A download: the job, the file, and its size in bytes."""

    job: Fetch
    path: str
    size: int


@dataclass(frozen=True)
class DecodeFailure:
    """Why a download is not staged. `bad_signature`: it may be valid with another key."""

    job: Fetch
    status: str
    error: str
    bad_signature: bool


@dataclass(frozen=True)
class DecodedGroup:
    """The result of a task. `receipt` is None if nothing was staged."""

    receipt: StagingReceipt | None
    rows: int
    failures: tuple[DecodeFailure, ...]


def decode_group(lake: Lake, name: str, group: Sequence[Spooled]) -> DecodedGroup:
    """Verifies, decodes and stages repositories, under a receipt of this name.

    The downloaded files are not deleted.
    """
    segments = _SegmentWriter(lake, name)
    states: list[RepoState] = []
    failures: list[DecodeFailure] = []

    # Rows have no cycles, and the collector would examine all of them again and again.
    gc.disable()
    try:
        for spooled in group:
            try:
                states.append(_decode(spooled, segments))
                segments.keep()
            except RejectedRepo as error:
                segments.drop()
                failures.append(_failure(spooled.job, error))
    finally:
        gc.enable()

    if not states:
        return DecodedGroup(None, 0, tuple(failures))

    replaces = {spooled.job.did: spooled.job.replaces for spooled in group}
    receipt = StagingReceipt(
        name=name,
        segments=segments.close(),
        repos=tuple(states),
        replaces={state.did: replaces[state.did] for state in states},
    )
    acknowledge(lake, receipt)

    rows = sum(sum(state.records.values()) for state in states)
    return DecodedGroup(receipt, rows, tuple(failures))


def _decode(spooled: Spooled, segments: _SegmentWriter) -> RepoState:
    job = spooled.job
    identity = job.identity
    counts = RecordCounts()
    now = utc_now()

    with _opened(spooled.path) as data:
        repo = read_repo(data, identity.did, identity.key)
    for table in record_tables(repo, job.coverage, pipeline_time(now), counts):
        segments.add(table)

    return RepoState(
        did=identity.did,
        host=identity.host,
        handle=identity.handle,
        rev=repo.rev,
        cid=repo.cid,
        records=dict(counts.records),
        skipped=dict(counts.skipped),
        unreadable_dates=counts.unreadable_dates,
        malformed=counts.malformed,
        bytes=spooled.size,
        synced_at=iso_milliseconds(now),
        coverage=job.coverage,
    )


def _failure(job: Fetch, error: RejectedRepo) -> DecodeFailure:
    return DecodeFailure(
        job, error.status, error.reason, bad_signature=isinstance(error, BadSignature)
    )


@contextmanager
def _opened(path: str) -> Iterator[Data]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < _MAPPED_BYTES:
            yield file.read()
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield mapped


class _SegmentWriter:
    """Writes segments: small repositories share one, a large one has its own.

    So the rows of a large repository can be dropped when it turns out to be corrupt half-way.
    """

    def __init__(self, lake: Lake, name: str) -> None:
        self._lake = lake
        self._name = name
        self._count = 0
        self._names: list[str] = []
        self._shared: list[pa.Table] = []

        # Of the current repository: segments that are written, and tables that are not.
        self._own: list[str] = []
        self._current: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._current.append(table)
        if _size(self._current) >= _SEGMENT_BYTES:
            self._own.append(self._write(self._current))
            self._current = []

    def keep(self) -> None:
        """Ends the current repository: it is complete."""
        self._names += self._own
        self._shared += self._current
        self._own = []
        self._current = []

        if _size(self._shared) >= _SEGMENT_BYTES:
            self._names.append(self._write(self._shared))
            self._shared = []

    def drop(self) -> None:
        """Ends the current repository: its rows are not wanted."""
        discard(self._lake, self._own)
        self._own = []
        self._current = []

    def close(self) -> tuple[str, ...]:
        """Writes what is left; the names of all segments."""
        if self._shared:
            self._names.append(self._write(self._shared))
        return tuple(self._names)

    def _write(self, tables: list[pa.Table]) -> str:
        name = f"{self._name}.{self._count}"
        self._count += 1
        stage_rows(self._lake, name, pa.concat_tables(tables))
        return name


def _size(tables: list[pa.Table]) -> int:
    return sum(table.nbytes for table in tables)
