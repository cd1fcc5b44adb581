"""Clocks that only move when a test moves them, and an event loop whose sleeps do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

from actors.remote.clock import Clock


class TestClock:
    """Reads `now` seconds of a monotonic clock, `slept` more of uptime, and `epoch` more of the wall clock."""

    __test__ = False

    def __init__(
        self, now: float = 1000.0, *, boot: str = "this start", epoch: float = 1_800_000_000.0
    ) -> None:
        self.now, self.epoch, self.boot, self.slept = now, epoch, boot, 0.0

    @property
    def clock(self) -> Clock:
        return Clock(
            lambda: self.now,
            lambda: self.now + self.slept,
            lambda: self.epoch + self.now + self.slept,
            self.boot,
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """In an event loop that reads this clock, and moves it on where it would wait for a time to come."""
        with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
            return runner.run(work)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: TestClock) -> None:
        super().__init__(_Selector(clock))
        self._test_clock = clock

    def time(self) -> float:
        return self._test_clock.now


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: TestClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits for something that never comes"
        self._clock.now += max(timeout, 0.0)
        return super().select(0)
