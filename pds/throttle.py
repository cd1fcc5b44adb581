"""When a host may receive the next request. Pure: the clock is passed in.

A host that answers 429 is paused for as long as it says, or as the protocol's limits suggest. A
host that fails (it refuses connections, breaks off, is extremely slow, answers 5xx) is paused
longer each time. After a pause, one request is sent as a probe; only its answer lets the others
follow. A host that is paused again and again without any answer in between is given up for this
run.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping

from datasets.boundary.http_headers import retry_after_seconds
from pds.settings import PdsSettings

# The documented limit is 3,000 requests in 5 minutes. No pause is longer than that plus a tenth.
MAX_PAUSE = 330.0
_JITTER = 0.1
# The window for a second's requests is this much longer than a second: requests that were sent a
# second apart may arrive a little closer.
_WINDOW_STRETCH = 1.03
# Pauses of a failing host, as multiples of the first.
_FAILURE_PAUSES = (1, 6, 24)
# A host that answered nothing but errors this many times in a row is failing.
_ERRORS_IN_A_ROW = 3
# A larger RateLimit-Reset is an epoch second, a smaller one a number of seconds.
_EPOCH_FROM = 1e8


class SentRequest:
    """A request that was let through. `at` is corrected once it has really been sent."""

    def __init__(self, at: float) -> None:
        self.at = at


class RequestWindow:
    """At most `qps` requests in any second, as evenly as late requests allow."""

    def __init__(self, qps: float) -> None:
        capacity = max(1, math.floor(qps))
        self._sent = deque[SentRequest](maxlen=capacity)
        self._capacity = capacity
        self._seconds = capacity / qps * _WINDOW_STRETCH
        # After late requests, the next may follow at up to twice the rate, within the window.
        self._gap = self._seconds / capacity / 2

    def delay(self, now: float) -> float:
        """Seconds until the next request may be sent."""
        if not self._sent:
            return 0.0

        times = [request.at for request in self._sent]
        window_free = now
        if len(times) == self._capacity:
            window_free = min(times) + self._seconds

        return max(0.0, window_free - now, max(times) + self._gap - now)

    def add(self, now: float) -> SentRequest:
        request = SentRequest(now)
        self._sent.append(request)
        return request


class HostThrottle:
    """Throttles requests to one host.

    Times are seconds of a monotonic clock, except those named `epoch`.
    """

    def __init__(self, settings: PdsSettings, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._window = RequestWindow(settings.host_qps)

        self._paused_until = 0.0
        self._pauses = 0
        self._errors = 0

        # The gap that the host's own rate-limit headers ask for, and until when.
        self._slow_until = 0.0
        self._slow_gap = 0.0
        self._last_sent = -math.inf

        # Since a pause, no answer has come; and whether the probe is under way.
        self._probing = False
        self._probe_sent = False

        self.gave_up_status: str | None = None
        """The status for the host's remaining users, once the host is given up."""

    def delay(self, now: float) -> float:
        """Seconds until a request may be sent; infinite while everything waits for the probe."""
        if now < self._paused_until:
            return self._paused_until - now

        if self._probing and self._probe_sent:
            return math.inf

        slow = 0.0
        if now < self._slow_until:
            slow = self._last_sent + self._slow_gap - now
        return max(self._window.delay(now), slow)

    def pause_left(self, now: float) -> float:
        """Seconds until the current pause ends, 0 if there is none."""
        return max(0.0, self._paused_until - now)

    def record_sent(self, now: float) -> SentRequest:
        self._last_sent = now
        self._probe_sent = True
        return self._window.add(now)

    def cancel_request(self) -> None:
        """For a request that was let through and told nothing about this host."""
        self._probe_sent = False

    def record_answer(self, now: float, headers: Mapping[str, str], epoch: float) -> None:
        """For any answer that is neither a 429 nor a server error."""
        self._pauses = 0
        self._errors = 0
        self._probing = False
        self._probe_sent = False

        remaining = _number(headers, "ratelimit-remaining")
        reset = _seconds_to_reset(headers, epoch)
        if remaining is None or reset is None:
            return

        # Slow down if the remaining requests would not last until the reset.
        if remaining / self._settings.host_qps < reset:
            self._slow_until = now + reset
            self._slow_gap = reset / (remaining + 1)

    def record_rate_limit(self, now: float, headers: Mapping[str, str], epoch: float) -> None:
        """For a 429. Answers to requests that were under way then may only prolong the pause."""
        pause = retry_after_seconds(headers.get("retry-after"), epoch)
        if pause is None:
            pause = _seconds_to_reset(headers, epoch)
        if pause is None:
            pause = self._settings.limited_seconds

        pause = self._with_jitter(min(pause, MAX_PAUSE))
        self._pause(now, min(pause, MAX_PAUSE), "rate_limited")

    def record_failure(self, now: float, *, pause_at_once: bool) -> None:
        """For a failed request.

        `pause_at_once` if the host as a whole did not respond. Otherwise the failure may concern
        only this request, and several in a row are needed.
        """
        self._errors += 1
        if not (self._probing or pause_at_once or self._errors >= _ERRORS_IN_A_ROW):
            return

        factor = _FAILURE_PAUSES[min(self._pauses, len(_FAILURE_PAUSES) - 1)]
        pause = self._with_jitter(self._settings.trouble_seconds * factor)
        self._pause(now, pause, "unreachable")

    def _with_jitter(self, seconds: float) -> float:
        return seconds * (1 + _JITTER * self._rng.random())

    def _pause(self, now: float, seconds: float, status: str) -> None:
        if now >= self._paused_until:
            self._pauses += 1
            if self._pauses > self._settings.patience:
                self.gave_up_status = status

        self._paused_until = max(self._paused_until, now + seconds)
        self._errors = 0
        self._probing = True
        self._probe_sent = False


def _seconds_to_reset(headers: Mapping[str, str], epoch: float) -> float | None:
    """Seconds until the limit's window ends.

    Hosts send the epoch second of its end, the draft standard the number of seconds.
    """
    value = _number(headers, "ratelimit-reset")
    if value is None:
        return None

    seconds = max(0.0, value - epoch) if value > _EPOCH_FROM else value
    return min(seconds, MAX_PAUSE)


def _number(headers: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(headers.get(name, ""))
    except ValueError:
        return None

    return value if math.isfinite(value) and value >= 0 else None
