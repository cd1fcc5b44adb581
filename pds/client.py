"""HTTP GET as strangers' hosts need it: addresses checked at every connection, everything bounded.

Redirects are followed by hand, at most three, each checked and paced like a first request. Foreign
exceptions become ours here: RetryableError for what may pass, with `kind` `connect`, `timeout`,
`slow` or `cut`; RejectedRepo for what will not.
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

from datasets.errors import RetryableError
from pds.addresses import check_addresses, checked_url, origin_of
from pds.errors import RejectedRepo
from pds.settings import PdsSettings

USER_AGENT = "label-backfill/0.1 (reads public repositories for research)"
# A DID document or an error has a few hundred bytes, a page of listRepos 200,000.
MAX_RESPONSE_BYTES = 1 << 21
_MAX_REDIRECTS = 3
_KEEP_SECONDS = 20.0

# Waits until the host with this origin may be asked. What it returns is called when the request has left.
Admit = Callable[[str], Awaitable[Callable[[], None]]]
# Takes a piece of a body; waiting in it is not the host's fault.
Sink = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Response:
    """Header names are in lower case. `body` is empty where it went into a sink."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Client:
    """`trusted` are origins that the user named: they may be anywhere. `insecure` trusts every host."""

    def __init__(
        self, settings: PdsSettings, trusted: Iterable[str] = (), *, insecure: bool = False
    ) -> None:
        self._settings, self._insecure, self._trusted = settings, insecure, frozenset(trusted)
        places = {_place(origin) for origin in self._trusted}
        self._tls = httpx.create_ssl_context()
        self._backend = _CheckedBackend(places, insecure=insecure)
        # A pool looks at all its connections for every request, so each host has its own.
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for origin in list(self._pools):
            self.forget(origin)
        await asyncio.gather(*self._closing)

    def forget(self, origin: str) -> None:
        """Closes the connections to a host that is not asked for the time being."""
        pool = self._pools.pop(origin, None)
        if pool is not None:
            closing = asyncio.create_task(pool.aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _pool(self, origin: str) -> httpcore.AsyncConnectionPool:
        if origin not in self._pools:
            # Whoever calls bounds the number of requests under way; here nothing has to wait.
            self._pools[origin] = httpcore.AsyncConnectionPool(
                self._tls,
                max_connections=None,
                max_keepalive_connections=self._settings.in_flight,
                keepalive_expiry=_KEEP_SECONDS,
                network_backend=self._backend,
            )
        return self._pools[origin]

    async def get(
        self, url: str, admit: Admit, sink: Sink | None = None, limit: int = MAX_RESPONSE_BYTES
    ) -> Response:
        """The body of a 200 goes into `sink` if there is one; more than `limit` bytes raise RejectedRepo("too_large").

        Raises RejectedRepo for a host that may not be asked, and RetryableError.
        """
        for _ in range(_MAX_REDIRECTS + 1):
            origin = self._origin(url)
            has_left = await admit(origin)
            async with self._answer(origin, url, has_left) as response:
                headers = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in response.headers
                }
                if response.status not in (301, 302, 303, 307, 308) or "location" not in headers:
                    into = sink if response.status == 200 else None
                    return Response(
                        response.status, headers, await self._body(url, response, into, limit)
                    )
            url = urljoin(url, headers["location"])
        raise RejectedRepo(
            "unreachable", f"{url[:200]!r} is not asked: the host redirects without end"
        )

    def _origin(self, url: str) -> str:
        """Of a URL that may be asked."""
        parts = urlsplit(checked_url(url, insecure=True))
        origin = origin_of(f"{parts.scheme}://{parts.netloc}", insecure=True)
        if origin not in self._trusted:
            checked_url(url, insecure=self._insecure)
        return origin

    @asynccontextmanager
    async def _answer(
        self, origin: str, url: str, has_left: Callable[[], None]
    ) -> AsyncIterator[httpcore.Response]:
        async def trace(event: str, info: Any) -> None:
            if event == "http11.send_request_headers.complete":
                has_left()

        settings = self._settings
        timeout = {
            "connect": settings.connect_seconds,
            "read": settings.read_seconds,
            "write": settings.read_seconds,
        }
        host = urlsplit(url).netloc
        headers = [("host", host), ("user-agent", USER_AGENT), ("accept-encoding", "identity")]
        request = httpcore.Request(
            "GET",
            url.partition("#")[0],
            headers=headers,
            extensions={"timeout": timeout, "trace": trace},
        )
        try:
            # Headers that trickle in keep every single read in time.
            async with asyncio.timeout(settings.connect_seconds + 2 * settings.read_seconds):
                response = await self._pool(origin).handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise RetryableError(f"{host} did not answer in time", kind="timeout") from error
        except (httpcore.NetworkError, OSError) as error:
            reason = str(error).strip() or type(error).__name__
            raise RetryableError(
                f"{host} cannot be reached ({reason[:120]})", kind="connect"
            ) from error
        except httpcore.ProtocolError as error:
            raise RetryableError(
                f"{host} broke off its answer ({str(error)[:120]})", kind="cut"
            ) from error

    async def _body(
        self, url: str, response: httpcore.Response, sink: Sink | None, limit: int
    ) -> bytes:
        """The body, empty where it went into `sink`. The limits on time are on waiting for the host alone."""
        settings, loop = self._settings, asyncio.get_running_loop()
        pieces = aiter(response.aiter_stream())
        kept: list[bytes] = []
        size, waited = 0, 0.0
        while True:
            before = loop.time()
            piece = await anext(pieces, None)
            waited += loop.time() - before
            if piece is None:
                return b"".join(kept)
            size += len(piece)
            if size > limit:
                raise RejectedRepo("too_large", f"it has more than {limit:,} bytes")
            too_slow = waited > settings.slow_seconds and size < settings.slow_bytes * waited
            if too_slow or waited > settings.request_seconds:
                said = f"{urlsplit(url).netloc} sent {size:,} bytes in {waited:.0f} s"
                raise RetryableError(f"{said}, which is too slow", kind="slow")
            if sink is None:
                kept.append(piece)
            else:
                await sink(piece)


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, instead of to a name that may resolve to others by then."""

    def __init__(self, trusted: Iterable[tuple[str, int]], *, insecure: bool) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._trusted, self._insecure = frozenset(trusted), insecure

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("its name was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"its name is not known: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
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


def _place(origin: str) -> tuple[str, int]:
    parts = urlsplit(origin)
    return parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
