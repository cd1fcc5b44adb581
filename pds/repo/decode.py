"""Downloaded CARs → staged rows: the body of a Ray task, off the fetchers of the hosts."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from datasets.lake import Lake
from datasets.repos.staging import StagingReceipt, acknowledge, discard, stage_rows
from datasets.repos.state import RepoState
from pds.errors import BadSignature, RejectedRepo
from pds.jobs import Fetch
from pds.repo.car import Data, read_repo
from pds.repo.records import Counts, rows

# Rows are written in segments of about this size.
_SEGMENT_BYTES = 64 * 1024**2
# A larger file is not read into memory as a whole.
_MAPPED_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Spooled:
    """A download: the job that it is of, and the file."""

    job: Fetch
    path: str
    size: int


@dataclass(frozen=True)
class DecodeFailure:
    """Why a download is not staged. `bad_signature`: it may be right with another key."""

    job: Fetch
    status: str
    error: str
    bad_signature: bool


@dataclass(frozen=True)
class DecodedGroup:
    """`receipt` is None where nothing was staged."""

    receipt: StagingReceipt | None
    rows: int
    failures: tuple[DecodeFailure, ...]


def decode_group(lake: Lake, name: str, group: Sequence[Spooled]) -> DecodedGroup:
    """Verifies, decodes and stages some repositories under a receipt of this name. The files stay."""
    segments = _Segments(lake, name)
    states, failures = [], []
    replaces = {spooled.job.did: spooled.job.replaces for spooled in group}
    # Rows have no cycles, and the collector would walk all of them again and again.
    gc.disable()
    try:
        for spooled in group:
            try:
                states.append(_decode(spooled, segments))
                segments.keep()
            except RejectedRepo as error:
                segments.drop()
                bad_signature = isinstance(error, BadSignature)
                failures.append(
                    DecodeFailure(spooled.job, error.status, error.reason, bad_signature)
                )
    finally:
        gc.enable()
    if not states:
        return DecodedGroup(None, 0, tuple(failures))
    receipt = StagingReceipt(
        name, segments.close(), tuple(states), {state.did: replaces[state.did] for state in states}
    )
    acknowledge(lake, receipt)
    return DecodedGroup(
        receipt, sum(sum(state.records.values()) for state in states), tuple(failures)
    )


def _decode(spooled: Spooled, segments: _Segments) -> RepoState:
    job, identity, counts = spooled.job, spooled.job.identity, Counts()
    now = datetime.now(UTC)
    with _opened(spooled.path) as data:
        repo = read_repo(data, identity.did, identity.key)
    for table in rows(repo, job.coverage, now.strftime("%Y-%m-%d-%H:%M:%S"), counts):
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
        synced_at=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        coverage=job.coverage,
    )


@contextmanager
def _opened(path: str) -> Iterator[Data]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < _MAPPED_BYTES:
            yield file.read()
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield mapped


class _Segments:
    """Small repositories share a segment. A large one has segments of its own, so that it can be dropped half-way."""

    def __init__(self, lake: Lake, name: str) -> None:
        self._lake, self._name = lake, name
        self._names: list[str] = []
        self._shared: list[pa.Table] = []
        self._own: list[str] = []
        self._current: list[pa.Table] = []
        self._count = 0

    def add(self, table: pa.Table) -> None:
        self._current.append(table)
        if _size(self._current) >= _SEGMENT_BYTES:
            self._own.append(self._write(self._current))
            self._current = []

    def keep(self) -> None:
        """The repository that was added is whole."""
        self._names += self._own
        self._shared += self._current
        self._own, self._current = [], []
        if _size(self._shared) >= _SEGMENT_BYTES:
            self._names.append(self._write(self._shared))
            self._shared = []

    def drop(self) -> None:
        discard(self._lake, self._own)
        self._own, self._current = [], []

    def close(self) -> tuple[str, ...]:
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
