"""A real HTTP server on loopback that speaks Perspective's and OpenAI's protocols, with a quota and with faults.

In a process of its own, so that its clock and its event loop are nobody else's, and ahead of the others
where the system lets it: whoever counts a quota does so on machines of their own. `GET /stats` tells
what was asked of it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

KEY = "a-key-that-must-not-leak"
_NICE = -10
# Texts that Perspective answers oddly: what stands where a score should be.
ODD_SCORES = {
    "nested": "[" * 100_000 + "]" * 100_000,
    "digits": "1" * 400,
    "not a number": "NaN",
    "infinite": "Infinity",
    "huge": "1e999",
    "seven": "7.0",
    "negative": "-1",
    "bool": "true",
    "string": '"0.5"',
    "surrogate": '"\\ud800"',
    "null": "null",
}
BOMB_MIB = 128
# Words that make an LLM refuse a prompt.
REFUSALS = {
    "UNSPEAKABLE": {"message": "content management policy", "code": "content_filter"},
    "ENDLESS": {"message": "Please shorten your messages", "code": "context_length_exceeded"},
    "VERBOSE": {
        "message": "This model's maximum context length is 4096 tokens. However, you requested 5000",
        "code": 400,
    },
    "ODDLY": {"message": "something about this request"},
}


def share(text: str) -> float:
    """A number in [0, 1) that a text always has."""
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
        )
        / 2**48
    )


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.arrivals: list[float] = []
        self.window: deque[float] = deque()
        self.good: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.prompts: list[dict[str, Any]] = []
        self.urls: set[str] = set()
        self.refused_at: list[float] = []
        self.in_flight = self.most_in_flight = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        self.arrivals.append(arrived)
        self.urls.add(str(request.rel_url))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        over = self.over_quota(arrived)
        try:
            body = await request.json()
            chat = "messages" in body
            return await (
                self.chat(request, body, over) if chat else self.perspective(request, body, over)
            )
        finally:
            self.in_flight -= 1

    def over_quota(self, arrived: float) -> bool:
        """By the time that `stats` counts by, too: when the body is there, others may have come in between."""
        while self.window and self.window[0] <= arrived - 1:
            self.window.popleft()
        if self.options.quota and len(self.window) >= self.options.quota:
            self.faults["quota"] += 1
            self.refused_at.append(arrived)
            return True
        self.window.append(arrived)
        return False

    async def fault(self, texts: list[str], over_quota: bool) -> web.Response | None:
        """The quota first, then faults by chance; a fault strikes before anything is paid."""
        options = self.options
        if over_quota:
            return web.json_response(
                {
                    "error": {
                        "code": 429,
                        "message": "Quota exceeded",
                        "status": "RESOURCE_EXHAUSTED",
                    }
                },
                status=429,
            )
        self.asked.update(texts)
        luck = random.random()
        for name, part in (
            ("hang", options.hang),
            ("429", options.p429),
            ("503", options.p503),
            ("broken", options.broken),
        ):
            if luck < part:
                self.faults[name] += 1
                return await self.strike(name)
            luck -= part
        await asyncio.sleep(options.latency)
        return None

    async def strike(self, name: str) -> web.Response:
        if name == "hang":
            await asyncio.sleep(120)
        await asyncio.sleep(self.options.latency)
        headers = {"Retry-After": self.options.retry_after} if self.options.retry_after else {}
        if name == "429":
            return web.Response(status=429, text="<html>slow down</html>", headers=headers)
        if name == "503":
            return web.Response(status=503, text="busy", headers=headers)
        return web.Response(
            text='{"attributeScores": {"TOXICITY": {"summ', content_type="application/json"
        )

    async def perspective(
        self, request: web.Request, body: dict[str, Any], over_quota: bool
    ) -> web.Response:
        text = body["comment"]["text"]
        if request.headers.get("X-Goog-Api-Key") != KEY:
            error = {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
            }
            return web.json_response({"error": error}, status=self.options.bad_key_status)
        for name in body["requestedAttributes"]:
            if name in self.options.without:
                return web.json_response(
                    {"error": {"code": 400, "message": f"Unknown requested attribute: {name}"}},
                    status=400,
                )
        struck = await self.fault([text], over_quota) or self.odd(text)
        if struck:
            return struck
        self.good[text] += 1
        if share("refused" + text) < self.options.refused:
            kind = {
                "@type": "type.googleapis.com/google.commentanalyzer.v1alpha1.Error",
                "errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
            }
            message = "Attribute TOXICITY does not support request languages: xx"
            return web.json_response(
                {
                    "error": {
                        "code": 400,
                        "message": message,
                        "status": "INVALID_ARGUMENT",
                        "details": [kind],
                    }
                },
                status=400,
            )
        scores = {
            name: {"summaryScore": {"value": share(name + text), "type": "PROBABILITY"}}
            for name in body["requestedAttributes"]
        }
        return web.json_response({"attributeScores": scores, "languages": ["en"]})

    @staticmethod
    def odd(text: str) -> web.Response | None:
        kind = "application/json"
        if text in ODD_SCORES:
            value = ODD_SCORES[text]
            body = '{"attributeScores": {"TOXICITY": {"summaryScore": {"value": ' + value + "}}}}"
            return web.Response(text=body, content_type=kind)
        match text:
            case "surrogate in a reason":
                return web.Response(
                    text='{"error": {"message": "half \\ud800 of it"}}',
                    status=400,
                    content_type=kind,
                )
            case "nested error":
                body = '{"error": {"message": %s}}' % ODD_SCORES["nested"]  # noqa: UP031
                return web.Response(text=body, status=400, content_type=kind)
            case "large":
                return web.Response(body=b"1" * (5 * 2**20), content_type=kind)
            case "large 503":
                return web.Response(body=b"1" * (5 * 2**20), content_type=kind, status=503)
            case "bomb":
                squeeze = zlib.compressobj(wbits=31)
                body_ = (
                    b"".join(squeeze.compress(bytes(2**20)) for _ in range(BOMB_MIB))
                    + squeeze.flush()
                )
                return web.Response(
                    body=body_, content_type=kind, headers={"Content-Encoding": "gzip"}
                )
            case "brotli":
                return web.Response(
                    body=b"x", content_type=kind, headers={"Content-Encoding": "br"}
                )
            case "gzip":
                body = '{"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.25}}}}'
                squeezed = gzip.compress(body.encode())
                return web.Response(
                    body=squeezed, content_type=kind, headers={"Content-Encoding": "gzip"}
                )
        return None

    async def chat(
        self, request: web.Request, body: dict[str, Any], over_quota: bool
    ) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response(
                {"error": {"message": "Incorrect API key provided"}}, status=401
            )
        if body["model"] != "test-model":
            return web.json_response(
                {"error": {"message": "The model does not exist", "code": "model_not_found"}},
                status=404,
            )
        posts = json.loads(body["messages"][-1]["content"])["posts"]
        self.prompts.append(body)
        struck = await self.fault([post["text"] for post in posts], over_quota)
        if struck:
            return struck
        said = " ".join(post["text"] for post in posts)
        for word, error in REFUSALS.items():
            if word in said or self.options.refuse_all == word:
                return web.json_response({"error": error}, status=400)
        if "DECLINED" in said:
            return web.json_response(
                {"choices": [{"message": {"refusal": "I can't \ud800 do that"}}]}
            )
        labels = [self.label(post, body) for post in posts]
        if len(posts) > self.options.confused_above:
            labels = (
                labels[1:]
                if share(posts[0]["text"]) < 0.5
                else [{**label, "number": 1} for label in labels]
            )
        for post in posts:
            self.good[post["text"]] += 1
        usage = {"prompt_tokens": 100 + 20 * len(posts), "completion_tokens": 10 * len(posts)}
        content = json.dumps({"labels": labels})
        return web.json_response({"choices": [{"message": {"content": content}}], "usage": usage})

    @staticmethod
    def label(post: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        schema = body["response_format"]["json_schema"]["schema"]
        wanted = schema["properties"]["labels"]["items"]["properties"]
        label: dict[str, Any] = {"number": post["number"]}
        for name in wanted:
            if name != "number":
                label[name] = {
                    "is_sociopolitical": share(post["text"]) < 0.5,
                    "political_ideology_label": ["left", "right", "moderate", "unclear"][
                        int(4 * share("lean" + post["text"]))
                    ],
                    "label": int(share(post["text"]) < 0.5),
                }[name]
        return label

    async def stats(self, _: web.Request) -> web.Response:
        best = start = 0
        for index, arrived in enumerate(self.arrivals):
            while self.arrivals[start] <= arrived - 1:
                start += 1
            best = max(best, index - start + 1)
        first, last = (self.arrivals[0], self.arrivals[-1]) if self.arrivals else (0.0, 0.0)
        found = {
            "calls": len(self.arrivals),
            "most_in_a_second": best,
            "seconds": last - first,
            "most_in_flight": self.most_in_flight,
            "urls": sorted(self.urls),
        }
        for name in ("good", "asked", "faults", "prompts", "arrivals", "refused_at"):
            found[name] = getattr(self, name)
        return web.json_response(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("latency", "p429", "p503", "broken", "hang", "refused", "quota"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--retry-after", default="")
    parser.add_argument("--refuse-all", default="")
    parser.add_argument("--bad-key-status", type=int, default=400)
    parser.add_argument("--confused-above", type=int, default=10**6)
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    with suppress(PermissionError):
        os.nice(_NICE)
    server = Server(options)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1alpha1/comments:analyze", server.answer)
    app.router.add_post("/v1/chat/completions", server.answer)
    app.router.add_get("/stats", server.stats)

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server
        print(site._server.sockets[0].getsockname()[1], flush=True)  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    asyncio.run(serve())


@dataclass
class Api:
    """A running server, as a client knows it."""

    base: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PERSPECTIVE_API_KEY": KEY,
            "PERSPECTIVE_API_ENDPOINT": self.base,
            "LLM_API_KEY": KEY,
            "LLM_BASE_URL": f"{self.base}/v1",
        }

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.base}/stats") as answer:
            return dict(json.load(answer))


@contextmanager
def api_server(**options: Any) -> Iterator[Api]:
    """Options as on the command line: latency=0.2, quota=100, p429=0.05 …"""
    arguments: list[str] = []
    for name, value in options.items():
        arguments.append(f"--{name.replace('_', '-')}")
        arguments += [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
    command = [sys.executable, "-m", "tests.api_server", *arguments]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        try:
            yield Api(f"http://127.0.0.1:{port}")
        finally:
            process.kill()


if __name__ == "__main__":
    main()
