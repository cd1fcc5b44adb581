"""HTTP GET from hosts that other people run: every address checked, every answer bounded.

Redirects are followed here, at most three, and each one is checked and throttled like a first
request. Exceptions of the HTTP library are translated here: to RetryableError with a kind of
datasets/boundary/http_failures.py, or to RejectedRepo for what a retry cannot help.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from datasets.boundary.http_failures import CONNECTION, SLOW, TIMEOUT, failure_kind
from datasets.errors import RetryableError
from pds.addresses import check_addresses, checked_url, host_and_port, origin_of
from pds.errors import RejectedRepo
from pds.settings import PdsSettings

USER_AGENT = "label-backfill/0.1 (reads public repositories for research)"
# A DID document or an error has a few hundred bytes, a page of listRepos 200,000.
MAX_RESPONSE_BYTES = 1 << 21

_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_KEEP_ALIVE_SECONDS = 20.0
_REASON_CHARS = 120

# Waits until the host with this origin may receive a request. The function that it returns is to be
# called when the request has been sent.
Admit = Callable[[str], Awaitable[Callable[[], None]]]
# Takes a piece of a body. The host is not charged for the time that this takes.
Sink = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Response:
    """Header names are in lower case. `body` is empty if it went into a sink."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Client:
    """Sends requests to any number of hosts.

    `trusted` are origins that the user named: they may have private addresses and use http.
    `insecure` trusts every host.
    """

    def __init__(
        self, settings: PdsSettings, trusted: Iterable[str] = (), *, insecure: bool = False
    ) -> None:
        self._settings = settings
        self._trusted = frozenset(trusted)
        self._insecure = insecure
        self._tls = httpx.create_ssl_context()

        trusted_hosts = {host_and_port(origin) for origin in self._trusted}
        self._backend = _CheckedBackend(trusted_hosts, insecure=insecure)

        # One pool per host: a pool examines all of its connections for every request.
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for origin in list(self._pools):
            self.disconnect(origin)
        await asyncio.gather(*self._closing)

    def disconnect(self, origin: str) -> None:
        """Closes the connections to a host, in the background. The next request opens new ones."""
        pool = self._pools.pop(origin, None)
        if pool is None:
            return

        closing = asyncio.create_task(pool.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def get(
        self,
        url: str,
        admit: Admit,
        sink: Sink | None = None,
        limit: int = MAX_RESPONSE_BYTES,
    ) -> Response:
        """Requests a URL. The body of a 200 goes into `sink`, if there is one.

        Raises RejectedRepo for a host that may not be contacted, RejectedRepo("too_large") for a
        body of more than `limit` bytes, and RetryableError for everything that a retry may help.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            origin = self._allowed_origin(url)
            on_sent = await admit(origin)

            async with self._respond(origin, url, on_sent) as response:
                headers = _decoded_headers(response)
                if response.status not in _REDIRECTS or "location" not in headers:
                    body_sink = sink if response.status == 200 else None
                    body = await self._read_body(url, response, body_sink, limit)
                    return Response(response.status, headers, body)

            url = urljoin(url, headers["location"])

        raise RejectedRepo(
            "unreachable", f"{url[:200]!r} is not contacted: the host redirects without end"
        )

    def _allowed_origin(self, url: str) -> str:
        """The origin of a URL. Raises RejectedRepo if it may not be contacted."""
        parts = urlsplit(checked_url(url, insecure=True))
        origin = origin_of(f"{parts.scheme}://{parts.netloc}", insecure=True)

        if origin not in self._trusted:
            checked_url(url, insecure=self._insecure)
        return origin

    def _pool(self, origin: str) -> httpcore.AsyncConnectionPool:
        if origin not in self._pools:
            # The caller bounds the number of concurrent requests, so none has to wait in the pool.
            self._pools[origin] = httpcore.AsyncConnectionPool(
                self._tls,
                max_connections=None,
                max_keepalive_connections=self._settings.in_flight,
                keepalive_expiry=_KEEP_ALIVE_SECONDS,
                network_backend=self._backend,
            )
        return self._pools[origin]

    @asynccontextmanager
    async def _respond(
        self, origin: str, url: str, on_sent: Callable[[], None]
    ) -> AsyncIterator[httpcore.Response]:
        """The response to one request, without redirects; its body is still to be read.

        Raises RetryableError, also for errors while the body is read.
        """
        host = urlsplit(url).netloc
        request = self._request(host, url, on_sent)
        # Without this limit, headers that trickle in would keep every single read in time.
        headers_seconds = self._settings.connect_seconds + 2 * self._settings.read_seconds

        try:
            async with asyncio.timeout(headers_seconds):
                response = await self._pool(origin).handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        except Exception as error:
            kind = failure_kind(error)
            if kind is None:
                raise
            raise RetryableError(_failure_text(host, kind, error), kind=kind) from error

    def _request(self, host: str, url: str, on_sent: Callable[[], None]) -> httpcore.Request:
        async def trace(event: str, info: Any) -> None:
            if event == "http11.send_request_headers.complete":
                on_sent()

        timeout = {
            "connect": self._settings.connect_seconds,
            "read": self._settings.read_seconds,
            "write": self._settings.read_seconds,
        }
        headers = [
            ("host", host),
            ("user-agent", USER_AGENT),
            ("accept-encoding", "identity"),
        ]
        return httpcore.Request(
            "GET",
            url.partition("#")[0],
            headers=headers,
            extensions={"timeout": timeout, "trace": trace},
        )

    async def _read_body(
        self, url: str, response: httpcore.Response, sink: Sink | None, limit: int
    ) -> bytes:
        """The body; empty if it went into `sink`. Only waiting for the host is limited in time."""
        loop = asyncio.get_running_loop()
        pieces = aiter(response.aiter_stream())
        kept: list[bytes] = []
        size = 0
        waited = 0.0

        while True:
            before = loop.time()
            piece = await anext(pieces, None)
            waited += loop.time() - before
            if piece is None:
                return b"".join(kept)

            size += len(piece)
            if size > limit:
                raise RejectedRepo("too_large", f"it has more than {limit:,} bytes")
            self._check_speed(urlsplit(url).netloc, size, waited)

            if sink is None:
                kept.append(piece)
            else:
                await sink(piece)

    def _check_speed(self, host: str, size: int, waited: float) -> None:
        """Raises RetryableError for a download that has become too slow."""
        settings = self._settings
        too_slow = waited > settings.slow_seconds and size < settings.slow_bytes * waited

        if too_slow or waited > settings.request_seconds:
            raise RetryableError(
                f"{host} sent {size:,} bytes in {waited:.0f} s, which is too slow", kind=SLOW
            )


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were checked.

    The name is not resolved a second time for the connection: it may give other addresses then.
    """

    def __init__(self, trusted: Iterable[tuple[str, int]], *, insecure: bool) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._trusted = frozenset(trusted)
        self._insecure = insecure

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port, timeout)
        if not self._insecure and (host, port) not in self._trusted:
            check_addresses(host, addresses)

        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue

        return await self._inner.connect_tcp(
            addresses[-1], port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int, timeout: float | None) -> list[str]:
    """The addresses of a host name, without repetition."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout("its name was not resolved in time") from error
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"its name is not known: {error}") from error

    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _decoded_headers(response: httpcore.Response) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
    }


def _failure_text(host: str, kind: str, error: Exception) -> str:
    if kind == TIMEOUT:
        return f"{host} did not answer in time"

    reason = str(error).strip() or type(error).__name__
    what = "cannot be reached" if kind == CONNECTION else "broke off its answer"
    return f"{host} {what} ({reason[:_REASON_CHARS]})"
