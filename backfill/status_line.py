"""One line that moves on a terminal, a plain line now and then elsewhere: for commands other than a run."""

from __future__ import annotations

import time
from typing import TextIO

_TERMINAL_SECONDS, _PLAIN_SECONDS = 0.5, 10.0
_WIDTH = 100


class StatusLine:
    """Written by one thread. Close it before anything else is written to the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._next = 0.0
        self._shown = ""

    def show(self, line: str) -> None:
        now = time.monotonic()
        if now < self._next or line == self._shown:
            return
        self._next = now + (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS)
        self._shown = line
        self._write(line[:_WIDTH] if self._terminal else line + "\n")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._write(line + "\n")

    def close(self) -> None:
        if self._terminal:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}" if self._terminal else text)
        self._stream.flush()
