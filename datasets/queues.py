"""Durable queues: Parquet segments in a folder, one writer at a time, any number of readers.

    queues/input/<integration>/<enqueued at>-<partition date>-<digest>.parquet
        posts, one date per segment
    queues/output/<integration>/<run>-<digest>.parquet
        staged labels (datasets/labels/writing.py)

Appending is a whole new segment; nothing is ever changed in place. A segment's name says all that
selecting and clearing need, so neither reads a payload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from datasets.errors import BadFile, ConfigError, FileGone
from datasets.lake import Lake, partition_date
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


def queued_posts(
    lake: Lake, integration: str, since: datetime | None = None
) -> Mapping[str, list[str]]:
    """Partition date → segments of the input queue, oldest first; with `since`, those enqueued then or later.

    Raises ConfigError for a file that is none of the queue's.
    """
    found: dict[str, list[str]] = {}
    for path in lake.files(folder("input", integration)):
        stamp, day = _read_name(lake, path)
        if since is None or stamp >= since:
            found.setdefault(day, []).append(path)
    return dict(sorted(found.items()))


def requeue(
    lake: Lake,
    integration: str,
    segment: str,
    posts: pa.Table | None,
    ensure: Callable[[], None] = lambda: None,
) -> str | None:
    """Replaces a segment by what is left of it, enqueued at the same time; by nothing where nothing is left.

    Returns the path of what is left: the segment's own if that is all of it, or one of the queue with just these posts.
    `ensure` is called before each write and deletion, and raises where the caller may not any more.
    """
    left = None
    if posts is not None and len(posts):
        ensure()
        left = enqueue(lake, integration, posts, _read_name(lake, segment)[0])
    if left != segment:
        ensure()
        lake.delete(segment)
    return left


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


def clear(
    lake: Lake, kind: Kind, integration: str, ensure: Callable[[], None] = lambda: None
) -> int:
    """Deletes a queue's segments and what belongs to them, by name; the number of segments.

    `ensure` is called before each deletion, and raises where the caller may not any more.
    """
    where = folder(kind, integration)
    segments = lake.files(where)
    # Records of flushes first: one that outlived its segments would speak of segments to come.
    for path in lake.files(where, ".json") + segments:
        ensure()
        lake.delete(path)
    ensure()
    lake.sweep(where)
    return len(segments)


def _read_name(lake: Lake, path: str) -> tuple[datetime, str]:
    """When a segment was enqueued, and the partition date of its posts."""
    stamp, _, rest = path.rpartition("/")[2].partition("-")
    try:
        at = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError:
        at = None
    day = partition_date(f"{PARTITION_DATE}={rest[:10]}")
    if at is None or day is None:
        raise ConfigError(
            f"{lake.show(path)} is not a segment of the input queue (its name has no time and partition date); "
            "move it elsewhere, and enqueue its posts with --add-to-queue"
        )
    return at, day
