"""Downloads on disk: where they lie, and how many bytes they may take."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from itertools import count

from datasets.errors import from_os_error

# Reserved for a new download: an open file has a cost, however small it is.
_FIRST_BYTES = 1 << 16


class ByteBudget:
    """Disk space for downloads whose size is not known in advance.

    A download that needs more space than is free waits, except the oldest: it always gets the
    space, so that one download can always finish. On disk there are at most the limit and one
    repository.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._held: dict[int, int] = {}
        self._tickets = count()
        self._changed = asyncio.Condition()

    async def open(self) -> int:
        """Waits until there is space for a small repository. Returns the download's ticket."""
        async with self._changed:
            await self._changed.wait_for(self._has_room_for_another)

            ticket = next(self._tickets)
            self._held[ticket] = _FIRST_BYTES
            self._used += _FIRST_BYTES
            return ticket

    async def grow(self, ticket: int, size: int) -> None:
        """Waits until the download may have `size` bytes in total."""
        more = size - self._held[ticket]
        if more <= 0:
            return

        async with self._changed:
            await self._changed.wait_for(lambda: self._may_grow(ticket, more))
            self._held[ticket] += more
            self._used += more

    async def close(self, ticket: int) -> None:
        """Returns the download's space."""
        async with self._changed:
            self._used -= self._held.pop(ticket)
            self._changed.notify_all()

    def _has_room_for_another(self) -> bool:
        return not self._held or self._used + _FIRST_BYTES <= self._limit

    def _may_grow(self, ticket: int, more: int) -> bool:
        oldest = next(iter(self._held))
        return self._used + more <= self._limit or ticket == oldest


class Spool:
    """A folder of downloads. Files are numbered: no name from the network becomes a path."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = count()
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise from_os_error("write", folder, error) from error

    def path(self) -> str:
        """A new path."""
        return os.path.join(self._folder, f"{next(self._numbers)}.car")

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Download:
    """A file that is being written, within its share of the budget."""

    def __init__(self, path: str, budget: ByteBudget, ticket: int) -> None:
        self.path = path
        self.size = 0
        self.ticket = ticket
        self._budget = budget
        self._file = open(path, "xb")  # noqa: SIM115 - closed by `close` and `discard`

    async def write(self, piece: bytes) -> None:
        """Waits for space if there is none. Raises ConfigError if the disk cannot be written."""
        self.size += len(piece)
        await self._budget.grow(self.ticket, self.size)
        try:
            self._file.write(piece)
        except OSError as error:
            raise from_os_error("write", self.path, error) from error

    def discard(self) -> None:
        """Closes and deletes the file."""
        with suppress(OSError):
            self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise from_os_error("write", self.path, error) from error
