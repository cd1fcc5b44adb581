"""Identifiers and datetimes of the protocol, as specified at https://atproto.com/specs. Pure."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

MAX_DID = 2048
MAX_NSID = 317

_DID = re.compile(r"did:[a-z]+:[A-Za-z0-9._:%-]*[A-Za-z0-9._-]")
_PLC = re.compile(r"did:plc:[a-z2-7]{24}")
_TID = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}")
_NSID = re.compile(
    r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+"
    r"(?:\.[a-zA-Z][a-zA-Z0-9]{0,62})"
)
# Second 60 is allowed: a leap second belongs to its day.
_DATETIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T([01]\d|2[0-3]):([0-5]\d):(?:[0-5]\d|60)(?:\.\d+)?"
    r"(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_MINUTES_PER_DAY = 24 * 60

# Python's calendar begins with the year 1, the protocol's with 0. It repeats every 400 years, so
# dates are computed 400 years later.
_CYCLE_YEARS = 400
_CYCLE_DAYS = 146_097
_FIRST = date(_CYCLE_YEARS, 1, 1).toordinal()


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
    """The UTC day (YYYY-MM-DD) of a datetime; None if the protocol does not allow the datetime."""
    match = _DATETIME.fullmatch(text)
    if match is None:
        return None

    local_day, hour, minute, sign, offset_hours, offset_minutes = match.groups()
    days = _days(local_day)
    if days is None:
        return None
    if sign is None:
        return local_day

    offset = int(offset_hours) * 60 + int(offset_minutes)
    if sign == "-":
        if offset == 0:  # the protocol does not allow -00:00
            return None
        offset = -offset

    minutes = int(hour) * 60 + int(minute) - offset
    return _day(days + minutes // _MINUTES_PER_DAY)


@lru_cache(maxsize=4096)
def _days(day: str) -> int | None:
    """Days since 0000-01-01; None if the calendar has no such day."""
    cycles, year = divmod(int(day[:4]), _CYCLE_YEARS)
    month = int(day[5:7])
    try:
        ordinal = date(_CYCLE_YEARS + year, month, int(day[8:])).toordinal()
    except ValueError:
        return None

    return cycles * _CYCLE_DAYS + ordinal - _FIRST


def _day(days: int) -> str | None:
    """The inverse of `_days`; None outside the years 0 to 9999."""
    cycles, rest = divmod(days, _CYCLE_DAYS)
    day = date.fromordinal(_FIRST + rest)
    year = day.year - _CYCLE_YEARS + cycles * _CYCLE_YEARS

    if not 0 <= year <= 9999:
        return None
    return f"{year:04}-{day.month:02}-{day.day:02}"
