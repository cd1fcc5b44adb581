"""Raw records on their way into the lake: staged by repository, flushed many at once, replaced as a whole.

1. A decoder stages the rows of some repositories as segments, and then a receipt: what it says is
   acknowledged.
2. `flush` moves staged repositories into the lake, as one batch: an intent; one file for each
   record type, date and group of rows; the repositories' earlier rows taken out of earlier batches'
   files; the batch's manifest; their state in the database; the staged files and the intent removed.
3. `recover` does an unfinished flush again. All its steps give the same result when repeated, and
   the staged files go last: if one is missing, all else was done.

A manifest (`raw_sync/_batches/<batch>.json`) says which repositories a batch holds and in which
files. A repository is in one manifest only, however many flushes it has been through, so the
database can be lost and filled again from the manifests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.database import Database
from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.repos.coverage import RECORD_TYPES, contains
from datasets.repos.state import RepoState, batches, forget_batch, load_repos, save_repos
from datasets.schemas import PARTITION_DATE, conform

RAW = "raw_sync/create"
STAGED = "queues/pds"
MANIFESTS = "raw_sync/_batches"

_COMMON = ("uri", "cid", "author", "created_at", "record_type", "synctimestamp")
_POST = ("text", "langs", "tags", "facets", "embed", "entities", "labels")
_OWN = {"post": _POST, "reply": (*_POST, "reply")}
_ORIGIN = [("rev", pa.string()), ("verified", pa.bool_())]

# Bytes of rows in memory at a time: a group of them becomes one file for each type and date.
GROUP_BYTES = 256 * 1024**2
# Each file of the lake is synced by itself, and a disk can sync several at a time.
_WRITERS = 8


def record_schema(record_type: str) -> pa.Schema:
    """The columns of a record type. Never inferred: a batch may have no value in any of them."""
    own = _OWN.get(record_type, ("subject",))
    return pa.schema([(name, pa.string()) for name in (*_COMMON, *own)] + _ORIGIN)


STAGED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in (*_COMMON, *_POST, "reply", "subject")]
    + _ORIGIN
    + [(PARTITION_DATE, pa.string())]
)
_AUTHOR = pa.schema([("author", pa.string())])


@dataclass(frozen=True)
class Receipt:
    """Staged repositories, and the segments that hold their rows.

    `replaces`: DID → the batch that held the repository when its fetch was decided on, None for none.
    """

    name: str
    segments: tuple[str, ...]
    repos: tuple[RepoState, ...]
    replaces: Mapping[str, str | None] = field(default_factory=dict)


def stage_rows(lake: Lake, segment: str, rows: pa.Table) -> None:
    """Writes rows of STAGED_SCHEMA. Not acknowledged before the receipt is there."""
    lake.write_parquet(f"{STAGED}/{segment}.parquet", rows, compress=False)


def acknowledge(lake: Lake, receipt: Receipt) -> None:
    """Written last, so its existence means that all segments are there."""
    content = {
        "segments": receipt.segments,
        "repos": [repo.as_json() for repo in receipt.repos],
        "replaces": dict(receipt.replaces),
    }
    lake.write_bytes(f"{STAGED}/{receipt.name}.json", json.dumps(content).encode())


def discard(lake: Lake, segments: Iterable[str]) -> None:
    """Removes segments that no receipt names."""
    for segment in segments:
        lake.delete(f"{STAGED}/{segment}.parquet")


def staged(lake: Lake) -> list[Receipt]:
    """Receipts that are not in the lake yet. For the only writer, after `recover`."""
    receipts = [
        _receipt(lake, path) for path in lake.files(STAGED, ".json") if "/flush-" not in path
    ]
    whole = [receipt for receipt in receipts if _all_there(lake, receipt)]
    named = {segment for receipt in whole for segment in receipt.segments}
    for path in lake.files(STAGED):
        if _stem(path) not in named:
            lake.delete(path)
    for receipt in receipts:
        if receipt not in whole:
            lake.delete(f"{STAGED}/{receipt.name}.json")
    return whole


def flush(
    lake: Lake,
    database: Database,
    receipts: Sequence[Receipt],
    batch: str,
    ensure: Callable[[], None] = lambda: None,
) -> list[RepoState]:
    """Moves staged repositories into the lake and the database; their rows of `pds_repos`. `batch` must be new.

    A repository that is older than what the lake holds has no such row (`outdated` says which).
    `ensure` is called before what only the one writer may do, and raises where it is not that.
    """
    before = load_repos(database, {repo.did for receipt in receipts for repo in receipt.repos})
    latest: dict[str, tuple[str, str, str]] = {}
    for receipt in receipts:
        for repo in receipt.repos:
            if _is_newer(receipt, repo, before.get(repo.did)):
                order = (repo.rev or "", repo.synced_at or "", receipt.name)
                latest[repo.did] = max(latest.get(repo.did, order), order)
    intent: dict[str, Any] = {
        "batch": batch,
        "receipts": {receipt.name: [] for receipt in receipts},
        "replaced": {},
    }
    for did, (_, _, name) in latest.items():
        intent["receipts"][name].append(did)
        if did in before and before[did].batch:
            intent["replaced"].setdefault(before[did].batch, []).append(did)
    ensure()
    lake.write_bytes(f"{STAGED}/flush-{batch}.json", json.dumps(intent).encode())
    return _finish(lake, database, intent, ensure)


def outdated(receipts: Iterable[Receipt], written: Iterable[RepoState]) -> set[str]:
    """DIDs of staged repositories that a flush has left out, because the lake has newer records of them."""
    return {repo.did for receipt in receipts for repo in receipt.repos} - {
        repo.did for repo in written
    }


def _is_newer(receipt: Receipt, repo: RepoState, held: RepoState | None) -> bool:
    """Whether a staged repository may take the place of what the lake holds. No clock has a say in it.

    It may where it was fetched to replace just that. Where another flush came between, because a
    decoder has outlived its driver, revisions decide: they only grow. Then nothing that the lake
    holds may be missing in it.
    """
    if held is None or held.batch is None or receipt.replaces.get(repo.did) == held.batch:
        return True
    return (repo.rev or "") >= (held.rev or "") and contains(repo.coverage, held.coverage)


def recover(lake: Lake, database: Database, ensure: Callable[[], None] = lambda: None) -> None:
    """Finishes flushes that were cut off, and makes the database agree with the manifests. For the only writer."""
    lake.sweep(STAGED)
    for path in lake.files(STAGED, ".json"):
        if "/flush-" in path:
            _finish(lake, database, _load(lake, path, "batch", "receipts", "replaced"), ensure)
    in_lake = {_stem(path) for path in lake.files(MANIFESTS, ".json")}
    known = batches(database)
    for batch in in_lake - known:
        with database.transaction():
            save_repos(database, _manifest(lake, batch).repos)
    for batch in known - in_lake:
        forget_batch(database, batch)


def _finish(
    lake: Lake, database: Database, intent: Mapping[str, Any], ensure: Callable[[], None]
) -> list[RepoState]:
    batch = intent["batch"]
    paths = {name: f"{STAGED}/{name}.json" for name in intent["receipts"]}
    receipts = [_receipt(lake, path) for path in paths.values() if lake.exists(path)]
    repos: list[RepoState] = []
    if len(receipts) == len(paths) and all(_all_there(lake, receipt) for receipt in receipts):
        taken = {name: set(dids) for name, dids in intent["receipts"].items()}
        repos = [
            replace(repo, batch=batch)
            for r in receipts
            for repo in r.repos
            if repo.did in taken[r.name]
        ]
        files: list[str] = []
        for number, rows in enumerate(_groups(lake, receipts, taken)):
            ensure()
            files += _write_files(lake, rows, f"pds-{batch}-{number}.parquet")
        for earlier, dids in intent["replaced"].items():
            ensure()
            _take_out(lake, earlier, set(dids))
        ensure()
        _write_manifest(lake, batch, _Manifest(files, repos))
        with database.transaction():
            save_repos(database, repos)
    for receipt in receipts:
        discard(lake, receipt.segments)
    for path in (*paths.values(), f"{STAGED}/flush-{batch}.json"):
        lake.delete(path)
    return repos


def _groups(
    lake: Lake, receipts: Iterable[Receipt], taken: Mapping[str, set[str]]
) -> Iterator[pa.Table]:
    """The rows of the repositories taken, in tables of about GROUP_BYTES."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for receipt in receipts:
        all_taken = len(taken[receipt.name]) == len(receipt.repos)
        authors = pa.array(taken[receipt.name], pa.string())
        for segment in receipt.segments:
            for batch in lake.read(f"{STAGED}/{segment}.parquet", STAGED_SCHEMA):
                kept = (
                    batch
                    if all_taken
                    else batch.filter(pc.is_in(batch["author"], value_set=authors))
                )
                waiting.append(kept)
                size += kept.nbytes
                if size >= GROUP_BYTES:
                    yield pa.Table.from_batches(waiting, STAGED_SCHEMA)
                    waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, STAGED_SCHEMA)


def _write_files(lake: Lake, rows: pa.Table, name: str) -> list[str]:
    """One file for each record type and date. A repository's rows stay together."""
    order, bounds = _by_place(rows)
    rows = rows.take(pa.array(order))

    def write(bound: tuple[int, int]) -> str:
        start, end = bound
        kind, day = rows["record_type"][start].as_py(), rows[PARTITION_DATE][start].as_py()
        path = f"{RAW}/{kind}/cache/partition_date={day}/{name}"
        lake.write_parquet(path, conform(rows.slice(start, end - start), record_schema(kind)))
        return path

    with ThreadPoolExecutor(_WRITERS) as threads:
        return list(threads.map(write, bounds))


def _by_place(rows: pa.Table) -> tuple[npt.NDArray[np.int64], list[tuple[int, int]]]:
    """The order that brings rows of a type and date together, and where each such run begins and ends."""
    kinds, days = (
        pc.dictionary_encode(rows[name].combine_chunks()).indices.to_numpy().astype(np.int64)
        for name in ("record_type", PARTITION_DATE)
    )
    places = days * len(RECORD_TYPES) + kinds
    order = np.argsort(places, kind="stable")
    cuts = np.flatnonzero(np.diff(places[order])) + 1
    edges = [0, *cuts.tolist(), len(order)] if len(order) else [0]
    return order, list(pairwise(edges))


def _take_out(lake: Lake, batch: str, dids: set[str]) -> None:
    """Removes the rows of some repositories from an earlier batch."""
    manifest = _manifest(lake, batch)
    authors = pa.array(dids, pa.string())

    def without(path: str) -> str | None:
        if not lake.exists(path):
            return None
        schema = record_schema(path.removeprefix(f"{RAW}/").partition("/")[0])
        found = pa.Table.from_batches(lake.read(path, _AUTHOR), _AUTHOR)
        gone = pc.is_in(found["author"], value_set=authors)
        if not pc.any(gone).as_py():
            return path
        if pc.all(gone).as_py():
            lake.delete(path)
            return None
        rows = pa.Table.from_batches(lake.read(path, schema), schema)
        lake.write_parquet(path, rows.filter(pc.invert(gone)))
        return path

    with ThreadPoolExecutor(_WRITERS) as threads:
        files = [path for path in threads.map(without, manifest.files) if path]
    _write_manifest(
        lake, batch, _Manifest(files, [repo for repo in manifest.repos if repo.did not in dids])
    )


@dataclass(frozen=True)
class _Manifest:
    files: Sequence[str]
    repos: Sequence[RepoState]


def _manifest(lake: Lake, batch: str) -> _Manifest:
    path = f"{MANIFESTS}/{batch}.json"
    if not lake.exists(path):
        return _Manifest([], [])
    # Its files are in nobody's manifest then, and its repositories are fetched anew.
    content = _load(
        lake, path, "files", "repos", besides=f" and all pds-{batch}-*.parquet of {RAW}"
    )
    return _Manifest(content["files"], [RepoState.from_json(repo) for repo in content["repos"]])


def _write_manifest(lake: Lake, batch: str, manifest: _Manifest) -> None:
    path = f"{MANIFESTS}/{batch}.json"
    if not manifest.repos:
        lake.delete(path)
        return
    content = {"files": list(manifest.files), "repos": [repo.as_json() for repo in manifest.repos]}
    lake.write_bytes(path, json.dumps(content).encode())


def _receipt(lake: Lake, path: str) -> Receipt:
    content = _load(lake, path, "segments", "repos")
    repos = tuple(RepoState.from_json(repo) for repo in content["repos"])
    return Receipt(_stem(path), tuple(content["segments"]), repos, content.get("replaces", {}))


def _load(lake: Lake, path: str, *names: str, besides: str = "") -> dict[str, Any]:
    """A record that has these entries. Raises ConfigError for any other file; `besides` is about it alone."""
    try:
        record = json.loads(lake.read_bytes(path))
        if not isinstance(record, dict) or not set(names) <= record.keys():
            raise ValueError("it has not what a record has")
    except ValueError as error:
        raise ConfigError(
            f"{lake.show(path)} is not a record of `pds sync` ({error}); "
            f"move it{besides} elsewhere and run the same command again"
        ) from error
    return record


def _all_there(lake: Lake, receipt: Receipt) -> bool:
    return all(lake.exists(f"{STAGED}/{segment}.parquet") for segment in receipt.segments)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
