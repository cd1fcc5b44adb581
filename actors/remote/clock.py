"""What time it is, and on which machine since when. Passed in, so that tests have clocks of their own."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from datasets.boundary.system_clock import uptime

_LINUX = "/proc/sys/kernel/random/boot_id"
_MACOS = ("sysctl", "-n", "kern.bootsessionuuid")


def boot_id(linux: str = _LINUX, macos: Sequence[str] = _MACOS) -> str:
    """Which clock `time.monotonic` reads: that of one machine since it was started. Never fails.

    Where a system has no name for that, it is the machine's: then only a clock that reads less than before tells
    that the machine was started anew.
    """
    found = ""
    with suppress(OSError):
        found = Path(linux).read_text().strip()
    if not found:
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(macos, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603 - a constant
            found = done.stdout.strip()
    return found or platform.node() or "this machine"


@dataclass(frozen=True)
class Clock:
    """`monotonic` and `uptime` are of one start of one machine, which `boot` names; `wall` in seconds of the epoch."""

    monotonic: Callable[[], float] = time.monotonic
    uptime: Callable[[], float] = uptime
    wall: Callable[[], float] = time.time
    boot: str = field(default_factory=boot_id)
