"""What a host's answer says about when to ask again. Pure."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from datasets.timestamps import minute

# Quotas are counted by the month at the longest: who asks for more than 31 days is asked again after them.
LONGEST = 31 * 86_400.0


def retry_after_seconds(value: str | None, now: float | None = None) -> float | None:
    """Seconds from `now` (epoch) in a Retry-After header, which has seconds or a date; None where it has neither.

    At least 0 and at most LONGEST.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if not value:
        return None
    try:
        seconds = float(value)
        return min(max(0.0, seconds), LONGEST) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
        moment = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, moment - (time.time() if now is None else now)), LONGEST)


def moment_in(seconds: float, now: float | None = None) -> str:
    """The minute that is over by `seconds` from `now` (epoch), for people: 2026-11-25 10:03 UTC."""
    moment = (time.time() if now is None else now) + seconds
    return minute(datetime.fromtimestamp(math.ceil(moment / 60) * 60, UTC))
