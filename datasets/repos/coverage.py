"""Which records of a repository the lake holds: for each record type, inclusive ranges of days.

A sync adds its own ranges to those of earlier ones, so that a second sync for other dates or types
does not take away what the first has fetched. Days are YYYY-MM-DD in UTC; an open end is "" or "~",
which sort before and after every day.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta

RECORD_TYPES = ("post", "reply", "repost", "like", "follow", "block")

Range = tuple[str, str]
Coverage = Mapping[str, tuple[Range, ...]]

OPEN_START, OPEN_END = "", "~"


def covering(types: Iterable[str], start: str | None, end: str | None) -> Coverage:
    """The same range for each of some types."""
    return dict.fromkeys(types, ((start or OPEN_START, end or OPEN_END),))


def union(one: Coverage, other: Coverage) -> Coverage:
    return {
        name: _merged([*one.get(name, ()), *other.get(name, ())]) for name in sorted({*one, *other})
    }


def contains(whole: Coverage, part: Coverage) -> bool:
    return union(whole, part) == union(whole, {})


def includes(ranges: Iterable[Range], day: str) -> bool:
    return any(start <= day <= end for start, end in ranges)


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= _day_after(merged[-1][1]):
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def _day_after(day: str) -> str:
    if day == OPEN_END or day == date.max.isoformat():
        return OPEN_END
    return (date.fromisoformat(day) + timedelta(1)).isoformat()
