from __future__ import annotations

import math
import random
from email.utils import formatdate

import pytest

from pds.settings import PdsSettings
from pds.throttle import MAX_PAUSE, HostThrottle, RequestWindow
from tests.pds.servers import most_in_a_second

EPOCH = 1_800_000_000.0


def make_throttle(**settings: float) -> HostThrottle:
    return HostThrottle(PdsSettings(**settings), random.Random(1))  # type: ignore[arg-type]


def send(host: HostThrottle, now: float) -> None:
    assert host.delay(now) == 0
    host.record_sent(now)


@pytest.mark.parametrize("qps", [9.0, 4.5, 1.0, 0.3, 50.0])
@pytest.mark.parametrize("late", [0.0, 0.02, 0.3])
def test_a_second_never_has_more_requests_than_allowed(qps: float, late: float) -> None:
    """Requests may be late. Later ones catch up, but never beyond the limit."""
    window, rng, now, times = RequestWindow(qps), random.Random(2), 1000.0, []
    while now < 1000 + 200 / qps:
        now += window.delay(now) + rng.random() * late
        if window.delay(now) <= 0:
            window.add(now)
            times.append(now)
    assert most_in_a_second(times) <= math.ceil(qps)
    if late == 0 or (qps, late) == (9.0, 0.02):
        assert len(times) >= 0.95 * 200


def test_a_429_without_headers_is_a_pause_of_five_minutes_with_jitter() -> None:
    host = make_throttle()
    send(host, 0)
    host.record_rate_limit(0, {}, EPOCH)
    assert 300 <= host.pause_left(0) <= MAX_PAUSE
    assert host.delay(100) == pytest.approx(host.pause_left(100))


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "7"}, 7, 7.7),
        ({"retry-after": "0"}, 0, 0),
        ({"retry-after": formatdate(EPOCH + 50, usegmt=True)}, 49, 55),
        ({"retry-after": "100000"}, 330, 330),
        ({"retry-after": "7", "ratelimit-reset": str(EPOCH + 200)}, 7, 7.7),
        ({"ratelimit-reset": str(int(EPOCH) + 200)}, 200, 220),
        ({"ratelimit-reset": "20"}, 20, 22),
        ({"ratelimit-reset": str(int(EPOCH) - 5)}, 0, 0),
        ({"retry-after": "soon", "ratelimit-reset": "never"}, 300, 330),
        ({"retry-after": "nan"}, 300, 330),
        ({"retry-after": "-5"}, 0, 0),
        ({"ratelimit-reset": "inf"}, 300, 330),
    ],
)
def test_how_long_a_host_is_paused(headers: dict[str, str], least: float, most: float) -> None:
    host = make_throttle()
    send(host, 0)
    host.record_rate_limit(0, headers, EPOCH)
    assert least - 0.01 <= host.pause_left(0) <= most + 0.01


def test_after_a_pause_one_request_is_sent_alone_until_its_answer() -> None:
    host = make_throttle()
    send(host, 0)
    host.record_rate_limit(0, {"retry-after": "10"}, EPOCH)
    send(host, 12)
    assert host.delay(13) == math.inf
    host.record_answer(13, {}, EPOCH)
    assert host.delay(13) == 0
    send(host, 13)
    assert host.delay(14) == 0


def test_a_cancelled_probe_lets_the_next_request_through() -> None:
    host = make_throttle()
    send(host, 0)
    host.record_rate_limit(0, {"retry-after": "10"}, EPOCH)
    send(host, 12)
    host.cancel_request()
    send(host, 13)


def test_429s_to_concurrent_requests_count_as_one_pause() -> None:
    host = make_throttle()
    for n in range(6):
        send(host, n)
    for n in range(6):
        host.record_rate_limit(6 + n / 10, {"retry-after": "20"}, EPOCH)
    assert host.gave_up_status is None
    assert host.pause_left(6.5) >= 20


@pytest.mark.parametrize("status", ["rate_limited", "unreachable"])
def test_a_host_without_any_answer_between_pauses_is_given_up(status: str) -> None:
    host, now, pauses = make_throttle(patience=2), 0.0, 0
    while host.gave_up_status is None:
        send(host, now)
        if status == "rate_limited":
            host.record_rate_limit(now, {}, EPOCH)
        else:
            host.record_failure(now, pause_at_once=True)
        pauses += 1
        now += host.pause_left(now)
    assert (host.gave_up_status, pauses) == (status, 3)


def test_one_answer_resets_the_number_of_pauses() -> None:
    host, now = make_throttle(patience=2), 0.0
    for _ in range(10):
        send(host, now)
        host.record_rate_limit(now, {"retry-after": "5"}, EPOCH)
        now += host.pause_left(now)
        send(host, now)
        host.record_answer(now, {}, EPOCH)
        now += 1
    assert host.gave_up_status is None


def test_errors_of_single_requests_pause_the_host_only_in_a_row() -> None:
    host, now = make_throttle(), 0.0
    for _ in range(5):
        for _ in range(2):
            send(host, now)
            host.record_failure(now, pause_at_once=False)
            now += 1
        send(host, now)
        host.record_answer(now, {}, EPOCH)
        now += 1
    assert host.pause_left(now) == 0
    for _ in range(3):
        send(host, now)
        host.record_failure(now, pause_at_once=False)
        now += 1
    assert host.pause_left(now) > 0


def test_pauses_of_a_failing_host_grow() -> None:
    host, now, pauses = make_throttle(patience=5), 0.0, []
    for _ in range(4):
        send(host, now)
        host.record_failure(now, pause_at_once=True)
        pauses.append(host.pause_left(now))
        now += pauses[-1]
    assert [round(pause, -1) for pause in pauses] == pytest.approx([10, 30, 120, 120], abs=11)
    assert pauses[0] < pauses[1] < pauses[2]


def test_rate_limit_headers_slow_requests_down_and_never_speed_them_up() -> None:
    host = make_throttle()
    send(host, 0)
    host.record_answer(
        0, {"ratelimit-remaining": "9", "ratelimit-reset": str(int(EPOCH) + 100)}, EPOCH
    )
    assert host.delay(0.5) == pytest.approx(9.5)
    host = make_throttle()
    send(host, 0)
    host.record_answer(
        0, {"ratelimit-remaining": "5000", "ratelimit-reset": str(int(EPOCH) + 100)}, EPOCH
    )
    assert host.delay(0) == pytest.approx(1 / 18, rel=0.1)
    host = make_throttle()
    send(host, 0)
    host.record_answer(
        0, {"ratelimit-remaining": "0", "ratelimit-reset": str(int(EPOCH) + 10**7)}, EPOCH
    )
    assert host.delay(0) == pytest.approx(MAX_PAUSE)
