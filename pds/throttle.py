"""How a host is treated: when it may be asked next, when it rests, when it is left alone. Pure, the clock is given.

A host that answers 429 rests for as long as it says, or as the protocol's limits suggest. A host in
trouble (it refuses connections, breaks off, is slow to death, answers 5xx) rests a little longer
each time. After a rest one request goes alone; only its answer lets the others follow. A host that
rests again and again without one answer between is left for the next run.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping

from datasets.boundary.http_headers import retry_after_seconds
from pds.settings import PdsSettings

# Documented: 3,000 requests in 5 minutes; no wait is longer than that and a tenth of it.
MAX_REST = 330.0
_JITTER = 0.1
# So much longer than a second is the window in which a second's requests fit: requests that were
# sent a second apart may arrive a little closer.
_STRETCH = 1.03
# Rests of a host in trouble, as multiples of the first.
_TROUBLE_TIMES = (1, 6, 24)
# A host that has answered nothing but errors so many times in a row is in trouble.
_ERRORS_IN_A_ROW = 3


class SentRequest:
    """A request that was let go, and when."""

    def __init__(self, at: float) -> None:
        self.at = at


class RequestWindow:
    """At most `qps` requests in any second, as even as lateness allows."""

    def __init__(self, qps: float) -> None:
        self._window = deque[SentRequest](maxlen=max(1, math.floor(qps)))
        capacity = self._window.maxlen or 1
        self._seconds = capacity / qps * _STRETCH
        # Late requests are caught up with at up to twice the pace, within the window.
        self._gap = self._seconds / capacity / 2

    def delay(self, now: float) -> float:
        """Seconds until the next request may go."""
        if not self._window:
            return 0.0
        times = [sent.at for sent in self._window]
        free = min(times) + self._seconds if len(times) == self._window.maxlen else now
        return max(0.0, free - now, max(times) + self._gap - now)

    def sent(self, now: float) -> SentRequest:
        """What it returns may be dated later, when the request has really left."""
        self._window.append(SentRequest(now))
        return self._window[-1]


class HostThrottle:
    """One host's. Times are of a monotonic clock, in seconds, except where a name says epoch."""

    def __init__(self, settings: PdsSettings, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._window = RequestWindow(settings.host_qps)
        self._rest_until = 0.0
        self._slow_until, self._slow_gap, self._last_sent = 0.0, 0.0, -math.inf
        self._rests = 0
        self._errors = 0
        self._probing = self._probe_out = False
        self.gave_up: str | None = None
        """The status that the host's users are left with, once there is no use in asking on."""

    def delay(self, now: float) -> float:
        """Seconds until a request may go; infinite while only another one's answer can tell."""
        if now < self._rest_until:
            return self._rest_until - now
        if self._probing and self._probe_out:
            return math.inf
        slow = self._last_sent + self._slow_gap - now if now < self._slow_until else 0.0
        return max(self._window.delay(now), slow)

    def sent(self, now: float) -> SentRequest:
        self._last_sent = now
        self._probe_out = True
        return self._window.sent(now)

    def resting(self, now: float) -> float:
        """Seconds that the host still rests."""
        return max(0.0, self._rest_until - now)

    def answered(self, now: float, headers: Mapping[str, str], epoch: float) -> None:
        """An answer that is one, whatever it says about the user."""
        self._rests = self._errors = 0
        self._probing = self._probe_out = False
        left, reset = _number(headers, "ratelimit-remaining"), _reset_in(headers, epoch)
        if left is not None and reset is not None and left / self._settings.host_qps < reset:
            # What it has left for us does not last at our pace.
            self._slow_until = now + reset
            self._slow_gap = reset / (left + 1)

    def limited(self, now: float, headers: Mapping[str, str], epoch: float) -> None:
        """A 429. Those that were under way when the host began to rest say nothing new but when it may end."""
        said = retry_after_seconds(headers.get("retry-after"), epoch)
        if said is None:
            said = _reset_in(headers, epoch)
        rest = min(said if said is not None else self._settings.limited_seconds, MAX_REST)
        self._rest(now, min(rest * (1 + _JITTER * self._rng.random()), MAX_REST), "rate_limited")

    def withdrawn(self) -> None:
        """The request that was let go was not made after all."""
        self._probe_out = False

    def failed(self, now: float, *, at_once: bool) -> None:
        """`at_once`: there was no host to speak of; else it is the error of one request, so far."""
        self._errors += 1
        if self._probing or at_once or self._errors >= _ERRORS_IN_A_ROW:
            rest = (
                self._settings.trouble_seconds
                * _TROUBLE_TIMES[min(self._rests, len(_TROUBLE_TIMES) - 1)]
            )
            self._rest(now, rest * (1 + _JITTER * self._rng.random()), "unreachable")

    def _rest(self, now: float, seconds: float, status: str) -> None:
        if now >= self._rest_until:
            self._rests += 1
            if self._rests > self._settings.patience:
                self.gave_up = status
        self._rest_until = max(self._rest_until, now + seconds)
        self._errors = 0
        self._probing, self._probe_out = True, False


def _reset_in(headers: Mapping[str, str], epoch: float) -> float | None:
    """Seconds until the limit's window ends; hosts give the epoch second, the draft standard the difference."""
    value = _number(headers, "ratelimit-reset")
    if value is None:
        return None
    return min(max(0.0, value - epoch if value > 1e8 else value), MAX_REST)


def _number(headers: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(headers.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
