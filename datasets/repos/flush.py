"""Flushing staged repositories into the lake: many at once, each replaced as a whole.

1. Decoders stage repositories (datasets/repos/staging.py).
2. `flush` moves staged repositories into the lake as one batch. It writes an intent; then one file
   per record type, date and group of rows; it removes the repositories' earlier rows from the files
   of earlier batches; then it writes the batch's manifest and the repositories' state in the
   database; last, it deletes the staged files and the intent.
3. `recover` repeats a flush that was cut off. Every step gives the same result when repeated, and
   the staged files are deleted last: if one of them is missing, all earlier steps were completed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.database import Database
from datasets.lake import Lake
from datasets.repos.coverage import RECORD_TYPES, contains
from datasets.repos.manifests import (
    WRITER_THREADS,
    Manifest,
    manifest_names,
    read_manifest,
    remove_repos,
    write_manifest,
)
from datasets.repos.record_schemas import RAW, STAGED_SCHEMA, record_schema
from datasets.repos.staging import (
    INTENT_PREFIX,
    STAGED,
    StagingReceipt,
    discard,
    has_all_segments,
    is_intent,
    read_receipt,
    read_record,
    receipt_path,
    segment_path,
)
from datasets.repos.state import RepoState, batches, forget_batch, load_repos, save_repos
from datasets.schemas import PARTITION_DATE, conform

# Bytes of rows in memory at a time. Such a group becomes one file per record type and date.
GROUP_BYTES = 256 * 1024**2

# Called before a step that only the one writer may take; raises if the caller is no longer that.
Ensure = Callable[[], None]


def no_check() -> None:
    """For callers that cannot have lost their lock."""


def flush(
    lake: Lake,
    database: Database,
    receipts: Sequence[StagingReceipt],
    batch: str,
    ensure: Ensure = no_check,
) -> list[RepoState]:
    """Moves staged repositories into the lake and the database; returns their rows of `pds_repos`.

    `batch` must be a new name. A repository that is older than what the lake holds is left out, and
    has no row in the result (`outdated` names these). `ensure` is called before each step that only
    the one writer may take, and raises if the caller has lost the lock.
    """
    dids = {repo.did for receipt in receipts for repo in receipt.repos}
    held = load_repos(database, dids)
    receipt_of = _latest(receipts, held)

    intent: dict[str, Any] = {
        "batch": batch,
        "receipts": {receipt.name: [] for receipt in receipts},
        "replaced": {},
    }
    for did, receipt_name in receipt_of.items():
        intent["receipts"][receipt_name].append(did)
        if did in held and held[did].batch:
            intent["replaced"].setdefault(held[did].batch, []).append(did)

    ensure()
    lake.write_bytes(_intent_path(batch), json.dumps(intent).encode())
    return _finish(lake, database, intent, ensure)


def outdated(receipts: Iterable[StagingReceipt], written: Iterable[RepoState]) -> set[str]:
    """DIDs of staged repositories that a flush left out: the lake has newer records of them."""
    all_staged = {repo.did for receipt in receipts for repo in receipt.repos}
    return all_staged - {repo.did for repo in written}


def recover(lake: Lake, database: Database, ensure: Ensure = no_check) -> None:
    """Finishes flushes that were cut off, then makes the database agree with the manifests.

    Only the one process that flushes may call this.
    """
    lake.sweep(STAGED)
    for path in lake.files(STAGED, ".json"):
        if is_intent(path):
            intent = read_record(lake, path, "batch", "receipts", "replaced")
            _finish(lake, database, intent, ensure)

    in_lake = manifest_names(lake)
    in_database = batches(database)

    for batch in in_lake - in_database:
        with database.transaction():
            save_repos(database, read_manifest(lake, batch).repos)

    for batch in in_database - in_lake:
        forget_batch(database, batch)


def _intent_path(batch: str) -> str:
    return f"{STAGED}/{INTENT_PREFIX}{batch}.json"


def _latest(receipts: Sequence[StagingReceipt], held: Mapping[str, RepoState]) -> dict[str, str]:
    """DID → name of the receipt with its latest rows, for repositories newer than the lake's."""
    latest: dict[str, tuple[str, str, str]] = {}

    for receipt in receipts:
        for repo in receipt.repos:
            if _is_newer(receipt, repo, held.get(repo.did)):
                order = (repo.rev or "", repo.synced_at or "", receipt.name)
                latest[repo.did] = max(latest.get(repo.did, order), order)

    return {did: name for did, (_, _, name) in latest.items()}


def _is_newer(receipt: StagingReceipt, repo: RepoState, held: RepoState | None) -> bool:
    """Whether a staged repository may replace what the lake holds. Clocks play no part in this.

    It may if it was fetched to replace exactly that. It may not be so if another flush came in
    between, because a decoder outlived its driver. Then revisions decide, which only increase, and
    the staged repository must cover everything that the lake holds.
    """
    if held is None or held.batch is None:
        return True

    if receipt.replaces.get(repo.did) == held.batch:
        return True

    return (repo.rev or "") >= (held.rev or "") and contains(repo.coverage, held.coverage)


def _finish(
    lake: Lake, database: Database, intent: Mapping[str, Any], ensure: Ensure
) -> list[RepoState]:
    """Steps 2 to 4 of a flush, after its intent. Idempotent."""
    batch = intent["batch"]
    paths = [receipt_path(name) for name in intent["receipts"]]
    receipts = [read_receipt(lake, path) for path in paths if lake.exists(path)]
    repos: list[RepoState] = []

    nothing_deleted = len(receipts) == len(paths)
    if nothing_deleted and all(has_all_segments(lake, receipt) for receipt in receipts):
        repos = _write_batch(lake, intent, receipts, ensure)
        with database.transaction():
            save_repos(database, repos)

    for receipt in receipts:
        discard(lake, receipt.segments)
    for path in (*paths, _intent_path(batch)):
        lake.delete(path)

    return repos


def _write_batch(
    lake: Lake,
    intent: Mapping[str, Any],
    receipts: Sequence[StagingReceipt],
    ensure: Ensure,
) -> list[RepoState]:
    """Writes the files, replaces earlier rows, writes the manifest; returns its repositories."""
    batch = intent["batch"]
    taken = {name: set(dids) for name, dids in intent["receipts"].items()}
    repos = [
        replace(repo, batch=batch)
        for receipt in receipts
        for repo in receipt.repos
        if repo.did in taken[receipt.name]
    ]

    files: list[str] = []
    for number, rows in enumerate(_groups(lake, receipts, taken)):
        ensure()
        files += _write_files(lake, rows, f"pds-{batch}-{number}.parquet")

    for earlier_batch, dids in intent["replaced"].items():
        ensure()
        remove_repos(lake, earlier_batch, set(dids))

    ensure()
    write_manifest(lake, batch, Manifest(files, repos))
    return repos


def _groups(
    lake: Lake, receipts: Iterable[StagingReceipt], taken: Mapping[str, set[str]]
) -> Iterator[pa.Table]:
    """The rows of the taken repositories, in tables of about GROUP_BYTES."""
    waiting: list[pa.RecordBatch] = []
    size = 0

    for receipt in receipts:
        for rows in _taken_rows(lake, receipt, taken[receipt.name]):
            waiting.append(rows)
            size += rows.nbytes
            if size >= GROUP_BYTES:
                yield pa.Table.from_batches(waiting, STAGED_SCHEMA)
                waiting = []
                size = 0

    if waiting:
        yield pa.Table.from_batches(waiting, STAGED_SCHEMA)


def _taken_rows(lake: Lake, receipt: StagingReceipt, taken: set[str]) -> Iterator[pa.RecordBatch]:
    all_taken = len(taken) == len(receipt.repos)
    authors = pa.array(taken, pa.string())

    for segment in receipt.segments:
        for rows in lake.read(segment_path(segment), STAGED_SCHEMA):
            if all_taken:
                yield rows
            else:
                yield rows.filter(pc.is_in(rows["author"], value_set=authors))


def _write_files(lake: Lake, rows: pa.Table, name: str) -> list[str]:
    """Writes one file per record type and date. The rows of a repository stay together."""
    order, bounds = _by_type_and_date(rows)
    rows = rows.take(pa.array(order))

    def write(bound: tuple[int, int]) -> str:
        start, end = bound
        kind = rows["record_type"][start].as_py()
        day = rows[PARTITION_DATE][start].as_py()
        path = f"{RAW}/{kind}/cache/{PARTITION_DATE}={day}/{name}"
        own = conform(rows.slice(start, end - start), record_schema(kind))
        lake.write_parquet(path, own)
        return path

    with ThreadPoolExecutor(WRITER_THREADS) as threads:
        return list(threads.map(write, bounds))


def _by_type_and_date(
    rows: pa.Table,
) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """An order that groups rows by type and date, and start and end of each group in it."""
    kinds = _codes(rows, "record_type")
    days = _codes(rows, PARTITION_DATE)
    groups = days * len(RECORD_TYPES) + kinds

    order = np.argsort(groups, kind="stable")
    if not len(order):
        return order, []

    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    edges = [0, *cuts.tolist(), len(order)]
    return order, list(pairwise(edges))


def _codes(rows: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """A number for each row, equal exactly for equal values of the column."""
    encoded = pc.dictionary_encode(rows[name].combine_chunks())
    codes: npt.NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
    return codes
