"""The rate limit of one credential at one endpoint: who may send when.

Sending times are handed out as leases of several slots, evenly spaced. A request counts from when it
has arrived, and there is never more than the quota in any second of that. When it arrived is not seen
from here: not before it left, and the later, the later its answer came.

The state is a small file behind a lock, and the actor in front of it serves the cluster. So runs
that share a machine share the quota even where each has a Ray of its own, and a limiter that is
killed comes back where it was.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from actors.remote.clock import Clock
from actors.remote.protocol import LONGEST_PAUSE, Quota
from actors.remote.shared_actors import shared_actor
from datasets.errors import from_os_error
from datasets.queues import digest
from datasets.scratch import scratch_folder

# A request counts from so many seconds after it left, because the way to the other side takes one longer
# than another; from less if its answer came so soon that it can't have been under way for long.
MARGIN = 0.02
# A lease holds slots of the next so many seconds; a pause reaches everybody after that time.
HORIZON = 0.25
# Slots of so many seconds that nobody took are made up for, at twice the pace and within the quota:
# the first request is alone until it is known whether the key is good, and a machine may falter.
_CATCH_UP = 0.5
# After a 429 without Retry-After: so many seconds, doubled each time, at most the second number.
_BACKOFF, _BACKOFF_MAX = 0.2, 60.0
# A 429 within this time of the one before lowers the rate; those of requests that were on their way
# already when the pause began are one with it.
_REPEATED, _SAME = 60.0, 0.5
# Additive increase by success, multiplicative decrease by 429: of a hundred, five refused by chance
# leave two thirds of the quota in use, and an endpoint that allows less than it says finds its level.
_DECREASE, _INCREASE, _LOWEST = 0.7, 0.01, 0.02
# Where it isn't known what was sent in the last second, that one is left out.
_UNKNOWN = 1.0
# Answers still come where the last is not older than this, or than the quota takes for so many requests.
_STILL, _REQUESTS = 60.0, 3


@dataclass(frozen=True)
class Lease:
    """Times to send at, by the monotonic clock of the machine `boot`, which reads `now`; or seconds to wait.

    Of these, the next `pause` seconds are those for which the endpoint asked not to be called.
    """

    slots: tuple[float, ...]
    now: float
    boot: str
    wait: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class Activity:
    """Of a run's calls so far, `answered` have got an answer, the last of them `ago` seconds ago.

    `steady` is whether they still come as the quota lets them. The endpoint has asked not to be called for `pause`
    seconds.
    """

    answered: int = 0
    ago: float = math.inf
    steady: bool = False
    pause: float = 0.0


@dataclass
class _State:
    """Times are of the monotonic clock of `boot`, which read `written` when they were written down.

    A pause ends by the uptime, so that a machine that slept has waited, too. Its end by the wall clock and its length
    are for a restart of the machine, which it outlives by these.
    `rate` is the share of the quota in use, 1 when all is well.
    """

    boot: str = ""
    written: float = 0.0
    next_request: float = 0.0
    next_token: float = 0.0
    tokens_per_minute: float = 0.0  # of the quota that `next_token` was reckoned by
    paused_until: float = 0.0
    pause_ends: float = 0.0
    pause_seconds: float = 0.0
    rate: float = 1.0
    throttled_at: float = 0.0
    counted: list[tuple[float, float]] = field(
        default_factory=list
    )  # when each of the last slots counts from
    throttles: int = 0  # without a success in between
    reports: dict[str, dict[str, float]] = field(default_factory=dict)


def limiter_name(endpoint: str, credential: str) -> str:
    """Tells credentials apart without telling what they are."""
    return f"limiter-{digest([endpoint, credential])}"


class Limiter:
    """A plain class over a file; `ray.remote` makes it the cluster's."""

    def __init__(self, name: str, folder: str | None = None, clock: Clock | None = None) -> None:
        self._path = os.path.join(folder or scratch_folder("limits"), name)
        self._clock = clock or Clock()
        self._runs: set[str] = set()
        # When the last answer of a run was reported, and the seconds of the quota that a request takes. They are for
        # `activity`, and lost with the process.
        self._answers: dict[str, float] = {}
        self._each = 0.0

    def join(self, run_id: str) -> None:
        self._runs.add(run_id)

    def leave(self, run_id: str) -> int:
        """How many runs still use this limiter."""
        self._runs.discard(run_id)
        return len(self._runs)

    def lease(
        self,
        quota: Quota,
        count: int,
        tokens: float = 0.0,
        *,
        succeeded: int = 0,
        used: Sequence[tuple[float, float | None]] = (),
    ) -> Lease:
        """At most `count` slots within the horizon, for requests of about `tokens` each.

        Since the last call `succeeded` answers have come, and each of `used` is a slot and the
        time that its request counts from, as far as that is known; None where none has left.
        """
        with self._state() as (state, now):
            if succeeded:
                state.throttles = 0
                state.rate = min(1.0, state.rate + _INCREASE * succeeded)
            spacing = 1 / (quota.requests * state.rate)
            token_seconds = (
                60 * (1 + MARGIN) / (quota.tokens_per_minute * state.rate)
                if quota.tokens_per_minute
                else 0.0
            )
            if count:
                self._each = max(spacing, tokens * token_seconds)
            # No more than the quota in any second. A request that left late moves the one a quota
            # after it, and that one only: being late costs no slot.
            window = max(1, int(quota.requests))
            period = max(1.0, window / quota.requests)
            state.next_request -= _count_again(state, dict(used), now, period) * spacing
            if state.counted:
                # Whoever had a slower quota before was told of a later time than this one has to wait for.
                latest = max(now, *(slot for _, slot in state.counted))
                state.next_request = min(state.next_request, latest + spacing)
            _owe_at(state, quota, now)
            if state.next_request < now - _CATCH_UP:
                state.next_request = now
            paused_until = now + state.paused_until - self._clock.uptime()
            if paused_until <= now + HORIZON:
                state.next_request = max(state.next_request, paused_until)
            slots: list[float] = []
            while True:
                slot = max(now, state.next_request, state.next_token, paused_until)
                if state.counted:
                    slot = max(slot, state.counted[-1][0] - MARGIN + spacing / 2)
                if len(state.counted) >= window:
                    slot = max(slot, state.counted[-window][0] + period)
                if len(slots) == count or slot > now + HORIZON:
                    break
                slots.append(slot)
                state.counted.append((slot + MARGIN, slot))
                state.next_request += spacing
                state.next_token = max(state.next_token, slot) + tokens * token_seconds
            wait, pause = (0.0, 0.0) if slots else (slot - now, max(0.0, paused_until - now))
            return Lease(tuple(slots), now, self._clock.boot, wait, pause)

    def settle(self, quota: Quota, tokens: float) -> None:
        """A request used so many tokens more (less, if negative) than its lease said."""
        if quota.tokens_per_minute:
            with self._state() as (state, now):
                _owe_at(state, quota, now)
                state.next_token += (
                    tokens * 60 * (1 + MARGIN) / (quota.tokens_per_minute * state.rate)
                )
                # An answer that says it took a billion tokens must not stop everybody for good.
                state.next_token = min(state.next_token, now + LONGEST_PAUSE)

    def throttled(self, retry_after: float | None) -> int:
        """The endpoint said 429: a pause for everybody. How many pauses there were without a success in between."""
        with self._state() as (state, now):
            same = now - state.throttled_at < _SAME
            if not same:
                if now - state.throttled_at < _REPEATED:
                    state.rate = max(_LOWEST, state.rate * _DECREASE)
                state.throttles += 1
                state.throttled_at = now
            if retry_after is None:
                backoff = min(_BACKOFF_MAX, _BACKOFF * 2 ** (state.throttles - 1))
                retry_after = backoff * random.uniform(0.5, 1)  # noqa: S311 - only for spreading
                retry_after = 0.0 if same else retry_after
            until = self._clock.uptime() + retry_after
            if until > state.paused_until:
                state.paused_until = until
                state.pause_ends, state.pause_seconds = (
                    self._clock.wall() + retry_after,
                    retry_after,
                )
            return state.throttles

    def report(self, run_id: str, integration: str, counts: Counter[str]) -> None:
        """Adds to what `stats` tells about a run."""
        with self._state() as (state, now):
            key = f"{run_id} {integration}"
            state.reports[key] = dict(Counter(state.reports.get(key, {})) + counts)
            for old in sorted(state.reports)[:-50]:
                del state.reports[old]
        if _answered(counts):
            self._answers[key] = now

    def stats(self, run_id: str, integration: str) -> dict[str, float]:
        """What was reported of a run, and the share of the quota that is in use now."""
        with self._state() as (state, _):
            return {
                **state.reports.get(f"{run_id} {integration}", {}),
                "rate": round(state.rate, 2),
            }

    def activity(self, run_id: str, integration: str) -> Activity:
        """How it goes, for whoever wonders why nothing is labelled."""
        key = f"{run_id} {integration}"
        with self._state() as (state, now):
            answered = _answered(state.reports.get(key, {}))
            pause = max(0.0, state.paused_until - self._clock.uptime())
        ago = now - self._answers.get(key, -math.inf)
        return Activity(answered, ago, ago <= max(_STILL, _REQUESTS * self._each), pause)

    @contextmanager
    def _state(self) -> Iterator[tuple[_State, float]]:
        """The state and the time now. A kill at any moment leaves the old state or the new.

        Not synced: it is for the death of processes. After a machine's, there is nothing to share but a pause.
        """
        try:
            with open(f"{self._path}.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                now = self._clock.monotonic()
                state = self._read(now)
                yield state, now
                state.boot, state.written = self._clock.boot, now
                with open(f"{self._path}.new", "w") as file:
                    file.write(json.dumps(asdict(state)))
                os.replace(f"{self._path}.new", self._path)
        except OSError as error:
            raise from_os_error("write", self._path, error) from error

    def _read(self, now: float) -> _State:
        try:
            with open(self._path) as file:
                state = _State(**json.load(file))
            if state.boot == self._clock.boot and state.written <= now:
                return state
            # Of another start of the machine, or of a version that did not write which: its times mean nothing now.
            pause = min(max(0.0, state.pause_ends - self._clock.wall()), state.pause_seconds)
        except FileNotFoundError:
            return _State()
        except (ValueError, TypeError):
            return _State(next_request=now + _UNKNOWN)
        fresh = _State(next_request=now + _UNKNOWN, paused_until=self._clock.uptime() + pause)
        kept = ("pause_ends", "pause_seconds", "rate", "reports")
        return replace(fresh, **{name: getattr(state, name) for name in kept})


def _count_again(
    state: _State, known: Mapping[float, float | None], now: float, period: float
) -> int:
    """Of the slots handed out, those of the last `period` seconds by what is `known` of them. How many none left in.

    The latest stays. One that is told of when it was let go already has left late, and counts again. A told time is
    in the past; another would be of another machine's clock.
    """
    since = now - period
    told = {
        slot: counts
        for slot, counts in known.items()
        if counts is not None and since < counts <= now + MARGIN
    }
    every = {**{slot: before for before, slot in state.counted}, **told}
    counted = sorted(
        (counts, slot)
        for slot, before in every.items()
        if (counts := known.get(slot, before)) is not None
    )
    unused = sum(slot in known and known[slot] is None for _, slot in state.counted)
    state.counted = [entry for entry in counted if entry[0] > since] or counted[-1:]
    return unused


def _owe_at(state: _State, quota: Quota, now: float) -> None:
    """Where the quota of tokens is another than before, what is owed of them takes another time."""
    if quota.tokens_per_minute:
        before, state.tokens_per_minute = state.tokens_per_minute, quota.tokens_per_minute
        if before:
            owed = max(0.0, state.next_token - now)
            state.next_token = now + min(LONGEST_PAUSE, owed * before / quota.tokens_per_minute)


def _answered(counts: Mapping[str, float]) -> int:
    """Calls that got an answer, though it may be a refusal."""
    return int(
        counts.get("calls", 0) - sum(n for name, n in counts.items() if name.startswith("retry_"))
    )


def shared_limiter(name: str) -> Any:
    """The cluster's one actor of this name. It belongs to no run; the last one to leave it ends it."""
    return shared_actor(Limiter, name, name)


def leave_limiter(limiter: Any, run_id: str) -> None:
    import ray

    if not ray.get(limiter.leave.remote(run_id)):
        ray.kill(limiter)
