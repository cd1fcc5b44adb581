"""The jobs of one host, and their turns: nothing else sends requests to it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from datasets.boundary.http_failures import CONNECTION, SLOW, status_kind
from datasets.errors import RetryableError
from pds.client import Response
from pds.jobs import Job
from pds.throttle import HostThrottle, SentRequest

# Failures that concern the host as a whole, not only the one request.
_HOST_FAILURES = (CONNECTION, SLOW)


class RateLimited(Exception):
    """The host answered 429: the job returns to the head of its queue."""


class HostGivenUp(Exception):
    """The host receives no more requests in this run."""


@dataclass
class HostQueue:
    """`jobs` come with the number of earlier attempts; `requests` counts those under way."""

    origin: str
    throttle: HostThrottle
    jobs: deque[tuple[Job, int]] = field(default_factory=deque)
    workers: int = 0
    requests: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _throttle_changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_idle(self) -> bool:
        return not self.workers and not self.requests

    async def wait_for_turn(self) -> SentRequest:
        """Waits until a request may be sent, first come, first served. Raises HostGivenUp."""
        async with self._turn:
            while True:
                if self.throttle.gave_up_status:
                    raise HostGivenUp

                delay = self.throttle.delay(time.monotonic())
                if delay <= 0:
                    return self.throttle.record_sent(time.monotonic())

                self._throttle_changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay if delay < float("inf") else None):
                        await self._throttle_changed.wait()

    def record_response(self, response: Response) -> None:
        """Raises RateLimited, or RetryableError for a server error."""
        now = time.monotonic()
        epoch = time.time()
        headers = response.headers

        asked_to_wait = response.status == 503 and "retry-after" in headers
        if response.status == 429 or asked_to_wait:
            self.throttle.record_rate_limit(now, headers, epoch)
            self._throttle_changed.set()
            raise RateLimited

        if response.status >= 500:
            self.throttle.record_failure(now, pause_at_once=False)
            self._throttle_changed.set()
            raise RetryableError(
                f"{self.origin} answered with {response.status}",
                kind=status_kind(response.status),
            )

        self.throttle.record_answer(now, headers, epoch)
        self._throttle_changed.set()

    def record_failure(self, kind: str) -> None:
        """`kind` is one of datasets/boundary/http_failures.py."""
        self.throttle.record_failure(time.monotonic(), pause_at_once=kind in _HOST_FAILURES)
        self._throttle_changed.set()

    def cancel_request(self) -> None:
        """For a request that was let through and told nothing about this host."""
        self.throttle.cancel_request()
        self._throttle_changed.set()
