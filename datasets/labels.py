"""Labels on their way into the lake: staged, flushed, replayed. The whole durability story is here.

1. `stage` writes a batch of label rows as one segment of the output queue, named after what is in
   it. Once it returns, the batch is acknowledged; staging it again changes nothing.
2. `flush` moves many staged batches into the lake: an intent is written; one label file per
   partition date; the staged segments are removed; the intent is removed.
3. `recover` finishes what a kill has left: an intent whose segments are all there is done again
   (the same label files under the same names); if one is missing, the label files were complete
   before the first was removed, so only the rest is removed.

With `keep` a flush leaves the segments for a clear phase of their own, and a record (`written-…`)
that they are in the lake. The database is filled from label files (datasets/database.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.errors import BadFile
from datasets.lake import Lake
from datasets.posts import OnBadFile, UrisOf, raise_bad_file
from datasets.queues import digest, folder
from datasets.schemas import OUTCOME_COLUMNS, PARTITION_DATE, conform, staged_schema

# Label files that this system wrote. Others in the same folders are the group's history.
PREFIX = "labels-"
_OUTCOMES = pa.schema(
    [("uri", pa.string())] + [(n, OUTCOME_COLUMNS[n]) for n in ("was_successfully_labeled", "reason")]
)
_STAGED_URIS = pa.schema([("uri", pa.string()), (PARTITION_DATE, pa.string())])


@dataclass(frozen=True)
class Labels:
    """Where an integration's labels go: its name, and the schema of its rows."""

    integration: str
    schema: pa.Schema

    @property
    def queue(self) -> str:
        return folder("output", self.integration)


def batch_name(integration: str, revision: str, uris: Iterable[str]) -> str:
    """The name of a batch: the same for the same posts, integration and model revision, in any order."""
    return digest([integration, revision, *sorted(uris)])


def stage(lake: Lake, labels: Labels, name: str, rows: pa.Table) -> None:
    """Acknowledges a batch: durable when it returns. `rows` has the columns of `staged_schema`."""
    lake.write_parquet(f"{labels.queue}/{name}.parquet", conform(rows, staged_schema(labels.schema)), compress=False)


def staged(lake: Lake, labels: Labels) -> list[str]:
    """Names of the staged batches that are not in the lake yet."""
    written = {name for path in _records(lake, labels, "written-") for name in _load(lake, path)["staged"]}
    return [name for name in map(_stem, lake.files(labels.queue)) if name not in written]


def flush(
    lake: Lake, labels: Labels, names: Sequence[str], file: str, *, keep: bool = False, replace: bool = False
) -> list[str]:
    """Moves staged batches into the lake; the paths of the label files.

    `file` names them (one a partition date) and must be new. `replace` takes rejected rows of the
    same posts out of older label files, which is what trying them again needs.
    """
    intent = {"staged": list(names), "file": f"{PREFIX}{file}.parquet", "keep": keep, "replace": replace}
    path = f"{labels.queue}/flush-{file}.json"
    lake.write_bytes(path, json.dumps(intent).encode())
    return _finish(lake, labels, path, intent)


def recover(lake: Lake, labels: Labels) -> None:
    """Finishes the flushes that were cut off, and removes what killed writers left. For the only writer."""
    lake.sweep(labels.queue)
    for path in _records(lake, labels, "flush-"):
        _finish(lake, labels, path, _load(lake, path))
    for path in _records(lake, labels, "written-"):
        if not any(lake.exists(f"{labels.queue}/{name}.parquet") for name in _load(lake, path)["staged"]):
            lake.delete(path)


def drop_written(lake: Lake, labels: Labels) -> None:
    """Removes the segments that an earlier `keep` flush has left, and its records."""
    for path in _records(lake, labels, "written-"):
        for name in _load(lake, path)["staged"]:
            lake.delete(f"{labels.queue}/{name}.parquet")
        lake.delete(path)


def _finish(lake: Lake, labels: Labels, path: str, intent: Mapping[str, Any]) -> list[str]:
    segments = [f"{labels.queue}/{name}.parquet" for name in intent["staged"]]
    written: list[str] = []
    if all(lake.exists(segment) for segment in segments):
        written = _write_label_files(lake, labels, segments, intent)
    if intent["keep"]:
        lake.write_bytes(path.replace("/flush-", "/written-"), json.dumps(dict(intent)).encode())
    else:
        for segment in segments:
            lake.delete(segment)
    lake.delete(path)
    return written


def _write_label_files(lake: Lake, labels: Labels, segments: Sequence[str], intent: Mapping[str, Any]) -> list[str]:
    schema = staged_schema(labels.schema)
    rows = pa.Table.from_batches([batch for segment in segments for batch in lake.read(segment, schema)], schema)
    written: list[str] = []
    for day in sorted(pc.unique(rows[PARTITION_DATE]).to_pylist()):
        here = rows.filter(pc.equal(rows[PARTITION_DATE], day)).drop_columns(PARTITION_DATE)
        path = f"{labels.integration}/cache/partition_date={day}/{intent['file']}"
        lake.write_parquet(path, here, {"batches": json.dumps(intent["staged"])})
        if intent["replace"]:
            _remove_rejected(lake, labels, day, here["uri"], path)
        written.append(path)
    return written


def _remove_rejected(lake: Lake, labels: Labels, day: str, uris: pa.ChunkedArray, new: str) -> None:
    for path in lake.partitions(labels.integration, day, day).get(day, []):
        if path == new:
            continue
        with lake.open_parquet(path) as file:
            table = file.read()
        if "was_successfully_labeled" not in table.column_names:
            continue
        rejected = pc.equal(table["was_successfully_labeled"], False).fill_null(False)
        kept = table.filter(pc.invert(pc.and_(rejected, pc.is_in(table["uri"], value_set=uris))))
        if len(kept) == 0:
            lake.delete(path)
        elif len(kept) < len(table):
            sink = pa.BufferOutputStream()
            pq.write_table(kept, sink)
            lake.write_bytes(path, sink.getvalue())


def flushed_batches(lake: Lake, labels: Labels, run_id: str) -> set[str]:
    """Names of the batches that a run's flushes have moved into the lake, from the footers of its label files."""
    found: set[str] = set()
    for files in lake.partitions(labels.integration).values():
        for path in files:
            if _stem(path).startswith(f"{PREFIX}{run_id}-"):
                with lake.open_parquet(path) as file:
                    found.update(json.loads((file.schema_arrow.metadata or {}).get(b"batches", b"[]")))
    return found


def read_labels(lake: Lake, labels: Labels, path: str) -> pa.Table:
    """A label file with exactly our columns; those that an older file lacks are null."""
    optional = [name for name in labels.schema.names if name != "uri"]
    return pa.Table.from_batches(lake.read(path, labels.schema, optional), labels.schema)


def labelled_uris(
    lake: Lake, labels: Labels, *, retry_rejected: bool = False, on_bad: OnBadFile = raise_bad_file
) -> UrisOf:
    """The URIs that a selection leaves out, by partition date: labelled in either tier, or staged.

    The label files are listed now. Rejected posts count as labelled unless `retry_rejected`.
    """
    files = lake.partitions(labels.integration)
    waiting: dict[str, list[pa.Array]] = {}
    for path in lake.files(labels.queue):
        for batch in lake.read(path, _STAGED_URIS):
            for day in pc.unique(batch[PARTITION_DATE]).to_pylist():
                waiting.setdefault(day, []).append(batch["uri"].filter(pc.equal(batch[PARTITION_DATE], day)))

    def uris_of(day: str) -> pa.ChunkedArray:
        chunks = list(waiting.get(day, ()))
        for path in files.get(day, ()):
            try:
                for batch in lake.read(path, _OUTCOMES, ("was_successfully_labeled", "reason")):
                    uris = batch["uri"]
                    if retry_rejected:
                        uris = uris.filter(pc.fill_null(batch["was_successfully_labeled"], True))
                    chunks.append(uris)
            except BadFile as error:
                on_bad(error)
        return pa.chunked_array(chunks, pa.string())

    return uris_of


@dataclass(frozen=True)
class Coverage:
    """What the labels of one partition hold. `reasons` counts rejected posts by reason."""

    labelled: int
    rejected: int
    reasons: Mapping[str, int]


def coverage(
    lake: Lake, labels: Labels, start: str | None, end: str | None, on_bad: OnBadFile = raise_bad_file
) -> dict[str, Coverage]:
    """Partition date → what is labelled there, in the lake (not what is staged)."""
    found: dict[str, Coverage] = {}
    for day, files in lake.partitions(labels.integration, start, end).items():
        rows = rejected = 0
        reasons: dict[str, int] = {}
        for path in files:
            try:
                for batch in lake.read(path, _OUTCOMES, ("was_successfully_labeled", "reason")):
                    failed = np.asarray(pc.equal(batch["was_successfully_labeled"], False).fill_null(False))
                    rows += len(batch)
                    rejected += int(failed.sum())
                    for item in pc.value_counts(batch["reason"].filter(pa.array(failed))).to_pylist():
                        reasons[item["values"] or "unknown"] = (
                            reasons.get(item["values"] or "unknown", 0) + item["counts"]
                        )
            except BadFile as error:
                on_bad(error)
        found[day] = Coverage(rows - rejected, rejected, reasons)
    return found


def _records(lake: Lake, labels: Labels, prefix: str) -> list[str]:
    return [path for path in lake.files(labels.queue, ".json") if path.rpartition("/")[2].startswith(prefix)]


def _load(lake: Lake, path: str) -> dict[str, Any]:
    return dict(json.loads(lake.read_bytes(path)))


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")
