"""When the label buffer flushes, and what it does with what it has flushed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FlushPolicy:
    """Flush when `rows` are staged, or when the oldest has waited `seconds`.

    `never` leaves everything in the output queue, for a write phase. `keep`
    leaves flushed batches in the queue too, for a clear phase. `replace`
    removes older, rejected rows of the same posts. `skip_bad_files`
    continues without label files that cannot be used.
    """

    rows: int = 100_000
    seconds: float = 300.0
    never: bool = False
    keep: bool = False
    replace: bool = False
    skip_bad_files: bool = False

    def divide(self, batches: Mapping[str, int]) -> Iterator[list[str]]:
        """Divides batches (name → rows) into flushes of at most `rows`, or of one larger batch."""
        chunk: list[str] = []
        total = 0
        for name, count in batches.items():
            if chunk and total + count > self.rows:
                yield chunk
                chunk = []
                total = 0
            chunk.append(name)
            total += count

        if chunk:
            yield chunk
