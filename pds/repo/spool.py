"""Downloads on disk: how many bytes of them there may be, and where."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from itertools import count

from datasets.errors import from_os_error

# An open file costs something however small it is.
_LEAST_BYTES = 1 << 16


class ByteBudget:
    """Bytes handed out to downloads whose size nobody knows beforehand.

    Who needs more than there is waits, except the oldest, so that one always gets to its end; what
    lies on disk is then at most the limit and one repository.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._held: dict[int, int] = {}
        self._tickets = count()
        self._changed = asyncio.Condition()

    async def open(self) -> int:
        """A ticket, once there is room for a small repository."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._held or self._used + _LEAST_BYTES <= self._limit
            )
            ticket = next(self._tickets)
            self._held[ticket] = _LEAST_BYTES
            self._used += _LEAST_BYTES
            return ticket

    async def grow(self, ticket: int, size: int) -> None:
        """Waits until the download may have `size` bytes in all."""
        more = size - self._held[ticket]
        if more <= 0:
            return
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._used + more <= self._limit or ticket == next(iter(self._held))
            )
            self._held[ticket] += more
            self._used += more

    async def close(self, ticket: int) -> None:
        async with self._changed:
            self._used -= self._held.pop(ticket)
            self._changed.notify_all()


class Spool:
    """A folder of downloads. Its file names are numbers: names from the network never become paths."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._numbers = count()
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise from_os_error("write", folder, error) from error

    def path(self) -> str:
        return os.path.join(self._folder, f"{next(self._numbers)}.car")

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Download:
    """One file being written, within its part of the budget."""

    def __init__(self, path: str, budget: ByteBudget, ticket: int) -> None:
        self.path, self.size, self.ticket = path, 0, ticket
        self._budget = budget
        self._file = open(path, "xb")  # noqa: SIM115 - closed by `close`

    async def write(self, piece: bytes) -> None:
        self.size += len(piece)
        await self._budget.grow(self.ticket, self.size)
        try:
            self._file.write(piece)
        except OSError as error:
            raise from_os_error("write", self.path, error) from error

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise from_os_error("write", self.path, error) from error
