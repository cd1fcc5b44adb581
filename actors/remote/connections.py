"""HTTP connections that are kept open, and bodies that are read no further than makes sense."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from actors.remote.protocol import Limits, MalformedError

if TYPE_CHECKING:
    import httpx

# Of an answer, decompressed. One to a batch of posts has a few kilobytes.
MAX_BODY = 4 * 2**20
_COMPRESSED = ("gzip", "x-gzip", "deflate")


class Clients:
    """HTTP/1.1 clients of one connection each, kept open, the last used first.

    One client with a pool looks at all of its connections for every request, which at a hundred
    in flight costs more than the request.
    """

    def __init__(self, limits: Limits) -> None:
        import httpx

        self._free: list[httpx.AsyncClient] = []
        self._timeout = httpx.Timeout(limits.timeout, connect=10.0)
        self._limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        # Made once: reading the certificates takes longer than a request.
        self._context = httpx.create_ssl_context()
        self._free.append(self._make())  # and so is what the first client imports

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        client = self._free.pop() if self._free else self._make()
        try:
            yield client
        finally:
            self._free.append(client)

    def _make(self) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(
            http2=False,
            verify=self._context,
            timeout=self._timeout,
            limits=self._limits,
            follow_redirects=False,
            # Answers are small, and compressed ones can inflate to gigabytes.
            headers={"Accept-Encoding": "identity"},
        )


async def read_body(response: httpx.Response) -> bytes:
    """The body, decompressed. Raises MalformedError for one above MAX_BODY, without reading it to its end.

    The connection of a body that was not read to its end is closed, as the response is.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in (*_COMPRESSED, "identity", ""):
        raise MalformedError("an answer in an encoding that was not asked for")
    # 47: gzip or zlib, by its header.
    inflate = zlib.decompressobj(wbits=47) if encoding in _COMPRESSED else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            # No more than fits: a few kilobytes can inflate to gigabytes.
            body += inflate.decompress(chunk, MAX_BODY + 1 - len(body)) if inflate else chunk
        except zlib.error as error:
            raise MalformedError("an answer that cannot be decompressed") from error
        if len(body) > MAX_BODY:
            raise MalformedError(f"an answer above {MAX_BODY >> 20} MiB")
    return bytes(body)
