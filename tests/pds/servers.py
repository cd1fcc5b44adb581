"""HTTP servers on loopback: a PLC directory and PDSes, with the faults that real ones have."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.pds.repos import Made
from tests.pds.support import FIXTURES, INDEX, car

HTML_429 = b"<html><head><title>429 Too Many Requests</title></head><body>nginx</body></html>"


@dataclass
class Reply:
    """`pieces` are sent instead of `body`, as chunks. `cut` closes the connection instead."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: Iterator[bytes] | None = None
    cut: bool = False


# Maps path (without the query) and query to a reply; None for the usual reply.
Fault = Callable[[str, dict[str, str]], Reply | None]


class Server:
    """One host. `times` are when requests arrived (seconds, monotonic)."""

    def __init__(
        self,
        answer: Callable[[str, dict[str, str]], Reply],
        latency: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.times: list[float] = []
        self.paths: list[str] = []
        self.fault: Fault | None = None
        self.latency = latency
        self._answer = answer
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def reply(self, target: str) -> Reply:
        self.times.append(time.monotonic())
        self.paths.append(target)
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        time.sleep(self.latency)
        if self.fault and (reply := self.fault(parts.path, query)):
            return reply
        return self._answer(parts.path, query)

    def requests(self) -> Counter[str]:
        """Numbers of requests by XRPC method."""
        return Counter(urlsplit(path).path.rpartition(".")[2] for path in self.paths)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def most_in_a_second(times: list[float]) -> int:
    """The most requests in any second, wherever it begins."""
    ordered = sorted(times)
    end = most = 0
    for start, first in enumerate(ordered):
        while end < len(ordered) and ordered[end] < first + 1:
            end += 1
        most = max(most, end - start)
    return most


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = server.reply(self.path)
            if reply.cut:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.pieces is None:
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(OSError):
                for piece in reply.pieces:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *arguments: Any) -> None:
            """Prints nothing."""

    return Handler


def json_reply(content: Any, status: int = 200) -> Reply:
    return Reply(
        status, json.dumps(content).encode(), {"Content-Type": "application/json; charset=utf-8"}
    )


def error_reply(name: str, message: str = "", status: int = 400) -> Reply:
    return json_reply({"error": name, "message": message or name}, status)


class Pds:
    """Serves repositories. `refused` DIDs are answered with an error's name."""

    def __init__(self, latency: float = 0.0, page: int = 1000) -> None:
        self.repos: dict[str, tuple[str, str, bytes]] = {}
        self.refused: dict[str, str] = {}
        self.page = page
        self.server = Server(self._answer, latency)

    @property
    def origin(self) -> str:
        return self.server.origin

    def add(self, did: str, rev: str, cid: str, car: bytes) -> None:
        self.repos[did] = (rev, cid, car)

    def add_made(self, made: Made) -> None:
        import libipld

        root = made.root()
        self.add(made.did, made.commit["rev"], libipld.encode_multibase("b", root), made.car(root))

    def _answer(self, path: str, query: Mapping[str, str]) -> Reply:
        method = path.removeprefix("/xrpc/com.atproto.sync.")
        if method == "listRepos":
            return self._list(query)
        did = query.get("did", "")
        if did in self.refused:
            return error_reply(self.refused[did], f"{self.refused[did]}: {did}")
        if did not in self.repos:
            return error_reply("RepoNotFound", f"Could not find repo for DID: {did}")
        rev, cid, car = self.repos[did]
        if method == "getLatestCommit":
            return json_reply({"cid": cid, "rev": rev})
        if method == "getRepo":
            pieces = (car[start : start + 65536] for start in range(0, len(car), 65536))
            return Reply(headers={"Content-Type": "application/vnd.ipld.car"}, pieces=pieces)
        return error_reply("MethodNotImplemented", status=501)

    def _list(self, query: Mapping[str, str]) -> Reply:
        everyone = sorted([*self.repos, *self.refused])
        start = int(query.get("cursor", "0"))
        entries = []
        for did in everyone[start : start + self.page]:
            if did in self.refused:
                status = self.refused[did].removeprefix("Repo").lower()
                entries.append(
                    {"did": did, "head": "", "rev": "", "active": False, "status": status}
                )
            else:
                rev, cid, _ = self.repos[did]
                entries.append({"did": did, "head": cid, "rev": rev, "active": True})
        end = start + self.page
        return json_reply(
            {"repos": entries} | ({"cursor": str(end)} if end < len(everyone) else {})
        )


class Plc:
    """A PLC directory: DID → document."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self.server = Server(self._answer)

    @property
    def origin(self) -> str:
        return self.server.origin

    def add(self, did: str, did_key: str, pds: str, handle: str | None = None) -> None:
        self.documents[did] = document(did, did_key, pds, handle)

    def _answer(self, path: str, query: Mapping[str, str]) -> Reply:
        did = path.removeprefix("/")
        if did not in self.documents:
            return json_reply({"message": f"DID not registered: {did}"}, 404)
        found = self.documents[did]
        return Reply(body=found) if isinstance(found, bytes) else json_reply(found)


def document(did: str, did_key: str, pds: str, handle: str | None = None) -> dict[str, Any]:
    return {
        "@context": ["https://www.w3.org/ns/did/v1"],
        "id": did,
        "alsoKnownAs": [f"at://{handle}"] if handle else [],
        "verificationMethod": [
            {
                "id": f"{did}#atproto",
                "type": "Multikey",
                "controller": did,
                "publicKeyMultibase": did_key[8:],
            }
        ],
        "service": [
            {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": pds}
        ],
    }


@dataclass
class Network:
    """A directory and some hosts."""

    plc: Plc = field(default_factory=Plc)
    hosts: list[Pds] = field(default_factory=list)

    def host(self, **options: Any) -> Pds:
        self.hosts.append(Pds(**options))
        return self.hosts[-1]

    def add(self, made: Made, host: Pds) -> None:
        self.plc.add(made.did, made.key.did_key, host.origin)
        host.add_made(made)

    def add_fixtures(self, host: Pds) -> dict[str, str]:
        """The users of the reference PDS; name → DID."""
        for name, entry in INDEX.items():
            did = entry["did"]
            if (FIXTURES / f"{name}.did.json").exists():
                found = json.loads((FIXTURES / f"{name}.did.json").read_text())
                found["service"][0]["serviceEndpoint"] = host.origin
                self.plc.documents[did] = found
            if entry["getRepo_status"] == 200:
                commit = entry["latest_commit"]
                host.add(did, commit["rev"], commit["cid"], car(name))
            elif (error := entry["getRepo_body"]["error"]) != "RepoNotFound":
                host.refused[did] = error
        return {name: entry["did"] for name, entry in INDEX.items()}

    def close(self) -> None:
        for server in [self.plc.server, *(host.server for host in self.hosts)]:
            server.close()


@contextmanager
def network() -> Iterator[Network]:
    found = Network()
    try:
        yield found
    finally:
        found.close()
