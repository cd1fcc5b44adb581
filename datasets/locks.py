"""Who may write what: one writer of an integration's labels of a date, on any number of machines.

A lock is for a name (an integration), a role and a range of partition dates; two of one name and
role exclude each other where their dates overlap. So runs of one integration over disjoint dates go
side by side. A run takes `run` in the driver, for as long as it selects and labels, and `buffer` in
the process that writes, which may outlive a killed driver by a moment. `recover` is held while what
dead runs have left is taken up.

In a folder, a lock is an open file and dies with its process, however that ends. On S3 it is a
lease: an object that its holder writes anew every few seconds, and that counts for nothing when it
is LEASE_SECONDS old by the clock of S3. Who wants one writes its own object, then lists: where there
is another one that counts, it takes its own back. S3 lists what was written before, so of two who
try at once at least one sees the other. A holder that could not renew in time asks before it writes
on (`ensure`) whether it still is the holder.
"""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Literal, Protocol

from datasets.errors import BackfillError, ConfigError, FileGone, from_os_error
from datasets.lake import Lake

Role = Literal["run", "buffer", "recover"]
# Inclusive partition dates, YYYY-MM-DD.
Dates = tuple[str, str]
ALL_DATES: Dates = ("0001-01-01", "9999-12-31")
NOBODY: Mapping[str, Dates] = MappingProxyType({})

# A lease that was not renewed for so long counts for nothing: what a killed run can block the next.
LEASE_SECONDS = 30.0
_RENEW_SECONDS = LEASE_SECONDS / 5
# From this age on a holder is not sure of its lease. The rest is for clocks that count whole seconds.
_SURE_SECONDS = LEASE_SECONDS / 2
# How long a holder waits for an S3 that does not answer.
_PATIENCE_SECONDS = 300.0
_SUFFIX = ".lock"


@dataclass(frozen=True)
class _Entry:
    """One lock's file or object: who wants or holds what. The token is new for each attempt."""

    role: str
    dates: Dates
    run_id: str
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def name(self) -> str:
        return f"{self.role}.{self.dates[0]}.{self.dates[1]}.{self.run_id}.{self.token}{_SUFFIX}"

    def excludes(self, other: _Entry) -> bool:
        return self.role == other.role and overlap(self.dates, other.dates) and self.token != other.token


def _parse(path: str) -> _Entry:
    role, start, end, run_id, token = path.rpartition("/")[2].removesuffix(_SUFFIX).split(".")
    return _Entry(role, (start, end), run_id, token)


class _Held(Protocol):
    """`take` gives None, or what the holder said of itself; it may be a dead one's unless `alive`."""

    alive: bool

    def take(self) -> str | None: ...

    def ensure(self) -> None: ...

    def release(self) -> None: ...


class Lock:
    """Held from construction to `release`, or to the end of the process.

    Waits up to `wait` seconds, on S3 also until it is sure that the holder is alive; then raises
    ConfigError with what the holder said of itself.
    """

    def __init__(
        self, lake: Lake, name: str, role: Role, run_id: str, wait: float = 0.0, dates: Dates = ALL_DATES
    ) -> None:
        entry = _Entry(role, dates, run_id)
        self._held: _Held = _File(lake, name, entry) if lake.is_local else _Lease(lake, name, entry)
        deadline = time.monotonic() + wait
        while (holder := self._held.take()) is not None:
            if time.monotonic() >= deadline and self._held.alive:
                raise ConfigError(f"{name} is being written by {holder}; wait for it to end, or stop it")
            time.sleep(0.1 if lake.is_local else random.uniform(1, 3))  # noqa: S311 - only lest two go in step

    def ensure(self) -> None:
        """Raises ConfigError where the lock was lost. To be called before writing what two must not write."""
        self._held.ensure()

    def release(self) -> None:
        self._held.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def live_runs(lake: Lake, name: str, besides: str = "") -> dict[str, Dates]:
    """The runs `besides` one that label or whose buffer may still write, and which dates.

    For a caller that holds a lock of the same name.
    """
    if lake.is_local:
        folder = _local_folder(lake, name)
        with _guard(folder):
            entries = [_parse(path) for path in _lock_files(folder) if _is_held(path)]
    else:
        leases = lake.modified(_folder(name), _SUFFIX)
        now = max(leases.values(), default=0.0)
        entries = [_parse(path) for path, at in leases.items() if now - at < LEASE_SECONDS]
    return {entry.run_id: entry.dates for entry in entries if entry.role != "recover" and entry.run_id != besides}


def overlap(one: Dates, other: Dates) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _folder(name: str) -> str:
    return f".locks/{name}"


def _local_folder(lake: Lake, name: str) -> str:
    return os.path.join(os.path.abspath(lake.root), _folder(name))


def _myself(entry: _Entry) -> str:
    return f"run {entry.run_id} (process {os.getpid()} on {os.uname().nodename})"


class _File:
    """A file that its holder keeps locked. Whoever looks at the files of a name holds the guard meanwhile."""

    alive = True

    def __init__(self, lake: Lake, name: str, entry: _Entry) -> None:
        self._folder, self._entry = _local_folder(lake, name), entry
        self._path = os.path.join(self._folder, entry.name)

    def take(self) -> str | None:
        with _guard(self._folder):
            for path in _lock_files(self._folder):
                if self._entry.excludes(_parse(path)):
                    if _is_held(path):
                        with open(path) as file:
                            return file.read().strip() or "another process"
                    os.unlink(path)
            self._file = open(self._path, "x")  # noqa: SIM115 - the open file is the lock
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError):  # a full disk takes the words, not the lock
                os.write(self._file.fileno(), _myself(self._entry).encode())
        return None

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
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(_SUFFIX)]


def _is_held(path: str) -> bool:
    with suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class _Lease:
    """An object that a thread of the holder's renews."""

    def __init__(self, lake: Lake, name: str, entry: _Entry) -> None:
        self._lake, self._name, self._entry = replace(lake, patient=False), name, entry
        self.alive = False
        self._seen: dict[str, float] = {}
        self._renewing = threading.Lock()
        self._stop = threading.Event()
        self._lost = False

    @property
    def _path(self) -> str:
        return f"{_folder(self._name)}/{self._entry.name}"

    def take(self) -> str | None:
        self._entry = replace(self._entry, token=secrets.token_hex(4))
        started = time.monotonic()
        self._lake.write_bytes(self._path, _myself(self._entry).encode())
        count, dead = self._others()
        if count:
            self._lake.delete(self._path)
            # One that was renewed since it was first seen has a living holder.
            self.alive = any(at > self._seen.setdefault(path, at) for path, at in count.items())
            return self._holder(next(iter(count)))
        for path in dead:
            self._lake.delete(path)
        self._renewed = started
        self._thread = threading.Thread(target=self._renew_until_released, name="lease", daemon=True)
        self._thread.start()
        return None

    def _others(self) -> tuple[dict[str, float], list[str]]:
        """The leases that exclude this one: those that count, with their times, and those that do not."""
        leases = self._lake.modified(_folder(self._name), _SUFFIX)
        now = leases.get(self._path, 0.0)
        others = {path: at for path, at in leases.items() if self._entry.excludes(_parse(path))}
        count = {path: at for path, at in others.items() if now - at < LEASE_SECONDS}
        return count, [path for path in others if path not in count]

    def _holder(self, path: str) -> str:
        with suppress(FileGone, ConfigError):
            return self._lake.read_bytes(path).decode()
        return "another process"

    def _renew_until_released(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS) and not self._lost:
            with suppress(BackfillError):  # `ensure` tells
                self._renew()

    def _renew(self) -> None:
        """One that may have run out is still ours if nobody has removed it, and nobody else has one."""
        with self._renewing:
            if self._lost or self._stop.is_set():
                return
            started = time.monotonic()
            unsure = started - self._renewed >= _SURE_SECONDS
            if unsure and not self._lake.exists(self._path):
                self._lost = True
                return
            self._lake.write_bytes(self._path, _myself(self._entry).encode())
            if unsure and self._others()[0]:
                self._lost = True
                self._lake.delete(self._path)
                return
            self._renewed = started

    def ensure(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._lost and time.monotonic() - self._renewed >= _SURE_SECONDS:
            try:
                self._renew()
            except BackfillError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(1.0)
        if self._lost:
            raise ConfigError(
                f"another run has taken over {self._name} while this one could not reach S3; "
                "what is labelled is kept; run the same command again when the other has ended"
            )

    def release(self) -> None:
        self._stop.set()
        with self._renewing, suppress(BackfillError):  # one that stays runs out
            if not self._lost:
                self._lake.delete(self._path)
