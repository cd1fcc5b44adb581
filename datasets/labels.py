"""Labels on their way into the lake: staged, flushed, replayed. The whole durability story is here.

1. `stage` writes a batch of label rows as one segment of the output queue, named after its run and
   what is in it. Once it returns, the batch is acknowledged; staging it again changes nothing.
2. `flush` moves many staged batches into the lake: an intent is written; one label file per
   partition date; the intent is rewritten as done, which is the commit; the staged segments are
   removed; the intent is removed.
3. `recover` finishes what a dead run has left: an intent that is done, its removals; any other is
   done again, the same label files under the same names. Segments without an intent are `adopt`ed.

Whoever finishes what another run began leaves out posts that are labelled by now: on S3 a run that
was taken for dead may have written something after all (datasets/locks.py).

With `keep` a flush leaves the segments for a clear phase of their own, and a record (`written-…`)
that they are in the lake. The database is filled from label files (datasets/database.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.errors import BadFile, FileGone
from datasets.lake import Lake
from datasets.locks import NOBODY, Dates, overlap
from datasets.posts import OnBadFile, UrisOf, raise_bad_file
from datasets.queues import digest, folder
from datasets.schemas import OUTCOME_COLUMNS, PARTITION_DATE, conform, staged_schema

# Label files that this system wrote. Others in the same folders are the group's history.
PREFIX = "labels-"
_OUTCOMES = pa.schema(
    [("uri", pa.string())] + [(n, OUTCOME_COLUMNS[n]) for n in ("was_successfully_labeled", "reason")]
)
_STAGED_DATES = pa.schema([(PARTITION_DATE, pa.string())])
_STAGED_URIS = pa.schema([("uri", pa.string()), *_STAGED_DATES])


@dataclass(frozen=True)
class Labels:
    """Where an integration's labels go: its name, and the schema of its rows."""

    integration: str
    schema: pa.Schema

    @property
    def queue(self) -> str:
        return folder("output", self.integration)


def batch_name(integration: str, revision: str, uris: Iterable[str]) -> str:
    """A name for a batch: the same for the same posts, integration and model revision, in any order."""
    return digest([integration, revision, *sorted(uris)])


def segment_name(run_id: str, batch: str) -> str:
    return f"{run_id}-{batch}"


def run_of(segment: str) -> str:
    return segment.rpartition("-")[0]


def stage(lake: Lake, labels: Labels, name: str, rows: pa.Table) -> None:
    """Acknowledges a batch: durable when it returns. `rows` has the columns of `staged_schema`."""
    lake.write_parquet(f"{labels.queue}/{name}.parquet", conform(rows, staged_schema(labels.schema)), compress=False)


def staged(lake: Lake, labels: Labels) -> list[str]:
    """Names of the staged batches that are not in the lake yet."""
    written = {name for path in _records(lake, labels, "written-") for name in _load(lake, path)["staged"]}
    return [name for name in map(_stem, lake.files(labels.queue)) if name not in written]


def flush(
    lake: Lake,
    labels: Labels,
    names: Sequence[str],
    file: str,
    *,
    keep: bool = False,
    replace: bool = False,
    ensure: Callable[[], None] = lambda: None,
) -> list[str]:
    """Moves the staged batches of a run of one's own into the lake; the paths of the label files.

    `file` names them (one a partition date), begins with the run's id, and must be new. `replace`
    takes rejected rows of the same posts out of older label files, which is what trying them again
    needs. `ensure` is called before what only the one writer may do, and raises where it is not that.
    """
    ensure()
    path, intent = _intend(lake, labels, names, file, keep=keep, replace=replace)
    written = _write_label_files(lake, labels, intent, again=False)
    ensure()
    _commit(lake, labels, path, intent)
    return written


def adopt(
    lake: Lake, labels: Labels, names: Sequence[str], file: str, *, keep: bool, ensure: Callable[[], None]
) -> None:
    """`flush` for batches of dead runs: posts that are labelled by now are left out, rejected ones replaced."""
    ensure()
    path, intent = _intend(lake, labels, names, file, keep=keep, replace=True)
    _write_label_files(lake, labels, intent, again=True)
    ensure()
    _commit(lake, labels, path, intent)


def recover(lake: Lake, labels: Labels, live: Mapping[str, Dates] = NOBODY) -> None:
    """Finishes the flushes that dead runs have left, and removes what killed writers left aside.

    One process at a time. `live` are the runs that flush for themselves, and their dates.
    """
    if not live:
        lake.sweep(labels.queue)
    for path in _records(lake, labels, "flush-"):
        if _stem(path).removeprefix("flush-").removesuffix(".json").rsplit("-", 2)[0] not in live:
            _finish(lake, labels, path, _load(lake, path), live)
    for path in _records(lake, labels, "written-"):
        if not any(lake.exists(segment) for segment in _segments(labels, _load(lake, path))):
            lake.delete(path)


def drop_written(lake: Lake, labels: Labels) -> None:
    """Removes the segments that an earlier `keep` flush has left, and its records."""
    for path in _records(lake, labels, "written-"):
        for segment in _segments(labels, _load(lake, path)):
            lake.delete(segment)
        lake.delete(path)


def _intend(
    lake: Lake, labels: Labels, names: Sequence[str], file: str, *, keep: bool, replace: bool
) -> tuple[str, dict[str, Any]]:
    intent = {"staged": list(names), "file": f"{PREFIX}{file}.parquet", "keep": keep, "replace": replace}
    path = f"{labels.queue}/flush-{file}.json"
    lake.write_bytes(path, json.dumps(intent).encode())
    return path, intent


def left_by_dead(lake: Lake, labels: Labels, names: Iterable[str], live: Mapping[str, Dates]) -> list[str]:
    """Staged batches that may be adopted: of no live run, and of no date that one is labelling.

    A run that was taken for dead may stage when another has begun to label the same posts.
    """
    return [name for name in names if run_of(name) not in live and not _in_work(lake, labels, [name], live)]


def _in_work(lake: Lake, labels: Labels, names: Sequence[str], live: Mapping[str, Dates]) -> bool:
    """Whether a live run is about dates of these staged batches."""
    if not live:
        return False
    days = {
        day
        for segment in _segments(labels, {"staged": names})
        for batch in lake.read(segment, _STAGED_DATES)
        for day in pc.unique(batch[PARTITION_DATE]).to_pylist()
    }
    return any(overlap((day, day), dates) for day in days for dates in live.values())


def _finish(lake: Lake, labels: Labels, path: str, intent: dict[str, Any], live: Mapping[str, Dates]) -> None:
    if intent.get("done"):
        _clean_up(lake, labels, path, intent)
    elif all(lake.exists(segment) for segment in _segments(labels, intent)):
        if _in_work(lake, labels, intent["staged"], live):
            return
        _write_label_files(lake, labels, intent, again=True)
        _commit(lake, labels, path, intent)
    else:
        # Others have taken some of the segments. What is left is adopted like any of a dead run.
        lake.delete(path)


def _commit(lake: Lake, labels: Labels, path: str, intent: Mapping[str, Any]) -> None:
    lake.write_bytes(path, json.dumps({**intent, "done": True}).encode())
    _clean_up(lake, labels, path, intent)


def _clean_up(lake: Lake, labels: Labels, path: str, intent: Mapping[str, Any]) -> None:
    if intent["keep"]:
        lake.write_bytes(path.replace("/flush-", "/written-"), json.dumps(dict(intent)).encode())
    else:
        for segment in _segments(labels, intent):
            lake.delete(segment)
    lake.delete(path)


def _segments(labels: Labels, record: Mapping[str, Any]) -> list[str]:
    return [f"{labels.queue}/{name}.parquet" for name in record["staged"]]


def _write_label_files(lake: Lake, labels: Labels, intent: Mapping[str, Any], *, again: bool) -> list[str]:
    schema = staged_schema(labels.schema)
    batches = [batch for segment in _segments(labels, intent) for batch in lake.read(segment, schema)]
    rows = pa.Table.from_batches(batches, schema)
    written: list[str] = []
    days = sorted(pc.unique(rows[PARTITION_DATE]).to_pylist())
    for day in days:
        here = rows if len(days) == 1 else rows.filter(pc.equal(rows[PARTITION_DATE], day))
        here = here.drop_columns(PARTITION_DATE)
        path = f"{labels.integration}/cache/partition_date={day}/{intent['file']}"
        if again:
            here = _unlabelled(lake, labels, day, here, path, retried=intent["replace"])
            if not len(here):
                continue
        lake.write_parquet(path, here, {"batches": json.dumps(intent["staged"])})
        if intent["replace"]:
            _remove_rejected(lake, labels, day, here["uri"], path)
        written.append(path)
    return written


def _unlabelled(lake: Lake, labels: Labels, day: str, rows: pa.Table, own: str, *, retried: bool) -> pa.Table:
    """The rows whose posts no file but `own` has, each post once. `retried`: unless as a rejected one."""
    others = [path for path in lake.partitions(labels.integration, day, day).get(day, []) if path != own]
    known = pa.chunked_array(_read_uris(lake, others, retry_rejected=retried), pa.string())
    rows = rows.filter(pc.invert(pc.is_in(rows["uri"], value_set=known)))
    codes = rows["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    return rows.take(pa.array(np.sort(np.unique(codes, return_index=True)[1])))


def _read_uris(
    lake: Lake, paths: Iterable[str], *, retry_rejected: bool, on_bad: OnBadFile = raise_bad_file
) -> list[pa.Array]:
    chunks: list[pa.Array] = []
    for path in paths:
        try:
            for batch in lake.read(path, _OUTCOMES, ("was_successfully_labeled", "reason")):
                uris = batch["uri"]
                if retry_rejected:
                    uris = uris.filter(pc.fill_null(batch["was_successfully_labeled"], True))
                chunks.append(uris)
        except BadFile as error:
            on_bad(error)
    return chunks


def _remove_rejected(lake: Lake, labels: Labels, day: str, uris: pa.ChunkedArray, new: str) -> None:
    for path in lake.partitions(labels.integration, day, day).get(day, []):
        if path == new or not any(
            _are_rejected(batch, uris).true_count
            for batch in lake.read(path, _OUTCOMES, ("was_successfully_labeled", "reason"))
        ):
            continue
        with lake.open_parquet(path) as file:
            table = file.read()
        kept = table.filter(pc.invert(_are_rejected(table, uris)))
        if len(kept) == 0:
            lake.delete(path)
        else:
            sink = pa.BufferOutputStream()
            pq.write_table(kept, sink)
            lake.write_bytes(path, sink.getvalue())


def _are_rejected(rows: Any, uris: pa.ChunkedArray) -> Any:
    """A bit for each label row: whether it is a rejected one of these posts."""
    rejected = pc.equal(rows["was_successfully_labeled"], False).fill_null(False)
    return pc.and_(rejected, pc.is_in(rows["uri"], value_set=uris))


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

    All is listed now. Rejected posts count as labelled unless `retry_rejected`.
    """
    # First what is staged: what a flush moves meanwhile is then seen twice, and never missed.
    waiting: dict[str, list[pa.Array]] = {}
    for path in lake.files(labels.queue):
        try:
            for batch in lake.read(path, _STAGED_URIS):
                for day in pc.unique(batch[PARTITION_DATE]).to_pylist():
                    waiting.setdefault(day, []).append(batch["uri"].filter(pc.equal(batch[PARTITION_DATE], day)))
        except FileGone:
            continue
    files = lake.partitions(labels.integration)

    def uris_of(day: str) -> pa.ChunkedArray:
        labelled = _read_uris(lake, files.get(day, ()), retry_rejected=retry_rejected, on_bad=on_bad)
        return pa.chunked_array([*waiting.get(day, ()), *labelled], pa.string())

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
