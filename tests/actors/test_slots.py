from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.limiter import MARGIN, Limiter
from actors.remote import Quota
from actors.slots import _DOUBT, _ENOUGH_ANSWERS, Slots

ONE = Quota(1)


def elsewhere(limiter: Limiter, shift: float) -> Any:
    """Calls of a limiter on a machine whose clock reads `shift` seconds more; its reports are kept."""
    reports: list[tuple[float, float | None]] = []
    here: dict[float, float] = {}

    async def call(method: str, *arguments: Any, used: Sequence[tuple[float, float | None]] = (), **named: Any) -> Any:
        assert method == "lease"
        reports.extend(used)
        ours = [(here[planned], left and left - shift) for planned, left in used]
        lease = limiter.lease(*arguments, used=ours, **named)
        here.update({slot + shift: slot for slot in lease.slots})
        boot = "another" if shift else lease.boot
        return replace(lease, slots=tuple(slot + shift for slot in lease.slots), now=lease.now + shift, boot=boot)

    call.reports = reports  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_late_request_is_reported_in_time_without_another_lease(tmp_path: Path, shift: float) -> None:
    """By the limiter's clock, whatever the caller's: the slot after it comes later by as much."""
    limiter = Limiter("x", str(tmp_path))
    call = elsewhere(limiter, shift)

    async def send_late() -> None:
        slots = Slots(call, ONE, "run", "integration")
        slot = await slots.wait(1, 0.0)
        await slots.hold(slot)
        await asyncio.sleep(0.3)
        slots.sent(slot)
        await asyncio.sleep(0.2)

    asyncio.run(send_late())
    ((planned, counts),) = call.reports
    assert counts - planned == pytest.approx(0.3 + MARGIN, abs=0.05)
    assert limiter.lease(ONE, 1).wait == pytest.approx(0.3 + 1 - 0.5, abs=0.1)


def test_a_late_answer_leaves_open_how_late_its_request_arrived(tmp_path: Path) -> None:
    """A request counts from when it has arrived at the latest; that is told with the next lease."""
    call = elsewhere(Limiter("x", str(tmp_path)), 0.0)

    async def answer() -> None:
        slots = Slots(call, Quota(1000), "run", "integration")
        for took in [0.2] * (_ENOUGH_ANSWERS - 1) + [0.2, 0.208, 0.5]:
            slot = await slots.wait(1, 0.0)
            slot.left = slot.begun = slot.at = time.monotonic() - took
            slots.answered(slot)
        await slots.wait(1, 0.0)

    asyncio.run(answer())
    counts_after = [counts - planned for planned, counts in call.reports]
    assert counts_after == pytest.approx([_DOUBT, _DOUBT + 0.008, MARGIN], abs=0.001)


def test_a_slot_that_was_missed_is_given_back(tmp_path: Path) -> None:
    call = elsewhere(Limiter("x", str(tmp_path)), 0.0)

    async def take_too_late() -> None:
        slots = Slots(call, Quota(100), "run", "integration")
        first = await slots.wait(3, 0.0)
        time.sleep(0.6)  # the whole process stands still
        after = await slots.wait(2, 0.0)
        assert after.at > first.at + 0.5

    asyncio.run(take_too_late())
    assert [left for _, left in call.reports] == [None, None]


def test_requests_leave_at_their_slots(tmp_path: Path) -> None:
    call = elsewhere(Limiter("x", str(tmp_path)), 0.0)

    async def send() -> list[tuple[float, float]]:
        slots, found = Slots(call, Quota(20), "run", "integration"), []
        for wanted in range(10, 0, -1):
            slot = await slots.wait(wanted, 0.0)
            assert time.monotonic() < slot.at + 0.05
            await slots.hold(slot)
            found.append((slot.at, time.monotonic()))
        return found

    times = asyncio.run(send())
    assert all(-0.005 < left - at < 0.05 for at, left in times)
    assert times[-1][0] - times[0][0] == pytest.approx(9 / 20, abs=0.05)
