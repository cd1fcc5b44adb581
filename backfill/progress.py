"""What a user sees of a run: one line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

# Seconds between updates on a terminal, and between plain lines.
_TERMINAL_SECONDS, _PLAIN_SECONDS = 0.5, 10.0
# The rate is that of the last so many seconds.
_RATE_WINDOW = 30.0
# Without an acknowledged batch for so long, an integration's wait is explained; and again after twice the time.
_STALL_SECONDS = 60.0
_WIDTH = 79


@dataclass
class Tally:
    """One integration's posts in a run."""

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
        return self.labelled + self.rejected.total()

    @property
    def stalls(self) -> bool:
        """Whether there is something to wait for."""
        return (
            not self.seconds
            and not self.error
            and self.done + self.retryable.total() < self.eligible
        )

    @property
    def failed(self) -> int:
        """Left for the next run: passing failures, and what was not reached."""
        return self.eligible - self.done


class Progress:
    """Prints to `stream` until closed. `tallies` may change in other threads meanwhile."""

    def __init__(self, stream: TextIO, tallies: dict[str, Tally]) -> None:
        self._stream, self._tallies = stream, tallies
        self._terminal = stream.isatty()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._shown = ""
        self._status = ""
        self._seen: deque[tuple[float, int]] = deque()
        self._why: Callable[[str], str] | None = None
        self._moved: dict[str, tuple[int, float, float]] = {}
        self._thread = threading.Thread(
            target=self._print_until_closed, name="progress", daemon=True
        )

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._terminal:
            self._write("")
        elif self._done() and self._shown != self._line():
            self.say(self._line())

    def status(self, text: str) -> None:
        """What is going on before the first label."""
        self._status = text

    def watch(self, why: Callable[[str], str]) -> None:
        """From now on, says why an integration does not move, if `why(name)` has an answer."""
        self._why = why

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            if self._terminal:
                self._stream.write("\r\x1b[K")
            self._stream.write(text + "\n")
            self._stream.flush()

    def _print_until_closed(self) -> None:
        period = _TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS
        while not self._stop.wait(period):
            try:
                self._show()
            except Exception as error:  # noqa: BLE001 - the next line may do again; a broken stream can't be told
                with suppress(Exception):
                    self.say(f"progress cannot be shown ({type(error).__name__}: {error})")

    def _show(self) -> None:
        line = self._line()
        if self._terminal:
            self._write(line)
        elif line != self._shown:
            self.say(line)
        self._shown = line
        self._say_what_stalls()

    def _say_what_stalls(self) -> None:
        now = time.monotonic()
        for name, tally in self._tallies.items():
            count = tally.done + tally.retryable.total()
            before, since, patience = self._moved.get(name, (-1, now, _STALL_SECONDS))
            if self._why is None or count != before or not tally.stalls:
                self._moved[name] = (count, now, _STALL_SECONDS)
            elif now - since >= patience:
                self._moved[name] = (count, since, 2 * patience)
                self.say(
                    f"{name}: nothing labelled for {format_seconds(now - since)}: {self._reason(name)}"
                )

    def _reason(self, name: str) -> str:
        try:
            return self._why(name) if self._why else ""
        except Exception as error:  # noqa: BLE001 - Ray's, when its state can't be asked; the thread goes on
            return f"why is not known ({type(error).__name__}: {error})"

    def _write(self, line: str) -> None:
        with self._lock:
            self._stream.write(f"\r\x1b[K{line[:_WIDTH]}")
            self._stream.flush()

    def _done(self) -> int:
        return sum(tally.done for tally in self._tallies.values())

    def _line(self) -> str:
        eligible = sum(tally.eligible for tally in self._tallies.values())
        rejected = sum(tally.rejected.total() for tally in self._tallies.values())
        done = self._done()
        if not eligible:
            return self._status
        rate = self._rate(done)
        if not done:
            return f"{self._status}, {eligible:,} posts to label"
        left = (
            f"{format_seconds((eligible - done) / rate)} left" if rate and done < eligible else ""
        )
        pace = (
            f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        )  # one post in two seconds is not none
        return ", ".join(
            filter(
                None, [f"{done:,} of {eligible:,} posts, {pace}/s", left, f"{rejected:,} rejected"]
            )
        )

    def _rate(self, done: int) -> float:
        """Posts a second over the last seconds; before the first label, this only starts the clock."""
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RATE_WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
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
