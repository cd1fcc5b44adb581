"""Kinds of HTTP failures: the one place that translates httpx, httpcore and status codes.

    kind            the request failed because
    timeout         no answer, or no further part of it, arrived in time
    connection      the host was not reached: name, address, TLS handshake, broken socket
    disconnected    the peer broke the protocol, usually by closing the connection mid-answer
    slow            the answer arrives, but too slowly to wait for its end
    http_503, …     the answer has an error status

A kind is the `kind` of a RetryableError: it is counted and shown, and callers react to it.
"""

from __future__ import annotations

TIMEOUT = "timeout"
CONNECTION = "connection"
DISCONNECTED = "disconnected"
SLOW = "slow"


def failure_kind(error: Exception) -> str | None:
    """The kind of an exception that httpx, httpcore, asyncio or a socket raised.

    None for an exception that is not about HTTP: the caller should let it propagate.
    """
    # Imported here because both take longer to import than `--help` may take.
    import httpcore
    import httpx

    # The order matters: TimeoutError is an OSError, and httpx's errors are all RequestErrors.
    if isinstance(error, TimeoutError | httpx.TimeoutException | httpcore.TimeoutException):
        return TIMEOUT

    if isinstance(error, httpx.ProtocolError | httpcore.ProtocolError):
        return DISCONNECTED

    if isinstance(error, httpx.RequestError | httpcore.NetworkError | OSError):
        return CONNECTION

    return None


def status_kind(status: int) -> str:
    return f"http_{status}"
