from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from datasets.http_headers import retry_after_seconds

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("nan", None), ("inf", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), (formatdate(NOW + 30, usegmt=True), 30.0), (formatdate(NOW + 30), 30.0),
    ],
)  # fmt: skip
def test_retry_after_may_be_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


def test_a_date_is_compared_with_the_clock() -> None:
    assert retry_after_seconds(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
