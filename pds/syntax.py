"""The protocol's identifiers and datetimes, as https://atproto.com/specs has them. Pure."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

_DID = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]*[A-Za-z0-9._-]")
MAX_DID = 2048
_PLC = re.compile(r"did:plc:[a-z2-7]{24}")
_NSID = re.compile(
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+"
    r"(?:\.[a-zA-Z][a-zA-Z0-9]{0,62})"
)
MAX_NSID = 317
_TID = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")
# A leap second is a second of its day.
_DATETIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T([01]\d|2[0-3]):([0-5]\d):(?:[0-5]\d|60)(?:\.\d+)?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
# Python's calendar begins with the year 1, the protocol's with 0. It repeats after 400 years.
_YEARS, _DAYS = 400, 146_097
_FIRST = date(_YEARS, 1, 1).toordinal()


def is_did(text: str) -> bool:
    """Whether `text` is a DID of any method."""
    return len(text) <= MAX_DID and _DID.fullmatch(text) is not None


def is_plc(did: str) -> bool:
    return _PLC.fullmatch(did) is not None


def is_nsid(text: str) -> bool:
    return len(text) <= MAX_NSID and _NSID.fullmatch(text) is not None


def is_tid(text: str) -> bool:
    return _TID.fullmatch(text) is not None


def utc_date(text: str) -> str | None:
    """The day (YYYY-MM-DD) in UTC of a datetime, None where it is none that the protocol allows."""
    match = _DATETIME.fullmatch(text)
    if match is None or (day := _days(match[1])) is None:
        return None
    _, hour, minute, sign, offset_hours, offset_minutes = match.groups()
    if sign is None:
        return match[1]
    offset = int(offset_hours) * 60 + int(offset_minutes)
    if sign == "-" and offset == 0:
        return None
    minutes = int(hour) * 60 + int(minute) - (offset if sign == "+" else -offset)
    return _day(day + minutes // (24 * 60))


@lru_cache(maxsize=4096)
def _days(day: str) -> int | None:
    """A day as the number of days since 0000-01-01, None where there is no such day."""
    cycles, year = divmod(int(day[:4]), _YEARS)
    try:
        return (
            cycles * _DAYS + date(_YEARS + year, int(day[5:7]), int(day[8:])).toordinal() - _FIRST
        )
    except ValueError:
        return None


def _day(days: int) -> str | None:
    cycles, rest = divmod(days, _DAYS)
    day = date.fromordinal(_FIRST + rest)
    year = day.year - _YEARS + cycles * _YEARS
    return f"{year:04}-{day.month:02}-{day.day:02}" if 0 <= year <= 9999 else None
