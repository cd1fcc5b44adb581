"""Sends all requests to some hosts: only one process can keep a host's rate limit.

Each host belongs to one fetcher, and a fetcher has many hosts. So a host does not cost a process,
and there are thousands of hosts with a single user. Each host has a queue of its own, so a host
that is paused or slow does not delay the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from datasets.errors import RetryableError
from datasets.lake import Lake
from pds import xrpc
from pds.client import MAX_RESPONSE_BYTES, Client, Response, Sink
from pds.downloads import RepoDownloader
from pds.errors import RejectedRepo
from pds.host_queue import HostGivenUp, HostQueue, RateLimited
from pds.identity import read_document
from pds.jobs import (
    Fetch,
    Job,
    JobResult,
    ListRepos,
    Resolve,
    Resolved,
    Unchanged,
    Unfinished,
)
from pds.settings import PdsSettings
from pds.throttle import HostThrottle

# Host names are resolved in threads, because an unresponsive name server blocks for long.
_RESOLVER_THREADS = 32


class HostFetcher:
    """Runs jobs; `take` returns their results.

    `trusted` are origins that the user named. Without a lake, it cannot run Fetch jobs.
    """

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
        self._settings = settings
        self._trusted = tuple(trusted)
        self._insecure = insecure

        self._client: Client | None = None
        self._hosts: dict[str, HostQueue] = {}
        self._workers: set[asyncio.Task[None]] = set()

        self._results: list[JobResult] = []
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

        self._downloader: RepoDownloader | None = None
        if lake is not None:
            self._downloader = RepoDownloader(
                settings, lake, run_id, spool_folder, publish=self._publish, fail=self._fail
            )

    async def submit(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            host = self._host(job.origin)
            host.jobs.append((job, 0))

            if host.workers < self._settings.in_flight:
                host.workers += 1
                task = asyncio.create_task(self._work(host))
                self._workers.add(task)
                task.add_done_callback(self._workers.discard)

    async def take(self, seconds: float) -> list[JobResult]:
        """New results, as soon as there are any; [] after `seconds` without one.

        Raises the error that stopped a worker, if one did.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

        if self._error is not None:
            raise self._error

        self._changed.clear()
        results = self._results
        self._results = []
        return results

    async def paused_hosts(self) -> dict[str, float]:
        """Origins of hosts that have jobs and are paused, and the seconds until the pause ends."""
        now = time.monotonic()
        pauses = {
            host.origin: host.throttle.pause_left(now)
            for host in self._hosts.values()
            if host.workers
        }
        return {origin: seconds for origin, seconds in pauses.items() if seconds > 0}

    async def close(self) -> None:
        for task in self._workers:
            task.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

        if self._client:
            await self._client.close()
        if self._downloader:
            self._downloader.remove_files()

    def _host(self, origin: str) -> HostQueue:
        if origin not in self._hosts:
            self._hosts[origin] = HostQueue(origin, HostThrottle(self._settings))
        return self._hosts[origin]

    def _disconnect_idle(self, hosts: Iterable[HostQueue]) -> None:
        for host in hosts:
            if host.is_idle and self._client:
                self._client.disconnect(host.origin)

    def _publish(self, result: JobResult) -> None:
        self._results.append(result)
        self._changed.set()

    def _fail(self, error: BaseException) -> None:
        """`take` raises the first error."""
        self._error = self._error or error
        self._changed.set()

    async def _work(self, host: HostQueue) -> None:
        try:
            while host.jobs:
                job, attempts = host.jobs.popleft()
                await self._work_on(host, job, attempts)
        except Exception as error:  # noqa: BLE001 - raised by `take`, as nothing awaits this task
            self._fail(error)
        finally:
            host.workers -= 1
        self._disconnect_idle([host])

    async def _work_on(self, host: HostQueue, job: Job, attempts: int) -> None:
        """Runs a job once. Afterwards it has a result, or is in the queue again."""
        result: JobResult | None
        try:
            result = await self._run(job)
        except RateLimited:
            host.jobs.appendleft((job, attempts))
            return
        except HostGivenUp:
            result = _given_up(job, host)
        except RetryableError as error:
            if attempts + 1 < self._settings.attempts:
                await asyncio.sleep(self._settings.retry_seconds * 4**attempts)
                host.jobs.append((job, attempts + 1))
                return
            result = Unfinished(job, "unreachable", str(error), transient=True, may_have_moved=True)
        except RejectedRepo as error:
            result = Unfinished(job, error.status, error.reason)

        if result is not None:
            self._publish(result)

    async def _run(self, job: Job) -> JobResult | None:
        """The result of a job. None for a download: its result is published after decoding."""
        match job:
            case Resolve():
                return await self._resolve(job)
            case ListRepos():
                return xrpc.read_page(job, await self._get(xrpc.list_url(job)))
            case Fetch():
                return await self._fetch(job)

    async def _resolve(self, job: Resolve) -> Resolved:
        response = await self._get(job.url)
        identity = read_document(
            job.did,
            response.status,
            response.body,
            int(time.time()),
            self._trusted,
            insecure=self._insecure,
        )
        return Resolved(job, identity)

    async def _fetch(self, job: Fetch) -> JobResult | None:
        if job.known_rev:
            response = await self._get(xrpc.latest_commit_url(job))
            if xrpc.latest_rev(response) == job.known_rev:
                return Unchanged(job)
            if refusal := xrpc.refusal(job, response):
                return refusal

        assert self._downloader, "Fetch jobs need a lake"
        return await self._downloader.download(job, self._get)

    async def _get(
        self, url: str, sink: Sink | None = None, limit: int = MAX_RESPONSE_BYTES
    ) -> Response:
        """Sends a request and follows its redirects, each in its host's turn.

        Raises RateLimited, HostGivenUp, RetryableError and RejectedRepo.
        """
        client = self._open_client()
        hosts: list[HostQueue] = []

        async def admit(origin: str) -> Callable[[], None]:
            if hosts:  # the last host redirected here, which tells nothing about its limits
                hosts[-1].cancel_request()

            host = self._host(origin)
            request = await host.wait_for_turn()
            hosts.append(host)
            host.requests += 1

            def on_sent() -> None:
                request.at = time.monotonic()

            return on_sent

        try:
            response = await client.get(url, admit, sink, limit)
        except RetryableError as error:
            hosts[-1].record_failure(error.kind)
            raise
        except RejectedRepo:
            if hosts:
                hosts[-1].cancel_request()
            raise
        finally:
            for host in hosts:
                host.requests -= 1
            self._disconnect_idle(hosts)

        hosts[-1].record_response(response)
        return response

    def _open_client(self) -> Client:
        if self._client is None:
            resolvers = ThreadPoolExecutor(_RESOLVER_THREADS)
            asyncio.get_running_loop().set_default_executor(resolvers)
            self._client = Client(self._settings, self._trusted, insecure=self._insecure)
        return self._client


def _given_up(job: Job, host: HostQueue) -> Unfinished:
    """The result of a job whose host is given up."""
    status = host.throttle.gave_up_status or ""
    limited = status == "rate_limited"
    reason = "limits our requests" if limited else "does not answer as it should"

    return Unfinished(
        job,
        status,
        f"{host.origin} {reason}; it is left for the next run",
        transient=True,
        may_have_moved=not limited,
    )
