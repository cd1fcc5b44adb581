from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from datasets import timestamps

MOMENT = datetime(2026, 11, 24, 17, 3, 9, 123_456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (timestamps.pipeline_time, "2026-11-24-17:03:09"),
        (timestamps.iso_seconds, "2026-11-24T17:03:09Z"),
        (timestamps.iso_milliseconds, "2026-11-24T17:03:09.123Z"),
        (timestamps.compact, "20261124T170309"),
        (timestamps.compact_utc, "20261124T170309Z"),
        (timestamps.minute, "2026-11-24 17:03 UTC"),
        (timestamps.day, "2026-11-24"),
    ],
)
def test_each_format_is_in_utc(function: Callable[[datetime], str], text: str) -> None:
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=-9)))

    assert function(MOMENT) == text
    assert function(elsewhere) == text


def test_compact_times_can_be_read_back() -> None:
    whole_second = MOMENT.replace(microsecond=0)

    assert timestamps.parse_compact_utc("20261124T170309Z") == whole_second
    for text in ("20261124T170309", "20261324T170309Z", "", "posts"):
        with pytest.raises(ValueError, match="time data"):
            timestamps.parse_compact_utc(text)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-11-24-17:03:09", "2026-11-24"),
        ("2026-11-24T17:03:09", None),
        ("2026-11-24", None),
        ("", None),
    ],
)
def test_the_day_of_a_pipeline_time(text: str, day: str | None) -> None:
    assert timestamps.pipeline_day(text) == day
