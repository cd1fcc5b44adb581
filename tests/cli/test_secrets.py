"""What a user sees of secrets: nothing, in whatever a real process prints."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support import DAY, lake_labels, make_lake, run_cli

PERSPECTIVE, SOCIOPOLITICAL = "ml_inference_perspective_api", "ml_inference_sociopolitical"
KEY, TOKEN, PASSWORD = 'key"with%such/signs\\in-it', "token-of-the-llm", "url p@ss/word"


class Echo(BaseHTTPRequestHandler):
    """Refuses everything, and says what it was given, in JSON or not."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        chat = "chat" in self.path
        secret = (
            f"{self.headers['Authorization']} {PASSWORD}"
            if chat
            else self.headers["X-Goog-Api-Key"]
        )
        echo = json.dumps({"error": {"code": 400, "message": f"{secret} is bad"}}).encode()
        body = echo if chat else b"not JSON: " + echo
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pa%ss%zzword@127.0.0.1:1/db",
        "postgresql://me:pa%40ss-word@127.0.0.1:1/db",
        "me:pass-word@127.0.0.1/db",
        "me:pa@ss-word@127.0.0.1/db",
    ],
)
def test_a_databases_password_is_in_no_error_and_in_no_traceback(
    tmp_path: Path, url: str, debug: bool
) -> None:
    more = ["--debug"] if debug else []
    for arguments, env in ((["--database-url", url], {}), ([], {"BACKFILL_DATABASE_URL": url})):
        done = run_cli("pds", "status", "--data-dir", str(tmp_path), *arguments, *more, env=env)
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) == debug
        shown = (done.stdout + done.stderr).replace("password", "")
        assert "database" in shown
        assert not [
            part for part in ("ss-word", "zzword", "ss%zz", "p@ss", "pass") if part in shown
        ], shown


@pytest.mark.usefixtures("ray_here")
def test_secrets_that_a_server_echoes_are_in_no_row_and_in_no_output(
    lake_dir: Path, echo_port: int
) -> None:
    import ray

    make_lake(lake_dir, 30, [DAY])
    config = lake_dir / "backfill.toml"
    config.write_text(f'[integrations.{SOCIOPOLITICAL}]\nbackend = "llm"\nmodel = "m"\n')
    environment = {
        "PERSPECTIVE_API_ENDPOINT": f"http://127.0.0.1:{echo_port}", "PERSPECTIVE_QPS": "1000",
        "PERSPECTIVE_API_KEY": KEY, "LLM_API_KEY": TOKEN,
        "LLM_BASE_URL": f"http://me:{quote(PASSWORD, safe='')}@127.0.0.1:{echo_port}/v1",
    }  # fmt: skip
    where = ["--data-dir", str(lake_dir), "--config", str(config), "--ray-address"]
    where.append(str(ray.get_runtime_context().gcs_address))
    select = ["-i", "p,s", "-r", "posts", "--start-date", DAY, "--end-date", DAY, "--json"]
    done = run_cli("run", *select, *where, env=environment)
    status = run_cli("status", "--json", "--data-dir", str(lake_dir))
    rows = lake_labels(lake_dir, PERSPECTIVE)
    with closing(sqlite3.connect(lake_dir / "backfill.db")) as database:
        dump = "\n".join(database.iterdump())
    assert done.returncode == 1, done.stderr
    assert "refuses model m" in done.stderr
    assert (len(rows), json.loads(done.stdout)["integrations"][PERSPECTIVE]["rejected"]) == (30, 30)
    assert {row["reason"][:11] for row in rows} == {"not JSON: {"}
    assert "refuses model m" in dump
    for shown in (done.stdout, done.stderr, status.stdout, status.stderr, json.dumps(rows), dump):
        plain = shown.replace("\\", "")
        for part in ("such/signs", "in-it", TOKEN, "p@ss", "p%40ss", "p%40ss%2Fword", "ss/word"):
            assert part not in plain, shown
