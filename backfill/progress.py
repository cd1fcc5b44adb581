"""What a user sees of a run: one line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from backfill.status_line import PLAIN_SECONDS, TERMINAL_SECONDS, TerminalLine

# The rate is the mean over this many seconds.
_RATE_SECONDS = 30.0
# A stall is explained after this many seconds without an acknowledged batch, and again each time it
# has lasted twice as long.
_STALL_SECONDS = 60.0
_WIDTH = 79


@dataclass
class IntegrationProgress:
    """What one integration has done in a run. Counts are posts, `seconds` the time of labelling.

    `rejected` counts by reason, `retryable` transient failures by kind. `seconds` is 0 until the
    integration has finished. `error` says why it stopped, `behind` why its database lacks labels
    that the lake has.
    """

    eligible: int = 0
    labelled: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    retryable: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    error: str | None = None
    behind: str | None = None
    api: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Posts that have a label row."""
        return self.labelled + self.rejected.total()

    @property
    def attempted(self) -> int:
        """Posts that have a label row or failed."""
        return self.done + self.retryable.total()

    @property
    def failed(self) -> int:
        """Posts left for the next run: transient failures, and posts that were not reached."""
        return self.eligible - self.done

    @property
    def is_labelling(self) -> bool:
        """Whether more batches are expected."""
        return not self.seconds and not self.error and self.attempted < self.eligible


@dataclass
class _Movement:
    """When an integration's count last changed, and the stall that is to be reported next."""

    count: int
    since: float
    report_after: float = field(default_factory=lambda: _STALL_SECONDS)


class Progress:
    """Shows the progress of a run on `stream` from a thread, until its `with` block ends.

    Other threads may change `integrations` (by name) meanwhile.
    """

    def __init__(self, stream: TextIO, integrations: Mapping[str, IntegrationProgress]) -> None:
        self._integrations = integrations
        self._terminal = TerminalLine(stream, _WIDTH)
        self._closed = threading.Event()
        self._shown = ""
        self._status = ""
        self._samples: deque[tuple[float, int]] = deque()
        self._explain_stall: Callable[[str], str] | None = None
        self._movements: dict[str, _Movement] = {}
        self._thread = threading.Thread(
            target=self._print_until_closed, name="progress", daemon=True
        )

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()

        if self._terminal.is_terminal:
            self._terminal.clear()
        elif self._done() and self._shown != self._line():
            self.say(self._line())

    def set_status(self, text: str) -> None:
        """What is shown before the first label."""
        self._status = text

    def report_stalls(self, explain: Callable[[str], str]) -> None:
        """From now on, reports integrations that do not move. `explain` gets the name of one."""
        self._explain_stall = explain

    def say(self, text: str) -> None:
        """A line that stays."""
        self._terminal.say(text)

    def _print_until_closed(self) -> None:
        period = TERMINAL_SECONDS if self._terminal.is_terminal else PLAIN_SECONDS
        while not self._closed.wait(period):
            try:
                self._show()
            except Exception as error:  # noqa: BLE001 - the next line may succeed; a broken stream can't be told
                with suppress(Exception):
                    self.say(f"progress cannot be shown ({type(error).__name__}: {error})")

    def _show(self) -> None:
        line = self._line()
        if self._terminal.is_terminal or line != self._shown:
            self._terminal.show(line)
        self._shown = line
        self._say_stalls()

    def _say_stalls(self) -> None:
        now = time.monotonic()
        for name, progress in self._integrations.items():
            count = progress.attempted
            last = self._movements.get(name)
            moved = last is None or count != last.count or not progress.is_labelling
            if last is None or moved or self._explain_stall is None:
                self._movements[name] = _Movement(count, now)
            elif now - last.since >= last.report_after:
                last.report_after *= 2
                stalled = format_seconds(now - last.since)
                self.say(f"{name}: nothing labelled for {stalled}: {self._explanation(name)}")

    def _explanation(self, name: str) -> str:
        try:
            return self._explain_stall(name) if self._explain_stall else ""
        except Exception as error:  # noqa: BLE001 - Ray's, when its state can't be read; the thread goes on
            return f"why is not known ({type(error).__name__}: {error})"

    def _done(self) -> int:
        return sum(progress.done for progress in self._integrations.values())

    def _line(self) -> str:
        eligible = sum(progress.eligible for progress in self._integrations.values())
        rejected = sum(progress.rejected.total() for progress in self._integrations.values())
        done = self._done()
        if not eligible:
            return self._status

        rate = self._rate(done)
        if not done:
            return f"{self._status}, {eligible:,} posts to label"

        # One post in two seconds is not shown as none.
        pace = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        parts = [f"{done:,} of {eligible:,} posts, {pace}/s"]
        if rate and done < eligible:
            parts.append(f"{format_seconds((eligible - done) / rate)} left")
        parts.append(f"{rejected:,} rejected")
        return ", ".join(parts)

    def _rate(self, done: int) -> float:
        """Posts a second, by the samples of the last seconds. The first call starts the clock."""
        now = time.monotonic()
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] < now - _RATE_SECONDS:
            self._samples.popleft()

        then, before = self._samples[0]
        return (done - before) / (now - then) if now > then else 0.0


def format_seconds(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    for size, name, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {small}"
    return f"{whole} s"
