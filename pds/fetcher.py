"""The fetcher of some hosts: it alone asks them, so it alone can keep their limits.

Each host has one fetcher, an fetcher has many hosts: a host costs no process, and there are thousands
of hosts with one user. A host's jobs wait in its own queue, so a host that rests or is slow holds
up nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from datasets.errors import RetryableError
from datasets.lake import Lake
from pds import xrpc
from pds.client import MAX_RESPONSE_BYTES, Client, Response, Sink
from pds.errors import RejectedRepo
from pds.identity import read_document
from pds.jobs import (
    Fetch,
    Job,
    JobResult,
    ListRepos,
    Resolve,
    Resolved,
    Staged,
    Unchanged,
    Unfinished,
)
from pds.repo.decode import DecodedGroup, Spooled
from pds.repo.decode_queue import DecodeQueue
from pds.repo.spool import ByteBudget, Download, Spool
from pds.settings import PdsSettings
from pds.throttle import HostThrottle, SentRequest

# Names of hosts are resolved in threads, and a dead name server takes its time.
_RESOLVER_THREADS = 32


class _Limited(Exception):
    """The host said 429: the job goes back to its place in the queue."""


class _GaveUp(Exception):
    """The host is left alone for this run."""


@dataclass
class _Host:
    origin: str
    throttle: HostThrottle
    queue: deque[tuple[Job, int]] = field(default_factory=deque)
    workers: int = 0
    asking: int = 0
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)
    verdict: asyncio.Event = field(default_factory=asyncio.Event)

    async def admit(self) -> SentRequest:
        """Waits for the host's turn, in the order of coming."""
        async with self.gate:
            while (delay := self.throttle.delay(time.monotonic())) > 0 or self.throttle.gave_up:
                if self.throttle.gave_up:
                    raise _GaveUp
                self.verdict.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay if delay < float("inf") else None):
                        await self.verdict.wait()
            return self.throttle.sent(time.monotonic())

    def raise_for_error(self, verdict: Callable[..., None], *values: Any, **named: Any) -> None:
        verdict(*values, **named)
        self.verdict.set()


class HostFetcher:
    """`trusted` are origins that the user named. Without a lake there is nothing to fetch, only to ask."""

    def __init__(
        self,
        settings: PdsSettings,
        trusted: Iterable[str],
        *,
        insecure: bool,
        lake: Lake | None = None,
        run_id: str = "",
        spool_folder: str = "",
    ) -> None:
        self._settings, self._insecure = settings, insecure
        self._trusted, self._lake, self._run_id = tuple(trusted), lake, run_id
        self._client: Client | None = None
        self._decoding: DecodeQueue | None = None
        self._spool = Spool(spool_folder) if spool_folder else None
        self._budget = ByteBudget(settings.spool_bytes)
        self._tickets: dict[str, int] = {}
        self._hosts: dict[str, _Host] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._outcomes: list[JobResult] = []
        self._news = asyncio.Event()
        self._broken: BaseException | None = None

    async def submit(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            host = self._host(job.origin)
            host.queue.append((job, 0))
            if host.workers < self._settings.in_flight:
                host.workers += 1
                task = asyncio.create_task(self._work(host))
                self._workers.add(task)
                task.add_done_callback(self._workers.discard)

    async def take(self, seconds: float) -> list[JobResult]:
        """What has come of jobs, as soon as something has, and at the latest after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        if self._broken is not None:
            raise self._broken
        self._news.clear()
        results, self._outcomes = self._outcomes, []
        return results

    async def resting(self) -> dict[str, float]:
        """Hosts with work that rest now, and for how many seconds yet."""
        now = time.monotonic()
        rests = {
            origin: host.throttle.resting(now)
            for origin, host in self._hosts.items()
            if host.workers
        }
        return {origin: seconds for origin, seconds in rests.items() if seconds > 0}

    async def close(self) -> None:
        for task in self._workers:
            task.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._client:
            await self._client.close()
        if self._spool:
            self._spool.remove()

    def _let_go(self, hosts: Iterable[_Host]) -> None:
        """Keeps no connection to a host without work."""
        for host in hosts:
            if not host.workers and not host.asking and self._client:
                self._client.forget(host.origin)

    def _host(self, origin: str) -> _Host:
        if origin not in self._hosts:
            self._hosts[origin] = _Host(origin, HostThrottle(self._settings))
        return self._hosts[origin]

    def _tell(self, result: JobResult) -> None:
        self._outcomes.append(result)
        self._news.set()

    def _break(self, error: BaseException) -> None:
        self._broken = self._broken or error
        self._news.set()

    async def _work(self, host: _Host) -> None:
        try:
            while host.queue:
                await self._work_on(host, *host.queue.popleft())
        except Exception as error:  # noqa: BLE001 - the driver must hear of it, and this is no place to raise
            self._break(error)
        finally:
            host.workers -= 1
        self._let_go([host])

    async def _work_on(self, host: _Host, job: Job, attempts: int) -> None:
        try:
            result = await self._do(job)
        except _Limited:
            host.queue.appendleft((job, attempts))
            return
        except _GaveUp:
            status = host.throttle.gave_up or ""
            limited = status == "rate_limited"
            said = "limits our requests" if limited else "does not answer as it should"
            result = Unfinished(
                job, status, f"{host.origin} {said}; it is left for the next run", True, not limited
            )
        except RetryableError as error:
            if attempts + 1 < self._settings.attempts:
                await asyncio.sleep(self._settings.retry_seconds * 4**attempts)
                host.queue.append((job, attempts + 1))
                return
            result = Unfinished(job, "unreachable", str(error), transient=True, may_have_moved=True)
        except RejectedRepo as error:
            result = Unfinished(job, error.status, error.reason)
        if result is not None:
            self._tell(result)

    async def _do(self, job: Job) -> JobResult | None:
        """None where the result comes later, from decoding."""
        match job:
            case Resolve():
                answer, now = await self._ask(job.url), int(time.time())
                found = read_document(
                    job.did, answer.status, answer.body, now, self._trusted, insecure=self._insecure
                )
                return Resolved(job, found)
            case ListRepos():
                return xrpc.read_listing(job, await self._ask(xrpc.list_url(job)))
            case Fetch():
                return await self._fetch(job)

    async def _fetch(self, job: Fetch) -> JobResult | None:
        if job.known_rev:
            answer = await self._ask(xrpc.latest_commit_url(job))
            if xrpc.latest_rev(answer) == job.known_rev:
                return Unchanged(job)
            if refusal := xrpc.refusal(job, answer):
                return refusal
        assert self._spool, "an fetcher without a lake is given nothing to fetch"
        ticket = await self._budget.open()
        download = Download(self._spool.path(), self._budget, ticket)
        try:
            answer = await self._ask(
                xrpc.repo_url(job), download.write, self._settings.max_repo_bytes
            )
            download.close()
            if answer.status == 200:
                self._decode(Spooled(job, download.path, download.size), ticket)
                return None
        except BaseException:
            await self._give_up(download)
            raise
        await self._give_up(download)
        said = f"{job.origin} answered the request for the repository with {answer.status}"
        return xrpc.refusal(job, answer) or Unfinished(job, "unreachable", said, True, True)

    async def _give_up(self, download: Download) -> None:
        download.discard()
        await self._budget.close(download.ticket)

    def _decode(self, spooled: Spooled, ticket: int) -> None:
        assert self._lake
        if self._decoding is None:
            self._decoding = DecodeQueue(self._lake, self._run_id, self._decoded, self._break)
        self._tickets[spooled.path] = ticket
        self._decoding.add(spooled)

    async def _decoded(self, group: Sequence[Spooled], decoded: DecodedGroup) -> None:
        for spooled in group:
            await self._budget.close(self._tickets.pop(spooled.path))
        if decoded.receipt:
            self._tell(Staged(decoded.receipt, decoded.rows))
        for failure in decoded.failures:
            self._tell(
                Unfinished(
                    failure.job, failure.status, failure.error, may_have_moved=failure.bad_signature
                )
            )

    async def _ask(
        self, url: str, sink: Sink | None = None, limit: int = MAX_RESPONSE_BYTES
    ) -> Response:
        """One request and its redirects. Each host's throttle are kept, and told what came of it."""
        if self._client is None:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_RESOLVER_THREADS))
            self._client = Client(self._settings, self._trusted, insecure=self._insecure)
        asked: list[_Host] = []

        async def admit(origin: str) -> Callable[[], None]:
            if asked:  # it has redirected us
                asked[-1].raise_for_error(asked[-1].throttle.withdrawn)
            host = self._host(origin)
            sent = await host.admit()
            asked.append(host)
            host.asking += 1
            return lambda: setattr(sent, "at", time.monotonic())

        try:
            answer = await self._client.get(url, admit, sink, limit)
        except RetryableError as error:
            asked[-1].raise_for_error(
                asked[-1].throttle.failed,
                time.monotonic(),
                at_once=error.kind in ("connect", "slow"),
            )
            raise
        except RejectedRepo:
            if asked:
                asked[-1].raise_for_error(asked[-1].throttle.withdrawn)
            raise
        finally:
            for host in asked:
                host.asking -= 1
            self._let_go(asked)
        self._heed(asked[-1], answer)
        return answer

    def _heed(self, host: _Host, answer: Response) -> None:
        """Raises _Limited, or RetryableError for an error of the host's own."""
        now, epoch = time.monotonic(), time.time()
        if answer.status == 429 or (answer.status == 503 and "retry-after" in answer.headers):
            host.raise_for_error(host.throttle.limited, now, answer.headers, epoch)
            raise _Limited
        if answer.status >= 500:
            host.raise_for_error(host.throttle.failed, now, at_once=False)
            raise RetryableError(
                f"{host.origin} answered with {answer.status}", kind=f"http_{answer.status}"
            )
        host.raise_for_error(host.throttle.answered, now, answer.headers, epoch)
