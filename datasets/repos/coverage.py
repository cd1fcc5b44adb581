"""Record coverage: which records of a repository the lake holds.

For each record type, coverage is a list of inclusive ranges of days. A sync adds its ranges to
those of earlier syncs, so a second sync for other dates or types keeps what the first one fetched.

Days are YYYY-MM-DD in UTC. An open start is "" and an open end is "~": as text, they sort before
and after every day.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta

RECORD_TYPES = ("post", "reply", "repost", "like", "follow", "block")

DayRange = tuple[str, str]
RecordCoverage = Mapping[str, tuple[DayRange, ...]]

OPEN_START = ""
OPEN_END = "~"


def covering(types: Iterable[str], start: str | None, end: str | None) -> RecordCoverage:
    """The same range for each record type; None leaves that end open."""
    days = (start or OPEN_START, end or OPEN_END)
    return dict.fromkeys(types, (days,))


def union(one: RecordCoverage, other: RecordCoverage) -> RecordCoverage:
    names = sorted({*one, *other})
    return {name: _merged([*one.get(name, ()), *other.get(name, ())]) for name in names}


def contains(whole: RecordCoverage, part: RecordCoverage) -> bool:
    return union(whole, part) == union(whole, {})


def includes(ranges: Iterable[DayRange], day: str) -> bool:
    return any(start <= day <= end for start, end in ranges)


def _merged(ranges: list[DayRange]) -> tuple[DayRange, ...]:
    """The same days in as few ranges as possible, in order."""
    merged: list[DayRange] = []

    for start, end in sorted(ranges):
        if merged and start <= _day_after(merged[-1][1]):
            earlier_start, earlier_end = merged[-1]
            merged[-1] = (earlier_start, max(earlier_end, end))
        else:
            merged.append((start, end))

    return tuple(merged)


def _day_after(day: str) -> str:
    if day in (OPEN_END, date.max.isoformat()):
        return OPEN_END

    return (date.fromisoformat(day) + timedelta(1)).isoformat()
