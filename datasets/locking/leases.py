"""Leases: locks on S3, where no open file tells that its holder has died.

A lease is an object that its holder writes anew every few seconds, and that counts for nothing when
it is LEASE_SECONDS old by the clock of the store. To take one:

1. Write an object of one's own, then list. S3 lists what was written before, so of two who try at
   once at least one sees the other. Where another lease counts, take back one's own.
2. A lease that does not count is buried: overwritten with an empty object, on condition that it is
   still what was listed (`If-Match`), and marked under a name of its own. So of a holder that renews
   late and one that takes over, the store lets one go first; the other is refused, and knows.

Before each renewal the holder looks at what is there, and renews on the same condition. An empty
object, or none, means that the lease is lost. It stays lost after the other has released its own:
what the holder has read of the lake is out of date.

Where the store keeps no conditions, the holder lists after each renewal, which may have overwritten
the empty object, but not the mark: a mark means that the lease is lost, and so does another lease
that counts, if its own may have run out.

What was buried stays for a day, so that a late request cannot bring it to life.

A holder is sure of its lease for half its length. Its clock counts the time that the machine slept,
and is not trusted either: a virtual machine that was paused has no such clock, but its wall clock is
set again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from datasets.boundary.system_clock import uptime
from datasets.errors import BackfillError, ConfigError, RetryableError
from datasets.locking.entries import SUFFIX, Entry, myself, parse
from datasets.locking.lease_store import LeaseStore, Stored

# A lease that was not renewed for so long counts for nothing: what a killed run can block the next.
LEASE_SECONDS = 30.0
RENEW_SECONDS = LEASE_SECONDS / 5
# From this age on a holder is not sure of its lease. The rest is for clocks that count whole seconds.
SURE_SECONDS = LEASE_SECONDS / 2
# How long a holder waits for an S3 that does not answer.
_PATIENCE_SECONDS = 300.0
_BURIED_SECONDS = 86_400.0
_MARK = ".buried"
# Requests of one's own that were late, and that a renewal may meet.
_RENEWALS = 3


@dataclass(frozen=True)
class Reading:
    """Of two clocks, in seconds: `counted` since the machine started, sleep included; `wall` may be set."""

    counted: float
    wall: float

    def since(self, earlier: Reading) -> float:
        """Seconds that have passed at the least, as far as either clock knows."""
        return max(self.counted - earlier.counted, self.wall - earlier.wall)


def read_clocks() -> Reading:
    return Reading(uptime(), time.time())


class Lease:
    """An object that a thread of the holder's renews, from `start` on."""

    def __init__(
        self,
        store: LeaseStore,
        folder: str,
        name: str,
        entry: Entry,
        clocks: Callable[[], Reading] = read_clocks,
    ) -> None:
        self._store, self._folder, self._name, self._entry = store, folder, name, entry
        self._clocks = clocks
        self.alive = False
        self._seen: dict[str, float] = {}
        self._renewing = threading.Lock()
        self._stop = threading.Event()
        self._lost = False
        self._renewed = clocks()

    @property
    def _path(self) -> str:
        return f"{self._folder}/{self._entry.name}"

    def take(self) -> str | None:
        """None, or what the holder said of itself; it may be a dead one's unless `alive`."""
        self._entry = replace(self._entry, token=secrets.token_hex(4))
        self._renewed = self._clocks()
        body = self._body()
        self._store.put(self._path, body)
        self._conditional = self._store.keeps_conditions(self._path, body)
        while True:
            there = self._store.list(self._folder)
            own = there.get(self._path)
            living, dead = self._others(there)
            if own is None or not own.size or living:
                self._store.delete(self._path)
                # One that was renewed since it was first seen has a living holder.
                self.alive = any(
                    at > self._seen.setdefault(path, at) for path, at in living.items()
                )
                return self._holder(next(iter(living), self._path))
            # One that could not be buried was renewed, or is gone: look again.
            if all(self._bury(path, stored) for path, stored in dead.items()):
                self._sweep(there, own.at)
                return None

    def start(self) -> None:
        threading.Thread(target=self._renew_until_released, name="lease", daemon=True).start()

    def ensure(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._lost and self._is_unsure(self._clocks()):
            try:
                self._renew()
            except BackfillError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(1.0)
        if self._lost:
            raise ConfigError(
                f"another run has taken over {self._name} while this one could not reach S3; "
                "what is written is kept; run the same command again when the other has ended"
            )

    def release(self) -> None:
        self._stop.set()
        with self._renewing, suppress(BackfillError):  # one that stays runs out
            if not self._lost:
                self._store.delete(self._path)

    def _body(self) -> bytes:
        """New each time, so that each renewal has another ETag."""
        return f"{myself(self._entry)}\n{secrets.token_hex(8)}".encode()

    def _others(self, there: dict[str, Stored]) -> tuple[dict[str, float], dict[str, Stored]]:
        """The leases that exclude this one: those that count, with their times, and those that do not."""
        now = there[self._path].at if self._path in there else 0.0
        others = {
            path: stored
            for path, stored in _leases(there).items()
            if self._entry.excludes(parse(path))
        }
        living = {
            path: stored.at for path, stored in others.items() if now - stored.at < LEASE_SECONDS
        }
        return living, {path: stored for path, stored in others.items() if path not in living}

    def _bury(self, path: str, stored: Stored) -> bool:
        if not self._store.put(path, b"", stored.etag):
            return False
        self._store.put(f"{path}{_MARK}", b"")
        return True

    def _sweep(self, there: dict[str, Stored], now: float) -> None:
        for path, stored in there.items():
            if not stored.size and now - stored.at > _BURIED_SECONDS:
                self._store.delete(path)

    def _holder(self, path: str) -> str:
        with suppress(ConfigError):
            found = self._store.get(path)
            if found and found[0]:
                return found[0].decode().partition("\n")[0]
        return "another process"

    def _is_unsure(self, now: Reading) -> bool:
        return now.since(self._renewed) >= SURE_SECONDS

    def _renew_until_released(self) -> None:
        while not self._stop.wait(RENEW_SECONDS) and not self._lost:
            with suppress(BackfillError):  # `ensure` tells
                self._renew()

    def _renew(self) -> None:
        """One that may have run out is still ours if nobody has buried it."""
        with self._renewing:
            for _ in range(_RENEWALS):
                if self._lost or self._stop.is_set():
                    return
                started = self._clocks()
                found = self._store.get(self._path)
                if found is None or not found[0]:
                    self._lost = True
                elif self._store.put(self._path, self._body(), found[1]):
                    break
            else:
                raise RetryableError(
                    f"S3 refuses to renew the lease of {self._name}; run the same command again"
                )
            if not self._conditional and self._was_taken(unsure=self._is_unsure(started)):
                self._lost = True
                self._store.delete(self._path)
                return
            self._renewed = started

    def _was_taken(self, *, unsure: bool) -> bool:
        there = self._store.list(self._folder)
        return f"{self._path}{_MARK}" in there or (unsure and bool(self._others(there)[0]))


def living(store: LeaseStore, folder: str) -> list[Entry]:
    """The leases that count, for a caller that has one of them."""
    leases = _leases(store.list(folder))
    now = max((stored.at for stored in leases.values()), default=0.0)
    return [parse(path) for path, stored in leases.items() if now - stored.at < LEASE_SECONDS]


def _leases(there: dict[str, Stored]) -> dict[str, Stored]:
    return {path: stored for path, stored in there.items() if path.endswith(SUFFIX) and stored.size}
