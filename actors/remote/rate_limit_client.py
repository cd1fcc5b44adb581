"""A caller's side of the limiter: slots taken by lease, several at a time, and spent in time."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.remote.clock import Clock
from actors.remote.protocol import LONGEST_PAUSE, Quota, asked_to_wait
from actors.remote.rate_limiter import HORIZON, MARGIN, Lease, shared_limiter
from actors.remote.shared_actors import shared_actor_calls

# A request is made ready this much before its slot and then held: making it takes milliseconds, which
# it would leave late, each time. Waking up and writing it takes about as much as the second.
_AHEAD, _WRITING = 0.02, 0.002
# A request that was late by this much is told after so many seconds, if no lease takes that along
# before; less is within the margin.
_LATE, _TELL_SECONDS = 0.002, 0.1
# A request was at most as much longer on its way than another as its answer took longer than the
# quickest. After so many answers that one is known; and what is left to doubt is so many seconds.
_ENOUGH_ANSWERS, _DOUBT = 20, 0.005
# A slot that was missed by more than this is given up: the limiter may have handed out the slots of
# a second later before it could hear of it.
_MISSED = HORIZON
# Where others have all slots of the horizon, this much of it passes before a lease is asked for again.
_POLL = HORIZON / 5
# Reports are sent together, so often at the most.
_REPORT_SECONDS = 1.0


@dataclass(eq=False)
class Permit:
    """A time to send at, by this machine's clock and by the limiter's; its request left between `begun` and `left`."""

    at: float
    planned: float
    begun: float = 0.0
    left: float = 0.0


class RateLimitClient:
    """`call(method, *arguments)` awaits a method of the limiter, wherever that is."""

    def __init__(
        self,
        call: Callable[..., Any],
        quota: Quota,
        run_id: str,
        integration: str,
        clock: Clock | None = None,
    ) -> None:
        self._call, self._quota, self._run_id, self._integration = call, quota, run_id, integration
        self._slots: deque[Permit] = deque()
        self._clock = clock or Clock()
        self._used: list[tuple[float, float | None]] = []
        self._refill: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._succeeded = 0
        self._answers, self._quickest = 0, float("inf")
        self._counts: Counter[str] = Counter()
        self._reported = 0.0

    async def wait(self, wanted: int, tokens: float) -> Permit:
        """Returns shortly before a slot, with that. `wanted` requests wait in all, of about `tokens` each.

        Raises RetryableError where the other side asked for a pause that is too long to wait for.
        """
        most = min(wanted, max(1, int(self._quota.requests * HORIZON)))
        while True:
            if len(self._slots) <= most // 2 and self._refill is None:
                # While there are slots left: a lease takes its time on a busy machine. No more than
                # are wanted: slots that nobody uses are lost to the other callers.
                self._refill = asyncio.create_task(self._lease(most - len(self._slots), tokens))
                # Where it fails while there are slots left, the next one is waited for and fails as well.
                self._refill.add_done_callback(
                    lambda refill: refill.cancelled() or refill.exception()
                )
            if not self._slots:
                assert self._refill
                await self._refill
                continue
            slot = self._slots.popleft()
            await asyncio.sleep(max(0.0, slot.at - _AHEAD - self._clock.monotonic()))
            if self._clock.monotonic() - slot.at <= _MISSED:
                return slot
            self._used.append((slot.planned, None))

    async def _lease(self, count: int, tokens: float) -> None:
        try:
            succeeded, self._succeeded = self._succeeded, 0
            used, self._used = self._used, []
            lease: Lease = await self._call(
                "lease", self._quota, count, tokens, succeeded=succeeded, used=used
            )
            # Slots are of the limiter's clock. On another machine they are told apart from its `now`.
            shift = 0.0 if lease.boot == self._clock.boot else self._clock.monotonic() - lease.now
            self._slots.extend(Permit(planned + shift, planned) for planned in lease.slots)
            if lease.pause > LONGEST_PAUSE:
                raise asked_to_wait(lease.pause, self._clock.wall())
            if not lease.slots:
                await asyncio.sleep(min(max(_POLL, lease.wait - HORIZON), 5.0))
        finally:
            self._refill = None

    async def hold(self, slot: Permit) -> None:
        """Returns when the request, which is ready, has to be written to leave at its slot."""
        await asyncio.sleep(max(0.0, slot.at - _WRITING - self._clock.monotonic()))
        slot.begun = self._clock.monotonic()

    def sent(self, slot: Permit) -> None:
        """The request of a slot has left just now."""
        slot.left = self._clock.monotonic()
        if slot.left > slot.at + _LATE:
            self._counts_from(slot, slot.left + MARGIN)
            if self._telling is None:
                self._telling = asyncio.create_task(self._tell())

    def answered(self, slot: Permit) -> None:
        """The answer to a slot's request begins just now."""
        now = self._clock.monotonic()
        self._answers += 1
        self._quickest = min(self._quickest, now - slot.begun)
        if self._answers >= _ENOUGH_ANSWERS:
            self._counts_from(slot, min(slot.left + MARGIN, now - self._quickest + _DOUBT))

    def _counts_from(self, slot: Permit, when: float) -> None:
        self._used.append((slot.planned, slot.planned + when - slot.at))

    async def _tell(self) -> None:
        """What no lease takes along soon is told by itself: others are given the slots of a second later."""
        await asyncio.sleep(_TELL_SECONDS)
        self._telling = None
        if self._used:
            used, self._used = self._used, []
            await self._call("lease", self._quota, 0, used=used)

    def succeeded(self) -> None:
        self._succeeded += 1

    async def throttled(self, retry_after: float | None) -> int:
        """Slots that are held are of before the pause: they are given up."""
        self._slots.clear()
        return int(await self._call("throttled", retry_after))

    async def settle(self, tokens: float) -> None:
        if self._quota.tokens_per_minute and tokens:
            await self._call("settle", self._quota, tokens)

    async def report(self, counts: Counter[str], *, at_once: bool = False) -> None:
        self._counts += counts
        if self._counts and (at_once or self._clock.monotonic() - self._reported > _REPORT_SECONDS):
            counts, self._counts = self._counts, Counter()
            self._reported = self._clock.monotonic()
            await self._call("report", self._run_id, self._integration, counts)


def shared_calls(name: str) -> Callable[..., Any]:
    """Calls of the cluster's limiter of this name. Another run may end it just now; then it is made anew."""
    return shared_actor_calls(lambda: shared_limiter(name))
