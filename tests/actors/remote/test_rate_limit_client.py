from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.remote.protocol import LONGEST_PAUSE, Quota
from actors.remote.rate_limit_client import _DOUBT, _ENOUGH_ANSWERS, RateLimitClient
from actors.remote.rate_limiter import MARGIN, Limiter
from datasets.errors import RetryableError
from tests.clocks import TestClock

ONE = Quota(1)


@pytest.fixture
def time() -> TestClock:
    return TestClock()


@pytest.fixture
def limiter(tmp_path: Path, time: TestClock) -> Limiter:
    return Limiter("x", str(tmp_path), time.clock)


def elsewhere(limiter: Limiter, shift: float = 0.0) -> Any:
    """Calls of a limiter on a machine whose clock reads `shift` seconds more; its reports are kept."""
    reports: list[tuple[float, float | None]] = []
    here: dict[float, float] = {}

    async def call(
        method: str, *arguments: Any, used: Sequence[tuple[float, float | None]] = (), **named: Any
    ) -> Any:
        assert method == "lease"
        reports.extend(used)
        ours = [(here[planned], left and left - shift) for planned, left in used]
        lease = limiter.lease(*arguments, used=ours, **named)
        here.update({slot + shift: slot for slot in lease.slots})
        boot = "another" if shift else lease.boot
        return replace(
            lease,
            slots=tuple(slot + shift for slot in lease.slots),
            now=lease.now + shift,
            boot=boot,
        )

    call.reports = reports  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_late_request_is_reported_in_time_without_another_lease(
    limiter: Limiter, time: TestClock, shift: float
) -> None:
    """By the limiter's clock, whatever the caller's: the slot after it comes later by as much."""
    call = elsewhere(limiter, shift)

    async def send_late() -> None:
        slots = RateLimitClient(call, ONE, "run", "integration", time.clock)
        slot = await slots.wait(1, 0.0)
        await slots.hold(slot)
        await asyncio.sleep(0.3)
        slots.sent(slot)
        await asyncio.sleep(0.2)

    time.run(send_late())
    ((planned, counts),) = call.reports
    assert counts - planned == pytest.approx(0.3 + MARGIN)
    assert limiter.lease(ONE, 1).wait == pytest.approx(0.3 + MARGIN + 1 - 0.5)


def test_a_late_answer_leaves_open_how_late_its_request_arrived(
    limiter: Limiter, time: TestClock
) -> None:
    """A request counts from when it has arrived at the latest; that is told with the next lease."""
    call = elsewhere(limiter)

    async def answer() -> None:
        slots = RateLimitClient(call, Quota(1000), "run", "integration", time.clock)
        for took in [0.2] * (_ENOUGH_ANSWERS - 1) + [0.2, 0.208, 0.5]:
            slot = await slots.wait(1, 0.0)
            slot.left = slot.begun = slot.at = time.now - took
            slots.answered(slot)
        await slots.wait(1, 0.0)

    time.run(answer())
    counts_after = [counts - planned for planned, counts in call.reports]
    assert counts_after == pytest.approx([_DOUBT, _DOUBT + 0.008, MARGIN])


def test_a_slot_that_was_missed_is_given_back(limiter: Limiter, time: TestClock) -> None:
    call = elsewhere(limiter)

    async def take_too_late() -> None:
        slots = RateLimitClient(call, Quota(100), "run", "integration", time.clock)
        first = await slots.wait(3, 0.0)
        time.now += 0.6  # the whole process stands still
        after = await slots.wait(2, 0.0)
        assert after.at > first.at + 0.5

    time.run(take_too_late())
    assert [left for _, left in call.reports] == [None, None]


def test_requests_leave_at_their_slots(limiter: Limiter, time: TestClock) -> None:
    call = elsewhere(limiter)

    async def send() -> list[tuple[float, float]]:
        slots, found = RateLimitClient(call, Quota(20), "run", "integration", time.clock), []
        for wanted in range(10, 0, -1):
            slot = await slots.wait(wanted, 0.0)
            assert time.now <= slot.at
            await slots.hold(slot)
            found.append((slot.at, time.now))
        return found

    times = time.run(send())
    assert all(-0.0021 < left - at <= 0.0 for at, left in times)
    assert times[-1][0] - times[0][0] == pytest.approx(9 / 20, abs=0.005)


def test_a_pause_of_an_hour_is_waited_for(limiter: Limiter, time: TestClock) -> None:
    start = time.now
    limiter.throttled(LONGEST_PAUSE)
    slot = time.run(
        RateLimitClient(elsewhere(limiter), ONE, "run", "integration", time.clock).wait(1, 0.0)
    )
    assert slot.at == pytest.approx(start + LONGEST_PAUSE, abs=5.0)


def test_a_longer_pause_ends_the_wait_at_once_and_says_when_it_is_over(
    limiter: Limiter, time: TestClock
) -> None:
    """Also one that another caller was told of, and each time that somebody waits."""
    start = time.now
    limiter.throttled(86_400)
    slots = RateLimitClient(elsewhere(limiter), ONE, "run", "integration", time.clock)
    for _ in range(3):
        with pytest.raises(
            RetryableError, match="asked to wait until 2027-01-16 08:17 UTC"
        ) as raised:
            time.run(slots.wait(5, 0.0))
        assert raised.value.kind == "asked to wait until 2027-01-16 08:17 UTC"
    assert time.now == start


def test_a_limiter_that_fails_is_heard_of_and_asked_again(
    limiter: Limiter, time: TestClock
) -> None:
    calls, broken = elsewhere(limiter), [True]

    async def call(*arguments: Any, **named: Any) -> Any:
        if broken.pop():
            raise OSError("no space left")
        broken.append(False)
        return await calls(*arguments, **named)

    slots = RateLimitClient(call, ONE, "run", "integration", time.clock)
    with pytest.raises(OSError, match="no space left"):
        time.run(slots.wait(1, 0.0))
    broken.append(False)
    assert time.run(slots.wait(1, 0.0)).at == time.now


def test_reports_are_sent_together(limiter: Limiter, time: TestClock) -> None:
    sent: list[int] = []

    async def call(method: str, run_id: str, integration: str, counts: Counter[str]) -> None:
        sent.append(counts["calls"])

    async def report() -> None:
        slots = RateLimitClient(call, ONE, "run", "integration", time.clock)
        for _ in range(10):
            await slots.report(Counter(calls=1))
            time.now += 0.25
        await slots.report(Counter(), at_once=True)

    time.run(report())
    assert sent == [1, 5, 4]
