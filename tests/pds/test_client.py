"""The HTTP client against a real server on loopback, with the faults of real ones."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.errors import RetryableError
from pds.client import Client, Response
from pds.errors import RejectedRepo
from pds.settings import PdsSettings
from tests.pds.certificates import self_signed
from tests.pds.servers import Reply, Server

QUICK = PdsSettings(connect_seconds=2, read_seconds=0.4, slow_seconds=0.6, request_seconds=3)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(lambda path, query: Reply(body=b"hello", headers={"RateLimit-Remaining": "7"}))
    yield found
    found.close()


def get(
    url: str,
    settings: PdsSettings = QUICK,
    limit: int = 1000,
    sink: Any = None,
    admitted: Any = None,
    **options: Any,
) -> Response:
    """One request that need not wait for its turn."""

    async def admit(origin: str) -> Callable[[], None]:
        if admitted is not None:
            admitted.append(origin)
        return lambda: None

    async def ask() -> Response:
        client = Client(settings, **options)
        try:
            return await client.get(url, admit, sink, limit)
        finally:
            await client.close()

    return asyncio.run(ask())


def pieces_of(*pieces: bytes, every: float = 0.0, then: float = 0.0) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        time.sleep(every)
    time.sleep(then)


def test_an_answer(server: Server) -> None:
    admitted: list[str] = []
    answer = get(f"{server.origin}/x?y=1", insecure=True, admitted=admitted)
    assert (answer.status, answer.body, answer.headers["ratelimit-remaining"]) == (
        200,
        b"hello",
        "7",
    )
    assert admitted == [server.origin]
    assert server.paths == ["/x?y=1"]


def test_forbidden_hosts_are_not_contacted(server: Server) -> None:
    port = server.origin.rpartition(":")[2]
    for url in (
        server.origin,
        f"http://localhost:{port}",
        f"https://127.0.0.1:{port}",
        f"https://localhost:{port}",
    ):
        with pytest.raises(RejectedRepo, match="not contacted"):
            get(url)
    assert server.paths == []


def test_a_name_that_resolves_to_a_private_address_is_not_contacted(server: Server) -> None:
    name = socket.gethostname()
    addresses = {entry[4][0] for entry in socket.getaddrinfo(name, None)}
    assert all(not address.startswith("8.") for address in addresses), (
        "this machine has a public address"
    )
    with pytest.raises(RejectedRepo, match="which is not public"):
        get(f"https://{name}:{server.origin.rpartition(':')[2]}/")
    with pytest.raises(RejectedRepo, match="which is not public"):
        get("https://2130706433/")  # another way to write 127.0.0.1
    assert server.paths == []


def test_a_trusted_host_may_have_any_address(server: Server) -> None:
    assert get(server.origin, trusted=[server.origin]).body == b"hello"


def test_redirects_are_checked_and_throttled_like_first_requests(server: Server) -> None:
    server.fault = lambda path, query: (
        Reply(302, headers={"Location": "/there"}) if path == "/here" else None
    )
    admitted: list[str] = []
    assert get(f"{server.origin}/here", insecure=True, admitted=admitted).body == b"hello"
    assert (server.paths, admitted) == (["/here", "/there"], [server.origin] * 2)


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:{port}/",
        "https://127.0.0.1:1/",
        "https://user:pw@example.com/",
        "file:///etc/passwd",
        "//169.254.169.254/latest/meta-data",
    ],
)
def test_a_redirect_to_a_forbidden_url_is_not_followed(server: Server, location: str) -> None:
    target = location.format(port=server.origin.rpartition(":")[2])
    server.fault = lambda path, query: Reply(307, headers={"Location": target})
    with pytest.raises(RejectedRepo, match="not contacted"):
        get(f"{server.origin}/here", trusted=[server.origin])
    assert server.paths == ["/here"]


def test_a_redirect_to_a_private_address_is_checked_after_it_is_resolved(server: Server) -> None:
    server.fault = lambda path, query: Reply(307, headers={"Location": "https://localhost/"})
    with pytest.raises(RejectedRepo, match="which is not public"):
        get(server.origin, trusted=[server.origin])


def test_redirects_have_an_end(server: Server) -> None:
    server.fault = lambda path, query: Reply(302, headers={"Location": path + "x"})
    with pytest.raises(RejectedRepo, match="without end"):
        get(f"{server.origin}/x", insecure=True)
    assert len(server.paths) == 4


def test_an_error_has_its_status_and_body(server: Server) -> None:
    server.fault = lambda path, query: Reply(400, b'{"error": "RepoNotFound"}')
    answer = get(server.origin, insecure=True)
    assert (answer.status, answer.body) == (400, b'{"error": "RepoNotFound"}')


def test_a_body_is_limited_with_and_without_a_length(server: Server) -> None:
    server.fault = lambda path, query: Reply(body=b"x" * 1001)
    with pytest.raises(RejectedRepo) as caught:
        get(server.origin, insecure=True)
    assert caught.value.status == "too_large"
    server.fault = lambda path, query: Reply(pieces=itertools.repeat(b"x" * 100))
    with pytest.raises(RejectedRepo, match="more than 1,000 bytes"):
        get(server.origin, insecure=True)


def test_a_body_goes_into_the_sink_piece_by_piece(server: Server) -> None:
    found: list[bytes] = []

    async def sink(piece: bytes) -> None:
        found.append(piece)
        await asyncio.sleep(
            0.3
        )  # longer than all limits together: waiting here is not the host's fault

    server.fault = lambda path, query: Reply(pieces=pieces_of(*[b"x" * 5000] * 4))
    answer = get(server.origin, insecure=True, sink=sink, limit=10**6)
    assert (b"".join(found), answer.body) == (b"x" * 20_000, b"")


def kind_of_failure(url: str, settings: PdsSettings = QUICK) -> str:
    with pytest.raises(RetryableError) as caught:
        get(url, settings, insecure=True)
    return caught.value.kind


def test_a_body_that_trickles_is_cut_off_though_every_piece_is_in_time(server: Server) -> None:
    server.fault = lambda path, query: Reply(pieces=pieces_of(*[b"x"] * 100, every=0.1))
    started = time.monotonic()
    assert kind_of_failure(server.origin) == "slow"
    assert time.monotonic() - started < 1.5


def test_a_request_has_a_limit_as_a_whole(server: Server) -> None:
    server.fault = lambda path, query: Reply(pieces=pieces_of(*[b"x" * 40] * 100, every=0.05))
    fast_enough = PdsSettings(read_seconds=1, slow_bytes=1, request_seconds=0.5)
    assert kind_of_failure(server.origin, fast_enough) == "slow"


def test_silence_in_the_body_and_before_it(server: Server) -> None:
    server.fault = lambda path, query: Reply(pieces=pieces_of(b"x", every=2))
    assert kind_of_failure(server.origin) == "timeout"
    server.latency = 2
    server.fault = None
    assert kind_of_failure(server.origin) == "timeout"


def test_closed_connections(server: Server) -> None:
    server.fault = lambda path, query: Reply(cut=True)
    assert kind_of_failure(server.origin) == "disconnected"


def test_unreachable_hosts() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert kind_of_failure(f"http://127.0.0.1:{port}") == "connection"
    assert kind_of_failure("http://no-such-host.invalid") == "connection"


def test_headers_that_trickle(server: Server) -> None:
    """Every line arrives in time, but the end of the headers does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                try:
                    for n in range(100):
                        connection.sendall(b"X-%d: y\r\n" % n)
                        time.sleep(0.1)
                except OSError:
                    pass

        thread = threading.Thread(target=trickle)
        thread.start()
        settings = PdsSettings(connect_seconds=0.2, read_seconds=0.4)
        assert (
            kind_of_failure(f"http://127.0.0.1:{listener.getsockname()[1]}", settings) == "timeout"
        )
        thread.join()


def test_tls_to_a_server_without_tls(server: Server) -> None:
    """It counts as a failure of the host, and nothing is sent unencrypted."""
    assert kind_of_failure(server.origin.replace("http://", "https://")) in (
        "connection",
        "disconnected",
        "timeout",
    )
    assert server.paths == []


@pytest.mark.parametrize(("name", "accepted"), [("localhost", True), ("pds.example.com", False)])
def test_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, accepted: bool
) -> None:
    """The certificate must have the host's name, not the address that was checked."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed(name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = Server(lambda path, query: Reply(body=b"secret"), tls=context)
    try:
        url = f"https://localhost:{server.origin.rpartition(':')[2]}"
        if accepted:
            assert get(url, trusted=[url]).body == b"secret"
        else:
            assert kind_of_failure(url) == "connection"
        with pytest.raises(RejectedRepo, match="which is not public"):
            get(url)
    finally:
        server.close()
