"""Downloads repositories to disk and queues them for decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from datasets.lake import Lake
from pds import xrpc
from pds.client import Response, Sink
from pds.jobs import Fetch, JobResult, Staged, Unfinished
from pds.repo.decode import DecodedGroup, Spooled
from pds.repo.decode_queue import DecodeQueue
from pds.repo.spool import ByteBudget, Download, Spool
from pds.settings import PdsSettings


class Get(Protocol):
    """Sends a request in the host's turn (`HostFetcher`)."""

    async def __call__(self, url: str, sink: Sink | None, limit: int) -> Response: ...


class RepoDownloader:
    """`publish` receives results of downloads that were decoded, `fail` what stops all of them."""

    def __init__(
        self,
        settings: PdsSettings,
        lake: Lake,
        run_id: str,
        spool_folder: str,
        *,
        publish: Callable[[JobResult], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._max_bytes = settings.max_repo_bytes
        self._lake = lake
        self._run_id = run_id
        self._publish = publish
        self._fail = fail

        self._spool = Spool(spool_folder)
        self._budget = ByteBudget(settings.spool_bytes)
        self._tickets: dict[str, int] = {}
        self._decode_queue: DecodeQueue | None = None

    async def download(self, job: Fetch, get: Get) -> Unfinished | None:
        """Downloads a repository. None if it was queued for decoding; its result is published."""
        ticket = await self._budget.open()
        download = Download(self._spool.path(), self._budget, ticket)

        try:
            response = await get(xrpc.repo_url(job), download.write, self._max_bytes)
            download.close()
            if response.status == 200:
                self._decode(Spooled(job, download.path, download.size), ticket)
                return None
        except BaseException:
            await self._discard(download)
            raise

        await self._discard(download)
        return xrpc.refusal(job, response) or Unfinished(
            job,
            "unreachable",
            f"{job.origin} answered the request for the repository with {response.status}",
            transient=True,
            may_have_moved=True,
        )

    def remove_files(self) -> None:
        self._spool.remove()

    async def _discard(self, download: Download) -> None:
        download.discard()
        await self._budget.close(download.ticket)

    def _decode(self, spooled: Spooled, ticket: int) -> None:
        if self._decode_queue is None:
            self._decode_queue = DecodeQueue(self._lake, self._run_id, self._on_decoded, self._fail)

        self._tickets[spooled.path] = ticket
        self._decode_queue.add(spooled)

    async def _on_decoded(self, group: Sequence[Spooled], decoded: DecodedGroup) -> None:
        for spooled in group:
            await self._budget.close(self._tickets.pop(spooled.path))

        if decoded.receipt:
            self._publish(Staged(decoded.receipt, decoded.rows))

        for failure in decoded.failures:
            unfinished = Unfinished(
                failure.job, failure.status, failure.error, may_have_moved=failure.bad_signature
            )
            self._publish(unfinished)
