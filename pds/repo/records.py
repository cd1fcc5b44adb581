"""From verified records to rows of the lake. Pure."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import libipld
import pyarrow as pa

from datasets.repos.coverage import RecordCoverage, includes
from datasets.repos.record_schemas import STAGED_SCHEMA
from datasets.schemas import PARTITION_DATE
from pds.repo.blocks import is_cid
from pds.repo.car import Repo
from pds.syntax import utc_date

_POSTS = "app.bsky.feed.post"
_TYPES = {
    "app.bsky.feed.repost": "repost",
    "app.bsky.feed.like": "like",
    "app.bsky.graph.follow": "follow",
    "app.bsky.graph.block": "block",
}
# Blocks decoded at a time. An empty list is one byte in a block and 56 in memory.
_CHUNK_BYTES = 1 << 21
# A repository may have any number of collections. This many are counted by name.
_NAMED_COLLECTIONS = 50
# The protocol allows the year 0, which is not a date to readers of partitions.
_FIRST_PARTITION = "0001-01-01"


@dataclass
class RecordCounts:
    """How many of a repository's records became rows.

    `records` counts rows by record type, `skipped` records of other lexicons by collection. Rows
    also count as `unreadable_dates` if their date could not be read, and as `malformed` if a post's
    text is not text or a subject is missing.
    """

    records: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable_dates: int = 0
    malformed: int = 0


def record_tables(
    repo: Repo, coverage: RecordCoverage, synced: str, counts: RecordCounts
) -> Iterator[pa.Table]:
    """The records in `coverage`, as tables of STAGED_SCHEMA. Adds to `counts`.

    `synced` is the time of the sync (YYYY-MM-DD-HH:MM:SS, UTC). A record whose date cannot be read
    gets the partition of that day. Raises RejectedRepo for a record that does not decode.
    """
    for collection, records in repo.collections().items():
        types = _types_in(collection)
        if not types:
            named = len(counts.skipped) < _NAMED_COLLECTIONS
            counts.skipped[collection if named else "others"] += len(records)
        elif types & set(coverage):
            for chunk in repo.chunks(records, _CHUNK_BYTES):
                chosen = _choose(repo, collection, chunk, coverage, synced, counts)
                for kind, selection in chosen.items():
                    counts.records[kind] += len(selection.indexes)
                    yield _table(repo, kind, selection, synced, counts)


def _types_in(collection: str) -> set[str]:
    if collection == _POSTS:
        return {"post", "reply"}
    return {_TYPES[collection]} if collection in _TYPES else set()


@dataclass
class _Selection:
    """Records of one type: their indexes in the repository, their days, and their values."""

    indexes: list[int] = field(default_factory=list)
    days: list[str] = field(default_factory=list)
    values: list[Mapping[str, Any]] = field(default_factory=list)


def _choose(
    repo: Repo,
    collection: str,
    chunk: range,
    coverage: RecordCoverage,
    synced: str,
    counts: RecordCounts,
) -> dict[str, _Selection]:
    """The wanted records of a chunk, by record type."""
    chosen: dict[str, _Selection] = {}
    only_type = _TYPES.get(collection)
    today = synced[:10]

    for i, value in zip(chunk, repo.decode(chunk), strict=True):
        if not isinstance(value, dict):
            counts.malformed += 1
            continue

        kind = only_type or ("post" if value.get("reply") is None else "reply")
        created = value.get("createdAt")
        day = utc_date(created) if isinstance(created, str) else None
        if kind not in coverage or (day is not None and not includes(coverage[kind], day)):
            continue

        counts.unreadable_dates += day is None
        selection = chosen.setdefault(kind, _Selection())
        selection.indexes.append(i)
        selection.days.append(day if day and day >= _FIRST_PARTITION else today)
        selection.values.append(value)

    return chosen


def _table(
    repo: Repo, kind: str, selection: _Selection, synced: str, counts: RecordCounts
) -> pa.Table:
    """Adds to `counts.malformed`."""
    values = selection.values
    prefix = f"at://{repo.did}/"
    columns: dict[str, list[str | None]] = {
        "uri": [prefix + repo.keys[i].decode() for i in selection.indexes],
        "cid": [libipld.encode_multibase("b", repo.cids[i]) for i in selection.indexes],
        "created_at": _texts(values, "createdAt"),
        PARTITION_DATE: list(selection.days),
    }

    if kind in ("post", "reply"):
        columns["text"] = _texts(values, "text")
        for name in ("langs", "tags"):
            columns[name] = _cells(values, name, _joined)
        for name in ("facets", "embed", "entities", "labels", "reply"):
            columns[name] = _cells(values, name, _as_json)
        required = "text"
    else:
        columns["subject"] = _cells(values, "subject", _as_json)
        required = "subject"

    counts.malformed += columns[required].count(None)
    constants = {
        "author": repo.did,
        "record_type": kind,
        "synctimestamp": synced,
        "rev": repo.rev,
        "verified": True,
    }
    return _arrow_table(columns, constants, len(values))


def _arrow_table(
    columns: Mapping[str, list[str | None]], constants: Mapping[str, Any], rows: int
) -> pa.Table:
    """A table of STAGED_SCHEMA. Columns that are given neither way are null."""
    arrays = []
    for column in STAGED_SCHEMA:
        if column.name in columns:
            arrays.append(pa.array(columns[column.name], column.type))
        else:
            value = pa.scalar(constants.get(column.name), column.type)
            arrays.append(pa.repeat(value, rows))

    return pa.table(arrays, schema=STAGED_SCHEMA)


def _texts(values: Sequence[Mapping[str, Any]], name: str) -> list[str | None]:
    """The field as it is; None if it is not text."""
    found = [value.get(name) for value in values]
    return [text if isinstance(text, str) else None for text in found]


def _cells(
    values: Sequence[Mapping[str, Any]], name: str, convert: Callable[[Any], str | None]
) -> list[str | None]:
    return [convert(value[name]) if name in value else None for value in values]


def _joined(value: Any) -> str | None:
    """A list of texts, separated by commas; JSON for other values."""
    if not value:
        return None
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ",".join(value)
    return _as_json(value)


def _as_json(value: Any) -> str | None:
    """None for an empty value, and for one that is nested too deeply."""
    if not value:
        return None
    try:
        return _JSON.encode(value)
    except RecursionError:
        return None


def _link_or_bytes(value: Any) -> dict[str, str]:
    """The protocol's JSON form of bytes, or of a link: the decoder gives the bytes of its CID."""
    if not isinstance(value, bytes):
        raise TypeError(f"a record holds a {type(value).__name__}")

    if is_cid(value):
        return {"$link": libipld.encode_multibase("b", value)}
    return {"$bytes": base64.b64encode(value).decode().rstrip("=")}


_JSON = json.JSONEncoder(default=_link_or_bytes)
