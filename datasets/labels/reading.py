"""Reading labels: which posts have one, what a file of them holds, and how much of each date is labelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import BadFile, ConfigError, FileGone
from datasets.lake import Lake
from datasets.posts import OnBadFile, UrisOf, raise_bad_file
from datasets.queues import folder
from datasets.schemas import OUTCOME_COLUMNS, PARTITION_DATE

# Label files that this system wrote. Others in the same folders are the group's history.
PREFIX = "labels-"
# What became of a post; a file of the history may lack all but the URI.
OPTIONAL_OUTCOMES = ("was_successfully_labeled", "reason")
OUTCOMES = pa.schema([("uri", pa.string())] + [(n, OUTCOME_COLUMNS[n]) for n in OPTIONAL_OUTCOMES])
STAGED_DATES = pa.schema([(PARTITION_DATE, pa.string())])
_STAGED_URIS = pa.schema([("uri", pa.string()), *STAGED_DATES])
# How often the files of a date are listed anew, where each listing is out of date when it is read.
_LISTINGS = 10


@dataclass(frozen=True)
class Labels:
    """Where an integration's labels go: its name, and the schema of its rows."""

    integration: str
    schema: pa.Schema

    @property
    def queue(self) -> str:
        return folder("output", self.integration)


def read_labelled(
    lake: Lake, paths: Iterable[str], *, retry_rejected: bool, on_bad: OnBadFile = raise_bad_file
) -> list[pa.Array]:
    """The URIs of label files; without those of rejected posts where these are to be tried again."""
    chunks: list[pa.Array] = []
    for path in paths:
        try:
            for batch in lake.read(path, OUTCOMES, OPTIONAL_OUTCOMES):
                uris = batch["uri"]
                if retry_rejected:
                    uris = uris.filter(pc.fill_null(batch["was_successfully_labeled"], True))
                chunks.append(uris)
        except BadFile as error:
            on_bad(error)
    return chunks


def read_labels(lake: Lake, labels: Labels, path: str) -> pa.Table:
    """A label file with exactly our columns; those that an older file lacks are null."""
    optional = [name for name in labels.schema.names if name != "uri"]
    return pa.Table.from_batches(lake.read(path, labels.schema, optional), labels.schema)


def read_staged(lake: Lake, path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A segment of the output queue. Raises ConfigError where it is none: such a file can't be gone on without."""
    try:
        yield from lake.read(path, schema)
    except BadFile as error:
        raise not_staged(error) from error


def not_staged(error: BadFile) -> ConfigError:
    return ConfigError(
        f"{error.path} holds no staged labels ({error.reason}); move it out of the queue and run the same command again"
    )


def labelled_uris(
    lake: Lake, labels: Labels, *, retry_rejected: bool = False, on_bad: OnBadFile = raise_bad_file
) -> UrisOf:
    """The URIs that a selection leaves out, by partition date: labelled in either tier, or staged.

    The files are listed now, and read a date at a time when it is asked for: held are their names.
    Rejected posts count as labelled unless `retry_rejected`.
    """
    # First what is staged: what a flush moves meanwhile is then seen twice, and never missed.
    waiting = _staged_by_date(lake, labels)
    files = lake.partitions(labels.integration)

    def read(day: str, labelled: Sequence[str], segments: Sequence[str]) -> pa.ChunkedArray:
        chunks = read_labelled(lake, labelled, retry_rejected=retry_rejected, on_bad=on_bad)
        for segment in segments:
            for batch in read_staged(lake, segment, _STAGED_URIS):
                chunks.append(batch["uri"].filter(pc.equal(batch[PARTITION_DATE], day)))
        return pa.chunked_array(chunks, pa.string())

    def uris_of(day: str) -> pa.ChunkedArray:
        labelled, segments = files.get(day, []), waiting.get(day, [])
        for _ in range(_LISTINGS):
            try:
                return read(day, labelled, segments)
            except FileGone:
                # A flush has moved a segment, or replaced a label file: what they held is in files that are new.
                segments = [segment for segment in segments if lake.exists(segment)]
                labelled = lake.partitions(labels.integration, day, day).get(day, [])
        return read(day, labelled, segments)

    return uris_of


def _staged_by_date(lake: Lake, labels: Labels) -> dict[str, list[str]]:
    """Partition date → the segments of the output queue that hold labels of it."""
    found: dict[str, list[str]] = {}
    for path in lake.files(labels.queue):
        with suppress(
            FileGone
        ):  # flushed since it was listed: the label files are listed afterwards
            batches = read_staged(lake, path, STAGED_DATES)
            for day in {
                day for batch in batches for day in pc.unique(batch[PARTITION_DATE]).to_pylist()
            }:
                found.setdefault(day, []).append(path)
    return found


@dataclass(frozen=True)
class Coverage:
    """What the labels of one partition hold. `reasons` counts rejected posts by reason."""

    labelled: int
    rejected: int
    reasons: Mapping[str, int]


def coverage(
    lake: Lake,
    labels: Labels,
    start: str | None,
    end: str | None,
    on_bad: OnBadFile = raise_bad_file,
) -> dict[str, Coverage]:
    """Partition date → what is labelled there, in the lake (not what is staged)."""
    found: dict[str, Coverage] = {}
    listed = lake.partitions(labels.integration, start, end)
    for day in list(listed):
        for listings in reversed(range(_LISTINGS)):
            try:
                found[day] = _covered(lake, listed.get(day, []), on_bad)
                break
            except FileGone:  # a flush has replaced it: what it held is in a file that is new
                if not listings:
                    raise
                listed[day] = lake.partitions(labels.integration, day, day).get(day, [])
    return found


def _covered(lake: Lake, files: Sequence[str], on_bad: OnBadFile) -> Coverage:
    rows = rejected = 0
    reasons: dict[str, int] = {}
    for path in files:
        try:
            for batch in lake.read(path, OUTCOMES, OPTIONAL_OUTCOMES):
                failed = np.asarray(
                    pc.equal(batch["was_successfully_labeled"], False).fill_null(False)
                )
                rows += len(batch)
                rejected += int(failed.sum())
                for item in pc.value_counts(batch["reason"].filter(pa.array(failed))).to_pylist():
                    reasons[item["values"] or "unknown"] = (
                        reasons.get(item["values"] or "unknown", 0) + item["counts"]
                    )
        except BadFile as error:
            on_bad(error)
    return Coverage(rows - rejected, rejected, reasons)
