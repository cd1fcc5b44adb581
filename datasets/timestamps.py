"""Text formats of times, each with a name. Every time is in UTC.

    function            example                     used for
    pipeline_time       2026-11-24-17:03:09         columns of the lake, in the group's format
    iso_seconds         2026-11-24T17:03:09Z        rows of the table `runs`
    iso_milliseconds    2026-11-24T17:03:09.123Z    rows of the table `pds_repos`
    compact             20261124T170309             run ids
    compact_utc         20261124T170309Z            names of queue segments
    minute              2026-11-24 17:03 UTC        messages for users
    day                 2026-11-24                  partition dates, reports

Partition dates that exist already are text: `datasets.lake.partition_date` checks them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_PIPELINE = "%Y-%m-%d-%H:%M:%S"
_COMPACT_UTC = "%Y%m%dT%H%M%SZ"
_PIPELINE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)-\d\d:\d\d:\d\d")


def utc_now() -> datetime:
    return datetime.now(UTC)


def pipeline_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_PIPELINE)


def pipeline_day(text: str) -> str | None:
    """The day (YYYY-MM-DD) of a pipeline time; None if `text` has another format.

    Only the format is checked: the day may be one that the calendar does not have.
    """
    match = _PIPELINE_TIME.fullmatch(text)
    return match[1] if match else None


def iso_seconds(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_milliseconds(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def compact(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S")


def compact_utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_COMPACT_UTC)


def parse_compact_utc(text: str) -> datetime:
    """Raises ValueError if `text` has another format."""
    return datetime.strptime(text, _COMPACT_UTC).replace(tzinfo=UTC)


def minute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d")
