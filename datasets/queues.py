"""Durable queues: Parquet segments in a folder, one writer at a time, any number of readers.

    queues/input/<integration>/<enqueued at>-<partition date>-<digest>.parquet     posts, one date a segment
    queues/output/<integration>/<run>-<digest>.parquet                             staged labels (datasets/labels.py)

Appending is a whole new segment; nothing is ever changed in place. A segment's name says all that
selecting and clearing need, so neither reads a payload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from datasets.errors import BadFile, FileGone
from datasets.lake import Lake
from datasets.posts import OnBadFile, raise_bad_file
from datasets.schemas import PARTITION_DATE

Kind = Literal["input", "output"]
_STAMP = "%Y%m%dT%H%M%SZ"


def folder(kind: Kind, integration: str) -> str:
    return f"queues/{kind}/{integration}"


def digest(parts: Iterable[str]) -> str:
    """A name for some strings: equal exactly if they are, in this order."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        hasher.update(part.encode("utf-8", "surrogatepass"))
        hasher.update(b"\0")
    return hasher.hexdigest()


def enqueue(lake: Lake, integration: str, posts: pa.Table, enqueued_at: datetime) -> str:
    """Appends one segment of posts that have one partition date; its path.

    The same posts enqueued in the same second are one segment.
    """
    day = posts[PARTITION_DATE][0].as_py()
    name = f"{enqueued_at.astimezone(UTC):{_STAMP}}-{day}-{digest(posts['uri'].to_pylist())}"
    path = f"{folder('input', integration)}/{name}.parquet"
    lake.write_parquet(path, posts)
    return path


def queued_posts(lake: Lake, integration: str, since: datetime | None = None) -> Mapping[str, list[str]]:
    """Partition date → segments of the input queue, oldest first; with `since`, those enqueued then or later."""
    found: dict[str, list[str]] = {}
    for path in lake.files(folder("input", integration)):
        stamp, day = _read_name(path)
        if since is None or stamp >= since:
            found.setdefault(day, []).append(path)
    return dict(sorted(found.items()))


def requeue(lake: Lake, integration: str, segment: str, posts: pa.Table | None) -> None:
    """Replaces a segment by what is left of it, enqueued at the same time; by nothing where nothing is left."""
    left = enqueue(lake, integration, posts, _read_name(segment)[0]) if posts is not None and len(posts) else None
    if left != segment:
        lake.delete(segment)


def count(lake: Lake, kind: Kind, integration: str, on_bad: OnBadFile = raise_bad_file) -> int:
    """Rows in a queue, from the footers of its segments. One that is flushed meanwhile has none, nor has a bad file."""
    rows = 0
    for path in lake.files(folder(kind, integration)):
        try:
            rows += lake.num_rows(path)
        except FileGone:
            continue
        except BadFile as error:
            on_bad(error)
    return rows


def clear(lake: Lake, kind: Kind, integration: str) -> int:
    """Deletes a queue's segments and what belongs to them, by name; the number of segments."""
    where = folder(kind, integration)
    segments = lake.files(where)
    # Records of flushes first: one that outlived its segments would speak of segments to come.
    for path in lake.files(where, ".json") + segments:
        lake.delete(path)
    lake.sweep(where)
    return len(segments)


def _read_name(path: str) -> tuple[datetime, str]:
    stamp, rest = path.rpartition("/")[2].split("-", 1)
    return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC), rest[:10]
