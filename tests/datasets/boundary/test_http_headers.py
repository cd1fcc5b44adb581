from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from datasets.boundary.http_headers import LONGEST, moment_in, retry_after_seconds

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("nan", None), ("inf", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), (formatdate(NOW + 30, usegmt=True), 30.0), (formatdate(NOW + 30), 30.0),
        ("86400", 86_400.0), ("1e300", LONGEST), ("9" * 400, None), ("-1e300", 0.0), ("1e9", LONGEST),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST), ("Fri, 31 Dec 9999 23:59:59 -1200", LONGEST),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None), ("Mon, 01 Jan 0001 00:00:00 +1400", 0.0), ("\x00", None),
    ],
)  # fmt: skip
def test_retry_after_may_be_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


def test_a_date_is_compared_with_the_clock() -> None:
    assert retry_after_seconds(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(
        30, abs=2
    )


@pytest.mark.parametrize(
    ("seconds", "moment"),
    [(0.0, "2027-01-15 08:00 UTC"), (0.5, "2027-01-15 08:01 UTC"), (86_400.0, "2027-01-16 08:00 UTC"),
     (LONGEST, "2027-02-15 08:00 UTC")],
)  # fmt: skip
def test_a_moment_is_not_named_before_it_is_there(seconds: float, moment: str) -> None:
    assert moment_in(seconds, NOW) == moment
