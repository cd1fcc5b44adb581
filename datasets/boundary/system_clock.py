"""The clock of this machine that goes on while it sleeps."""

from __future__ import annotations

import time


def uptime() -> float:
    """Seconds since the machine started, including those in which it slept.

    `time.monotonic` leaves those out on every system, and so does CLOCK_MONOTONIC on Linux. On macOS
    CLOCK_MONOTONIC includes them.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
