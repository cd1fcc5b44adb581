"""A status line: redrawn in place on a terminal, plain lines from time to time elsewhere."""

from __future__ import annotations

import threading
import time
from typing import TextIO

# Seconds between updates on a terminal, and between plain lines.
TERMINAL_SECONDS = 0.5
PLAIN_SECONDS = 10.0
_WIDTH = 100
_ERASE = "\r\x1b[K"


class TerminalLine:
    """Writes lines that are replaced or stay. Any thread may call it.

    `width` is in characters: what is longer is cut off on a terminal, where a line that wraps
    cannot be replaced.
    """

    def __init__(self, stream: TextIO, width: int = _WIDTH) -> None:
        self._stream = stream
        self._width = width
        self._lock = threading.Lock()
        self.is_terminal = stream.isatty()

    def show(self, line: str) -> None:
        """On a terminal the next line replaces this one; elsewhere it stays."""
        if self.is_terminal:
            self._write(_ERASE + line[: self._width])
        else:
            self._write(line + "\n")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._write(f"{_ERASE if self.is_terminal else ''}{line}\n")

    def clear(self) -> None:
        """Removes the line that `show` has drawn, before something else writes to the stream."""
        if self.is_terminal:
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()


class StatusLine:
    """A `TerminalLine` whose caller may update it as often as it likes, from one thread."""

    def __init__(self, stream: TextIO) -> None:
        self._line = TerminalLine(stream)
        self._period = TERMINAL_SECONDS if self._line.is_terminal else PLAIN_SECONDS
        self._next = 0.0
        self._shown = ""

    def show(self, line: str) -> None:
        """Skipped if it is unchanged or too soon after the previous one."""
        now = time.monotonic()
        if now < self._next or line == self._shown:
            return
        self._next = now + self._period
        self._shown = line
        self._line.show(line)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._line.say(line)

    def close(self) -> None:
        self._line.clear()
