"""Labels on their way into the lake: staged, flushed, recovered. The whole durability story is here.

1. `stage` writes a batch of label rows as one segment of the output queue, named after its run and
   what is in it. Once it returns, the batch is acknowledged; staging it again changes nothing.
2. `flush` moves many staged batches into the lake: an intent is written; one label file per
   partition date; the intent is rewritten as done, which is the commit; label files whose rejected
   rows were replaced, and the staged segments, are removed; the intent is removed.
3. `recover` finishes what a dead run has left: an intent that is done, its removals. Any other is
   attempted anew, and what the first attempt wrote is removed after the new one has committed.
   Segments without an intent are `adopt`ed.

On S3 a run that was taken for dead may wake up and go on writing (datasets/locking/locks.py). Three things
keep a post at one row then. Each attempt writes files under names of its own, and nothing but a
commit removes what others wrote, so a late writer cannot change what stands. It asks before each
write whether it still is the writer, and takes its files back if not. And should it die before it
can, its attempt is on record as abandoned, and the next recovery removes its rows.

Whoever finishes what another run began leaves out posts that are labelled by now.

With `keep` a flush leaves the segments for a clear phase of their own, and a record (`written-…`)
that they are in the lake. The database is filled from label files (datasets/database.py).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import BackfillError, BadFile, ConfigError
from datasets.labels.reading import (
    OPTIONAL_OUTCOMES,
    OUTCOMES,
    PREFIX,
    STAGED_DATES,
    Labels,
    not_staged,
    read_labelled,
    read_staged,
)
from datasets.lake import TIERS, Lake
from datasets.locking.locks import NOBODY, Dates, overlap
from datasets.posts import OnBadFile, raise_bad_file
from datasets.queues import digest
from datasets.schemas import PARTITION_DATE, conform, staged_schema

# What is left of a file of the group's history when rejected rows in it were replaced: history still.
_HISTORY_PREFIX = "kept-"
# The files of one attempt: `labels-FILE`, and what is left of older ones, numbered.
_OF_ATTEMPT = re.compile(rf"(?:{PREFIX}|{_HISTORY_PREFIX})(.+?)(?:\.\d+)?")
_ANOTHER_ATTEMPT = re.compile(r"r[0-9a-f]{6}$")
# How long a writer that was taken for dead is reckoned with: a laptop may sleep for weeks.
_ABANDONED_SECONDS = 90 * 86400.0


def batch_name(integration: str, revision: str, uris: Iterable[str]) -> str:
    """A name for a batch: the same for the same posts, integration and model revision, in any order."""
    return digest([integration, revision, *sorted(uris)])


def segment_name(run_id: str, batch: str) -> str:
    return f"{run_id}-{batch}"


def run_of(segment: str) -> str:
    return segment.rpartition("-")[0]


def stage(lake: Lake, labels: Labels, name: str, rows: pa.Table) -> None:
    """Acknowledges a batch: durable when it returns. `rows` has the columns of `staged_schema`."""
    lake.write_parquet(
        f"{labels.queue}/{name}.parquet",
        conform(rows, staged_schema(labels.schema)),
        compress=False,
    )


def staged(lake: Lake, labels: Labels) -> list[str]:
    """Names of the staged batches that are not in the lake yet."""
    written = {
        name for path in _records(lake, labels, "written-") for name in _load(lake, path)["staged"]
    }
    return [name for name in map(_stem, lake.files(labels.queue)) if name not in written]


def count_staged(lake: Lake, labels: Labels, names: Iterable[str]) -> dict[str, int]:
    """Rows of each of some staged batches, from their footers."""
    try:
        return {name: lake.num_rows(f"{labels.queue}/{name}.parquet") for name in names}
    except BadFile as error:
        raise not_staged(error) from error


def flush(
    lake: Lake,
    labels: Labels,
    names: Sequence[str],
    file: str,
    *,
    keep: bool = False,
    replace: bool = False,
    ensure: Callable[[], None] = lambda: None,
    on_bad: OnBadFile = raise_bad_file,
) -> list[str]:
    """Moves the staged batches of a run of one's own into the lake; the paths of the label files.

    `file` names them (one a partition date), begins with the run's id, and must be new. `replace`
    takes rejected rows of the same posts out of older label files, which is what trying them again
    needs. `ensure` is called before each write that only the one writer may do, and raises where it
    is not that any more. `on_bad` is given older label files that cannot be read.
    """
    return _attempt(
        lake,
        labels,
        names,
        file,
        keep=keep,
        replace=replace,
        again=False,
        ensure=ensure,
        on_bad=on_bad,
    )


def adopt(
    lake: Lake,
    labels: Labels,
    names: Sequence[str],
    file: str,
    *,
    keep: bool,
    ensure: Callable[[], None],
    on_bad: OnBadFile = raise_bad_file,
) -> None:
    """`flush` for batches of dead runs: posts that are labelled by now are left out, rejected ones replaced."""
    _attempt(
        lake, labels, names, file, keep=keep, replace=True, again=True, ensure=ensure, on_bad=on_bad
    )


def recover(
    lake: Lake,
    labels: Labels,
    live: Mapping[str, Dates] = NOBODY,
    ensure: Callable[[], None] = lambda: None,
    on_bad: OnBadFile = raise_bad_file,
) -> None:
    """Finishes the flushes that dead runs have left, and removes what killed writers left behind.

    One process at a time: `ensure` raises where this is not the one any more. `live` are the runs
    that flush for themselves, and their dates. `on_bad` is given label files that cannot be read.
    """
    if not live:
        _sweep(lake, labels)

    intents = {
        path: _load(lake, path)
        for path in _records(lake, labels, "flush-")
        if _file_of(path).rsplit("-", 2)[0] not in live
    }
    # Committed ones first: then a segment that is still there is in no label file that counts.
    for path, intent in intents.items():
        if intent.get("done"):
            ensure()
            _clean_up(lake, labels, path, intent)
    for path, intent in intents.items():
        if not intent.get("done"):
            _finish(lake, labels, path, intent, live, ensure, on_bad)
    _remove_late_files(lake, labels, ensure, on_bad)

    for path in _records(lake, labels, "written-"):
        if not any(lake.exists(segment) for segment in _segments(labels, _load(lake, path))):
            lake.delete(path)


def drop_written(lake: Lake, labels: Labels) -> None:
    """Removes the segments that an earlier `keep` flush has left, and its records."""
    for path in _records(lake, labels, "written-"):
        for segment in _segments(labels, _load(lake, path)):
            lake.delete(segment)
        lake.delete(path)


def _attempt(
    lake: Lake,
    labels: Labels,
    names: Sequence[str],
    file: str,
    *,
    keep: bool,
    replace: bool,
    again: bool,
    ensure: Callable[[], None],
    on_bad: OnBadFile,
) -> list[str]:
    """Intent, label files, commit. An attempt that may not commit takes its files back: the segments have it all."""
    ensure()
    intent = {
        "staged": list(names),
        "file": f"{PREFIX}{file}.parquet",
        "keep": keep,
        "replace": replace,
    }
    path = f"{labels.queue}/flush-{file}.json"
    lake.write_bytes(path, json.dumps(intent).encode())

    written: list[str] = []
    replaced: list[str] = []
    try:
        for made in _label_files(lake, labels, intent, file, again=again, on_bad=on_bad):
            if len(made.rows):
                ensure()
                written.append(made.path)
                lake.write_parquet(made.path, made.rows, made.metadata)
            if made.replaces:
                replaced.append(made.replaces)
        ensure()
    except BackfillError:
        for late in written:
            with suppress(
                BackfillError
            ):  # the first error is the one to tell; recovery tries again
                lake.delete(late)
        raise

    intent |= {"done": True, "replaced": replaced}
    lake.write_bytes(path, json.dumps(intent).encode())
    _clean_up(lake, labels, path, intent)
    return [made for made in written if _stem(made).startswith(PREFIX)]


def left_by_dead(
    lake: Lake, labels: Labels, names: Iterable[str], live: Mapping[str, Dates]
) -> list[str]:
    """Staged batches that may be adopted: of no live run, and of no date that one is labelling.

    A run that was taken for dead may stage when another has begun to label the same posts.
    """
    return [
        name
        for name in names
        if run_of(name) not in live and not _in_work(lake, labels, [name], live)
    ]


def _in_work(lake: Lake, labels: Labels, names: Sequence[str], live: Mapping[str, Dates]) -> bool:
    """Whether a live run is about dates of these staged batches."""
    if not live:
        return False
    days = {
        day
        for segment in _segments(labels, {"staged": names})
        for batch in read_staged(lake, segment, STAGED_DATES)
        for day in pc.unique(batch[PARTITION_DATE]).to_pylist()
    }
    return any(overlap((day, day), dates) for day in days for dates in live.values())


def _finish(
    lake: Lake,
    labels: Labels,
    path: str,
    intent: Mapping[str, Any],
    live: Mapping[str, Dates],
    ensure: Callable[[], None],
    on_bad: OnBadFile,
) -> None:
    """A dead run's attempt that did not commit: made anew where all it wanted to move is there, then abandoned."""
    file = _file_of(path)
    if set(intent["staged"]) <= set(staged(lake, labels)):
        if _in_work(lake, labels, intent["staged"], live):
            return
        anew = f"{_flush_of(file)}r{token_hex(3)}"
        options = {"keep": intent["keep"], "replace": intent["replace"]}
        _attempt(
            lake,
            labels,
            intent["staged"],
            anew,
            **options,
            again=True,
            ensure=ensure,
            on_bad=on_bad,
        )

    # Otherwise another has moved the segments, or some of them; what is left is adopted like any of a dead run.
    ensure()
    if not lake.is_local:
        lake.write_bytes(
            f"{_abandoned(labels)}/{file}.json", json.dumps({"at": time.time()}).encode()
        )
    _remove_rows_of(lake, labels, {file}, on_bad)
    lake.delete(path)


def _clean_up(lake: Lake, labels: Labels, path: str, intent: Mapping[str, Any]) -> None:
    for replaced in intent.get("replaced", ()):
        lake.delete(replaced)
    if intent["keep"]:
        lake.write_bytes(path.replace("/flush-", "/written-"), json.dumps(dict(intent)).encode())
    else:
        for segment in _segments(labels, intent):
            lake.delete(segment)
    lake.delete(path)


def _abandoned(labels: Labels) -> str:
    """The folder of records of attempts that were given up while their writers might have been alive."""
    return f".locks/{labels.integration}/abandoned"


def _remove_late_files(
    lake: Lake, labels: Labels, ensure: Callable[[], None], on_bad: OnBadFile
) -> None:
    """What writers that were taken for dead have written since, and had no time to take back."""
    records = lake.files(_abandoned(labels), ".json")
    if not records:
        return
    ensure()
    _remove_rows_of(lake, labels, {_stem(path).removesuffix(".json") for path in records}, on_bad)
    for path in records:
        if time.time() - _load(lake, path)["at"] > _ABANDONED_SECONDS:
            lake.delete(path)


def _remove_rows_of(lake: Lake, labels: Labels, attempts: set[str], on_bad: OnBadFile) -> None:
    """Removes the label files of attempts that did not commit. Rows that stand nowhere else are kept all the same."""
    for day, paths in lake.partitions(labels.integration).items():
        for path in [path for path in paths if _attempt_of(path) in attempts]:
            others = [
                other
                for other in lake.partitions(labels.integration, day, day).get(day, [])
                if other != path
            ]
            rows = lake.read_whole(path)
            elsewhere = pa.chunked_array(
                read_labelled(lake, others, retry_rejected=False, on_bad=on_bad), pa.string()
            )
            left = rows.filter(
                pc.invert(pc.is_in(rows["uri"].cast(pa.string()), value_set=elsewhere))
            )
            if len(left):
                folder, _, name = path.rpartition("/")
                attempt = _attempt_of(path) or ""
                lake.write_parquet(
                    f"{folder}/{name.replace(attempt, f'{_flush_of(attempt)}r{token_hex(3)}', 1)}",
                    left,
                )
            lake.delete(path)


def _attempt_of(path: str) -> str | None:
    """The attempt that wrote a label file, None for a file that others wrote."""
    match = _OF_ATTEMPT.fullmatch(_stem(path))
    return match[1] if match else None


def _flush_of(attempt: str) -> str:
    """The first attempt at the same flush."""
    return _ANOTHER_ATTEMPT.sub("", attempt)


def _file_of(intent: str) -> str:
    return _stem(intent).removeprefix("flush-").removesuffix(".json")


def _sweep(lake: Lake, labels: Labels) -> None:
    """Removes what killed writers left aside (`.aside`), in the queue and among the labels."""
    lake.sweep(labels.queue)
    if lake.is_local:
        for tier in TIERS:
            dataset = f"{labels.integration}/{tier}"
            for name in lake.folders(dataset):
                lake.sweep(f"{dataset}/{name}")


def _segments(labels: Labels, record: Mapping[str, Any]) -> list[str]:
    return [f"{labels.queue}/{name}.parquet" for name in record["staged"]]


@dataclass(frozen=True)
class _LabelFile:
    """A file that an attempt writes, and the one that it takes the place of. Without rows there is nothing to write."""

    path: str
    rows: pa.Table
    metadata: dict[str, str] | None = None
    replaces: str | None = None


def _label_files(
    lake: Lake,
    labels: Labels,
    intent: Mapping[str, Any],
    file: str,
    *,
    again: bool,
    on_bad: OnBadFile,
) -> Iterator[_LabelFile]:
    schema = staged_schema(labels.schema)
    batches = [
        batch
        for segment in _segments(labels, intent)
        for batch in read_staged(lake, segment, schema)
    ]
    rows = pa.Table.from_batches(batches, schema)
    metadata = {"batches": json.dumps(intent["staged"])}
    days = sorted(pc.unique(rows[PARTITION_DATE]).to_pylist())

    for day in days:
        here = rows if len(days) == 1 else rows.filter(pc.equal(rows[PARTITION_DATE], day))
        here = here.drop_columns(PARTITION_DATE)
        older = _other_files(lake, labels, day, file) if again or intent["replace"] else []
        if again:
            here = _unlabelled(lake, here, older, retried=intent["replace"], on_bad=on_bad)

        folder = f"{labels.integration}/cache/partition_date={day}"
        yield _LabelFile(f"{folder}/{PREFIX}{file}.parquet", here, metadata)

        for number, path in enumerate(older if intent["replace"] else []):
            left = _without_rejected(lake, path, here["uri"], on_bad)
            if left is not None:
                folder, _, name = path.rpartition("/")
                prefix = PREFIX if name.startswith(PREFIX) else _HISTORY_PREFIX
                yield _LabelFile(f"{folder}/{prefix}{file}.{number}.parquet", left, replaces=path)


def _other_files(lake: Lake, labels: Labels, day: str, file: str) -> list[str]:
    """The label files of a date without those of any attempt at the flush that `file` is an attempt at."""
    paths = lake.partitions(labels.integration, day, day).get(day, [])
    return [path for path in paths if _flush_of(_attempt_of(path) or "") != _flush_of(file)]


def _unlabelled(
    lake: Lake, rows: pa.Table, others: Sequence[str], *, retried: bool, on_bad: OnBadFile
) -> pa.Table:
    """The rows whose posts none of the `others` has, each post once. `retried`: unless as a rejected one."""
    known = pa.chunked_array(
        read_labelled(lake, others, retry_rejected=retried, on_bad=on_bad), pa.string()
    )
    rows = rows.filter(pc.invert(pc.is_in(rows["uri"], value_set=known)))
    codes = rows["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    return rows.take(pa.array(np.sort(np.unique(codes, return_index=True)[1])))


def _without_rejected(
    lake: Lake, path: str, uris: pa.ChunkedArray, on_bad: OnBadFile
) -> pa.Table | None:
    """A label file without rejected rows of these posts, None where it has none, or cannot be read."""
    try:
        rejected = [
            pc.and_(
                pc.equal(batch["was_successfully_labeled"], False).fill_null(False),
                pc.is_in(batch["uri"], value_set=uris),
            )
            for batch in lake.read(path, OUTCOMES, OPTIONAL_OUTCOMES)
        ]
        mask = pa.chunked_array(rejected, pa.bool_())
        return lake.read_whole(path).filter(pc.invert(mask)) if pc.any(mask).as_py() else None
    except BadFile as error:
        on_bad(error)
        return None


def flushed_batches(lake: Lake, labels: Labels, run_id: str) -> set[str]:
    """Names of the batches that a run's flushes have moved into the lake, from the footers of its label files."""
    found: set[str] = set()
    for files in lake.partitions(labels.integration).values():
        for path in files:
            if _stem(path).startswith(f"{PREFIX}{run_id}-"):
                with lake.open_parquet(path) as file:
                    found.update(
                        json.loads((file.schema_arrow.metadata or {}).get(b"batches", b"[]"))
                    )
    return found


def _records(lake: Lake, labels: Labels, prefix: str) -> list[str]:
    return [
        path
        for path in lake.files(labels.queue, ".json")
        if path.rpartition("/")[2].startswith(prefix)
    ]


def _load(lake: Lake, path: str) -> dict[str, Any]:
    try:
        record = json.loads(lake.read_bytes(path))
        if not isinstance(record, dict) or not (
            {"staged", "keep", "replace"} <= record.keys() or "at" in record
        ):
            raise ValueError("it has not what a record has")
    except ValueError as error:
        raise ConfigError(
            f"{lake.show(path)} is not a record of a flush ({error}); remove it and run the same command again: "
            "the labels that it is about are still staged"
        ) from error
    return record


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")
