from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pds.errors import RejectedRepo
from pds.identity import check_did
from pds.syntax import is_did, is_nsid, is_tid, utc_date
from tests.pds.support import needs_interop, vectors


@needs_interop
@pytest.mark.parametrize("did", vectors("syntax/did_syntax_valid.txt"))
def test_valid_dids(did: str) -> None:
    assert is_did(did)


@needs_interop
@pytest.mark.parametrize("did", vectors("syntax/did_syntax_invalid.txt"), ids=lambda did: did[:40])
def test_invalid_dids(did: str) -> None:
    assert not is_did(did)
    with pytest.raises(RejectedRepo) as caught:
        check_did(did)
    assert caught.value.status == "invalid_did"


@needs_interop
@pytest.mark.parametrize("text", vectors("syntax/tid_syntax_valid.txt"))
def test_valid_tids(text: str) -> None:
    assert is_tid(text)


@needs_interop
@pytest.mark.parametrize("text", vectors("syntax/tid_syntax_invalid.txt"))
def test_invalid_tids(text: str) -> None:
    assert not is_tid(text)


@needs_interop
@pytest.mark.parametrize("text", vectors("syntax/datetime_syntax_valid.txt"))
def test_every_valid_datetime_has_a_day(text: str) -> None:
    day = utc_date(text)
    assert day is not None
    if text.endswith("Z"):
        assert day == text[:10]


@needs_interop
@pytest.mark.parametrize(
    "text",
    vectors("syntax/datetime_syntax_invalid.txt") + vectors("syntax/datetime_parse_invalid.txt"),
)
def test_no_invalid_datetime_has_a_day(text: str) -> None:
    assert utc_date(text) is None


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("1985-04-12T23:20:50.123-07:00", "1985-04-13"),
        ("1985-04-12T03:20:50.123+07:00", "1985-04-11"),
        ("2000-03-01T00:00:00+07:00", "2000-02-29"),
        ("1900-03-01T00:00:00+07:00", "1900-02-28"),
        ("2016-12-31T23:59:60Z", "2016-12-31"),
        ("0000-01-01T00:00:00.000Z", "0000-01-01"),
        ("9999-12-31T23:00:00Z", "9999-12-31"),
        ("9999-12-31T23:00:00-07:00", None),
        ("2023-02-29T00:00:00Z", None),
        ("٢٠٢٤-10-01T00:00:00Z", None),
        ("", None),
    ],
)
def test_days_in_utc(text: str, day: str | None) -> None:
    assert utc_date(text) == day


def test_days_are_those_of_the_standard_library() -> None:
    rng = random.Random(4)
    for _ in range(5000):
        zone = timezone(timedelta(minutes=rng.choice([-720, -420, -30, 60, 345, 839])))
        moment = datetime(
            rng.randint(2, 9998),
            rng.randint(1, 12),
            rng.randint(1, 28),
            rng.randint(0, 23),
            tzinfo=zone,
        )
        assert utc_date(moment.isoformat()) == moment.astimezone(UTC).date().isoformat()


@pytest.mark.parametrize(
    "name", ["app.bsky.feed.post", "com.example.custom.thing", "a-0.b-1.c", "net.users.bob.ping"]
)
def test_names_of_collections(name: str) -> None:
    assert is_nsid(name)


@pytest.mark.parametrize(
    "name",
    ["", "post", "com.example", "com.example.3", "com..example.x", "com.exa_mple.x", "a.b.c" * 99],
)
def test_invalid_names_of_collections(name: str) -> None:
    assert not is_nsid(name)
