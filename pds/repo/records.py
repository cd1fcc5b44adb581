"""Verified records → rows of the lake. Pure."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import libipld
import pyarrow as pa

from datasets.repos.coverage import RecordCoverage, includes
from datasets.repos.record_schemas import STAGED_SCHEMA
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
# The protocol allows the year 0, which is no date to what reads partitions.
_FIRST_PARTITION = "0001-01-01"
_CID_STARTS = (b"\x01\x71\x12\x20", b"\x01\x55\x12\x20")


@dataclass
class Counts:
    """What became of a repository's records.

    `skipped` are of other lexicons, by collection. `unreadable_dates` are among `records`, and so
    are `malformed` ones: a post whose text is no text, or a subject that is missing.
    """

    records: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable_dates: int = 0
    malformed: int = 0


def rows(repo: Repo, coverage: RecordCoverage, synced: str, counts: Counts) -> Iterator[pa.Table]:
    """The records that `coverage` wants, as tables of STAGED_SCHEMA; `counts` is added to.

    `synced` is when (YYYY-MM-DD-HH:MM:SS, UTC). A record whose date cannot be read goes under its
    day. Raises RejectedRepo for a record that does not decode.
    """
    for collection, records in repo.collections().items():
        if collection != _POSTS and collection not in _TYPES:
            name = collection if len(counts.skipped) < _NAMED_COLLECTIONS else "others"
            counts.skipped[name] += len(records)
        elif _types_in(collection) & set(coverage):
            for chunk in repo.chunks(records, _CHUNK_BYTES):
                yield from _chunk_rows(repo, collection, chunk, coverage, synced, counts)


def _types_in(collection: str) -> set[str]:
    return {"post", "reply"} if collection == _POSTS else {_TYPES[collection]}


@dataclass
class _Chosen:
    """Records of one type: where they stand in the repository, their days, and their values."""

    places: list[int] = field(default_factory=list)
    days: list[str] = field(default_factory=list)
    values: list[Mapping[str, Any]] = field(default_factory=list)


def _chunk_rows(
    repo: Repo, collection: str, chunk: range, coverage: RecordCoverage, synced: str, counts: Counts
) -> Iterator[pa.Table]:
    chosen: dict[str, _Chosen] = {}
    only = _TYPES.get(collection)
    today = synced[:10]
    for i, value in zip(chunk, repo.decode(chunk), strict=True):
        if not isinstance(value, dict):
            counts.malformed += 1
            continue
        kind = only or ("post" if value.get("reply") is None else "reply")
        created = value.get("createdAt")
        day = utc_date(created) if isinstance(created, str) else None
        if kind not in coverage or (day is not None and not includes(coverage[kind], day)):
            continue
        counts.unreadable_dates += day is None
        these = chosen.setdefault(kind, _Chosen())
        these.places.append(i)
        these.days.append(day if day and day >= _FIRST_PARTITION else today)
        these.values.append(value)
    for kind, these in chosen.items():
        counts.records[kind] += len(these.places)
        yield _table(repo, kind, these, synced, counts)


def _table(repo: Repo, kind: str, chosen: _Chosen, synced: str, counts: Counts) -> pa.Table:
    size, values, prefix = len(chosen.places), chosen.values, f"at://{repo.did}/"
    columns: dict[str, list[str | None]] = {
        "uri": [prefix + repo.keys[i].decode() for i in chosen.places],
        "cid": [libipld.encode_multibase("b", repo.cids[i]) for i in chosen.places],
        "created_at": _texts(values, "createdAt"),
        "partition_date": list(chosen.days),
    }
    if kind in ("post", "reply"):
        columns["text"] = _texts(values, "text")
        counts.malformed += columns["text"].count(None)
        columns |= {
            name: [_joined(value.get(name)) for value in values] for name in ("langs", "tags")
        }
        objects: tuple[str, ...] = ("facets", "embed", "entities", "labels", "reply")
    else:
        objects = ("subject",)
    columns |= {
        name: [_object(value[name]) if name in value else None for value in values]
        for name in objects
    }
    if kind not in ("post", "reply"):
        counts.malformed += columns["subject"].count(None)
    same = {
        "author": repo.did,
        "record_type": kind,
        "synctimestamp": synced,
        "rev": repo.rev,
        "verified": True,
    }
    arrays = [
        pa.array(columns[name], column)
        if name in columns
        else pa.repeat(pa.scalar(same.get(name), column), size)
        for name, column in zip(STAGED_SCHEMA.names, STAGED_SCHEMA.types, strict=True)
    ]
    return pa.table(arrays, schema=STAGED_SCHEMA)


def _texts(values: Sequence[Mapping[str, Any]], name: str) -> list[str | None]:
    found = [value.get(name) for value in values]
    return [text if isinstance(text, str) else None for text in found]


def _joined(value: Any) -> str | None:
    """A list of texts, comma-joined."""
    if not value:
        return None
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ",".join(value)
    return _object(value)


def _object(value: Any) -> str | None:
    """JSON; null for what is absent or empty."""
    if not value:
        return None
    try:
        return _JSON.encode(value)
    except RecursionError:
        return None


def _link_or_bytes(value: Any) -> dict[str, str]:
    """The protocol's JSON for what JSON lacks. The decoder gives a link as the bytes of its CID."""
    if isinstance(value, bytes):
        if len(value) == 36 and value.startswith(_CID_STARTS):
            return {"$link": libipld.encode_multibase("b", value)}
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    raise TypeError(f"a record holds a {type(value).__name__}")


_JSON = json.JSONEncoder(default=_link_or_bytes)
