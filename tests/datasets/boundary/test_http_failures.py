from __future__ import annotations

import socket
from collections.abc import Iterator

import httpcore
import httpx
import pytest

from datasets.boundary.http_failures import (
    CONNECTION,
    DISCONNECTED,
    TIMEOUT,
    failure_kind,
    status_kind,
)

KINDS = {TIMEOUT, CONNECTION, DISCONNECTED}


def subclasses(base: type[Exception]) -> Iterator[type[Exception]]:
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)


@pytest.mark.parametrize("error", sorted(set(subclasses(httpx.RequestError)), key=str))
def test_every_request_error_of_httpx_has_a_kind(error: type[Exception]) -> None:
    assert failure_kind(error("why")) in KINDS


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), TIMEOUT),
        (httpx.ConnectTimeout("x"), TIMEOUT),
        (httpx.PoolTimeout("x"), TIMEOUT),
        (httpcore.ReadTimeout("x"), TIMEOUT),
        (httpx.ConnectError("x"), CONNECTION),
        (httpx.ReadError("x"), CONNECTION),
        (httpx.ProxyError("x"), CONNECTION),
        (httpcore.ConnectError("x"), CONNECTION),
        (httpcore.WriteError("x"), CONNECTION),
        (socket.gaierror(), CONNECTION),
        (ConnectionResetError(), CONNECTION),
        (httpx.RemoteProtocolError("x"), DISCONNECTED),
        (httpcore.RemoteProtocolError("x"), DISCONNECTED),
        (ValueError("x"), None),
        (httpx.InvalidURL("x"), None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_kinds(error: Exception, kind: str | None) -> None:
    assert failure_kind(error) == kind


def test_the_kind_of_a_status() -> None:
    assert status_kind(503) == "http_503"
