"""Who may write what: one writer of an integration's labels of a date, on any number of machines.

A lock is for a name (an integration), a role and a range of partition dates; two of one name and
role exclude each other where their dates overlap. So runs of one integration over disjoint dates go
side by side. A run takes `run` in the driver, for as long as it selects and labels, and `buffer` in
the process that writes, which may outlive a killed driver by a moment. `recover` is held while what
dead runs have left is taken up.

In a folder, a lock is an open file and dies with its process, however that ends. On S3 it is a lease
(datasets/locking/leases.py), which another may take over from a holder that was stopped for long. So whoever
writes asks before it writes whether it still is the holder (`ensure`).
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType, TracebackType
from typing import Protocol

from datasets.errors import ConfigError, from_os_error
from datasets.lake import Lake
from datasets.locking import leases
from datasets.locking.entries import ALL_DATES, SUFFIX, Dates, Entry, Role, myself, overlap, parse
from datasets.locking.lease_store import s3_store

__all__ = ["ALL_DATES", "NOBODY", "Dates", "Lock", "Role", "live_runs", "overlap"]

NOBODY: Mapping[str, Dates] = MappingProxyType({})


class _Held(Protocol):
    """`take` gives None, or what the holder said of itself; it may be a dead one's unless `alive`."""

    alive: bool

    def take(self) -> str | None: ...

    def start(self) -> None: ...

    def ensure(self) -> None: ...

    def release(self) -> None: ...


class Lock:
    """Held from construction to `release`, or to the end of the process.

    Waits up to `wait` seconds, on S3 also until it is sure that the holder is alive; then raises
    ConfigError with what the holder said of itself.
    """

    def __init__(
        self,
        lake: Lake,
        name: str,
        role: Role,
        run_id: str,
        wait: float = 0.0,
        dates: Dates = ALL_DATES,
    ) -> None:
        self._held = _held(lake, name, Entry(role, dates, run_id))
        deadline = time.monotonic() + wait
        while (holder := self._held.take()) is not None:
            if time.monotonic() >= deadline and self._held.alive:
                raise ConfigError(
                    f"{name} is being written by {holder}; wait for it to end, or stop it"
                )
            time.sleep(0.1 if lake.is_local else random.uniform(1, 3))  # noqa: S311 - only lest two go in step
        self._held.start()

    def ensure(self) -> None:
        """Raises ConfigError where the lock was lost. To be called before writing what two must not write."""
        self._held.ensure()

    def release(self) -> None:
        self._held.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _held(lake: Lake, name: str, entry: Entry) -> _Held:
    if lake.is_local:
        return _File(lake, name, entry)
    return leases.Lease(s3_store(lake), _folder(name), name, entry)


def live_runs(lake: Lake, name: str, besides: str = "") -> dict[str, Dates]:
    """The runs `besides` one that label or whose buffer may still write, and which dates.

    For a caller that holds a lock of the same name.
    """
    if lake.is_local:
        folder = _local_folder(lake, name)
        with _guard(folder):
            entries = [parse(path) for path in _lock_files(folder) if _is_held(path)]
    else:
        entries = leases.living(s3_store(lake), _folder(name))
    return {
        entry.run_id: entry.dates
        for entry in entries
        if entry.role != "recover" and entry.run_id != besides
    }


def _folder(name: str) -> str:
    return f".locks/{name}"


def _local_folder(lake: Lake, name: str) -> str:
    return os.path.join(os.path.abspath(lake.root), _folder(name))


class _File:
    """A file that its holder keeps locked. Whoever looks at the files of a name holds the guard meanwhile."""

    alive = True

    def __init__(self, lake: Lake, name: str, entry: Entry) -> None:
        self._folder, self._entry = _local_folder(lake, name), entry
        self._path = os.path.join(self._folder, entry.name)

    def take(self) -> str | None:
        with _guard(self._folder):
            for path in _lock_files(self._folder):
                if self._entry.excludes(parse(path)):
                    if _is_held(path):
                        with open(path) as file:
                            return file.read().strip() or "another process"
                    os.unlink(path)
            self._file = open(self._path, "x")  # noqa: SIM115 - the open file is the lock
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError):  # a full disk takes the words, not the lock
                os.write(self._file.fileno(), myself(self._entry).encode())
        return None

    def start(self) -> None:
        """An open file needs no renewal."""

    def ensure(self) -> None:
        """An open file stays locked."""

    def release(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._file.close()


@contextmanager
def _guard(folder: str) -> Iterator[None]:
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "guard"), "a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise from_os_error("write", folder, error) from error


def _lock_files(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(SUFFIX)]


def _is_held(path: str) -> bool:
    with suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
