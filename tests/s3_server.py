"""A real S3 endpoint for tests: moto's server in a process of its own, with a switch for answering 503 SlowDown."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BUCKET = "backfill-test"
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Endpoint:
    """`environment` is what a client needs; while the file `switch` exists every answer is 503.

    While `parts` exists, only parts of an upload after the first are answered so.
    """

    environment: dict[str, str]
    switch: Path

    @property
    def parts(self) -> Path:
        return self.switch.with_name("parts")

    @contextmanager
    def down(self) -> Iterator[None]:
        self.switch.touch()
        yield
        self.switch.unlink()


@contextmanager
def s3_endpoint() -> Iterator[Endpoint]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        switch = Path(folder) / "down"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server", str(port), str(switch)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n", "the S3 endpoint ended"
            yield Endpoint(environment, switch)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Endpoint]:
    with s3_endpoint() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """The endpoint, also in this process's environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def _serve(port: int, switch: Path) -> None:
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        later_part = (
            "partNumber=2" in environ["QUERY_STRING"] and switch.with_name("parts").exists()
        )
        if later_part or switch.exists():
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        answer: Iterable[bytes] = moto(environ, start_response)
        return answer

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever).start()
    boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    ).create_bucket(Bucket=BUCKET)  # fmt: skip
    print("ready", flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
