"""A note on disk of which rows are being classified, so that a crash is traced to its post.

Ray restarts an actor whose process has died, and gives it the same block
again. It then finds the note of its predecessor, and tries the rows that
were being classified in ever smaller ranges, until a single post is to
blame.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from datasets.scratch import scratch_folder

# A range of rows that crashed the process is tried again in this many
# pieces.
_PIECES = 16
# Crashes on a single row before it is blamed: the first may have had
# another cause.
MAX_CRASHES = 2


@dataclass(frozen=True, order=True)
class _Suspect:
    """Rows from `start` up to `stop`, and how often the process crashed on them alone."""

    start: int
    stop: int
    crashes: int = 0


class CrashJournal:
    """The journal of one block: a context manager around its classification.

    It guards against the death of the process, not of the machine, so it is
    written without a sync. It is removed when the block is done. A block
    that finds one is classified alone in its process, so that the next
    crash is its own and not that of a concurrent block.
    """

    def __init__(self, block: str) -> None:
        self._path = os.path.join(scratch_folder(), f"{block}.json")
        # Disjoint, and in order.
        self._suspects: list[_Suspect] = []

        with (
            contextlib.suppress(FileNotFoundError, ValueError),
            open(self._path) as file,
        ):
            self._take_over(json.load(file))

    def _take_over(self, note: dict[str, Any]) -> None:
        self._suspects = [_Suspect(*entry) for entry in note["suspects"]]
        if note["at_work"]:
            start, stop = note["at_work"]
            self._suspects = _after_crash(self._suspects, start, stop)
            self._write(None)

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """Divides `count` rows into ranges, in order.

        Each suspect is a range of its own.
        """
        found: list[tuple[int, int]] = []
        position = 0
        for suspect in self._suspects:
            if position < suspect.start:
                found.append((position, suspect.start))
            found.append((suspect.start, suspect.stop))
            position = suspect.stop

        if position < count:
            found.append((position, count))
        return found

    def is_poison(self, start: int, stop: int) -> bool:
        """Whether the range is a single row that has crashed the process too often."""
        return stop - start == 1 and any(
            (suspect.start, suspect.stop) == (start, stop) and suspect.crashes >= MAX_CRASHES
            for suspect in self._suspects
        )

    def begin(self, start: int, stop: int) -> None:
        """Records the range that is classified next."""
        self._write((start, stop))

    def _write(self, at_work: tuple[int, int] | None) -> None:
        note = {
            "suspects": [astuple(suspect) for suspect in self._suspects],
            "at_work": at_work,
        }
        with open(f"{self._path}.new", "w") as file:
            json.dump(note, file)
        os.replace(f"{self._path}.new", self._path)

    def __enter__(self) -> CrashJournal:
        _CONCURRENT_BLOCKS.enter(alone=bool(self._suspects))
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        _CONCURRENT_BLOCKS.leave()


def _after_crash(suspects: Sequence[_Suspect], start: int, stop: int) -> list[_Suspect]:
    """The suspects after a crash on the rows from `start` up to `stop`.

    A range is divided into pieces; a single row is blamed once more.
    """
    others = [s for s in suspects if (s.start, s.stop) != (start, stop)]
    if stop - start == 1:
        before = sum(s.crashes for s in suspects if (s.start, s.stop) == (start, stop))
        return sorted([*others, _Suspect(start, stop, before + 1)])

    size = max(1, -(-(stop - start) // _PIECES))
    pieces = [_Suspect(s, min(s + size, stop)) for s in range(start, stop, size)]
    return sorted([*others, *pieces])


class _ConcurrentBlocks:
    """Admits any number of blocks of this process at a time, or one that must be alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._alone = False

    def enter(self, *, alone: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0 or not (alone or self._alone))
            self._count += 1
            self._alone = alone

    def leave(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()


_CONCURRENT_BLOCKS = _ConcurrentBlocks()
