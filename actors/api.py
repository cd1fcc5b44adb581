"""Asking a remote API about posts: all of the quota, none beyond it, each post paid for once.

`ApiClassifier` is what the pool sees: texts in, outcomes out. Behind it runs one event loop with
one queue, first in, first out, so that the first block is the first to be done at any quota. What
an API is (its requests, its answers, its errors) is an `Api`; what is common to all is here.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from actors.integrations import Outcome
from actors.limiter import Limiter, limiter_name
from actors.remote import LONGEST_PAUSE, Api, Call, Limits, MalformedError, Remote, asked_to_wait
from actors.responses import Claim, shared_store
from actors.slots import Slot, Slots, shared_calls
from datasets.errors import BackfillError, FatalError, RejectedPost, RetryableError
from datasets.http_headers import retry_after_seconds
from datasets.lake import Lake
from datasets.queues import digest

if TYPE_CHECKING:
    import httpx

# Back-off before a retry: full jitter up to so many seconds, doubled each time, at most the second number.
_BACKOFF, _BACKOFF_MAX = 0.5, 30.0
# Nothing but passing failures for this long, and this many of them, means that the other side is
# down: what is left then fails at once and waits for the next run.
_DOWN_SECONDS, _DOWN_FAILURES = 120.0, 50
# Answers in a row that ask for a pause beyond LONGEST_PAUSE, but for a 429 (one of that is enough): fewer may be
# one post's bad luck.
_LONG_PAUSES = 5
# Whoever waits to ask again looks so often whether anything is asked at all.
_LOOK_SECONDS = 5.0
# Pauses for 429 in a row, without any success, until the quota counts as used up.
_THROTTLES = 12
_CLAIM_POLL = 0.2
# Seconds that an answer waits for others on its way to the store.
_TOGETHER = 0.03
# Statuses below 500 that pass: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)


@dataclass(eq=False)
class _Request:
    texts: list[str]
    keys: list[str]
    labels: asyncio.Future[list[Mapping[str, Any]]]
    tries: int = 0
    asked_seconds: float = 0.0  # that the other side asked it to wait, in all


class Store:
    """The run's store of answers, wherever that is. Ray repeats a call whose actor has died."""

    def __init__(self, actor: Any, asker: str) -> None:
        self._actor, self._asker, self._life = actor, asker, token_hex(4)
        self._pending: dict[str, bytes] = {}
        self._sending: asyncio.Task[None] | None = None

    async def claim(self, keys: Sequence[str]) -> Claim:
        claim: Claim = await self._actor.claim.remote(keys, self._asker, self._life)
        return claim

    async def put(self, answers: Mapping[str, bytes]) -> None:
        """Durable when it returns. Answers of the same moment travel together."""
        self._pending.update(answers)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await self._sending

    async def _send(self) -> None:
        await asyncio.sleep(_TOGETHER)
        answers, self._pending, self._sending = self._pending, {}, None
        await self._actor.put.remote(answers)

    async def give_back(self, keys: Sequence[str], *, forget: bool = False) -> None:
        await self._actor.give_back.remote(keys, forget=forget)


def connect(remote: Remote, lake: Lake, integration: str, run_id: str) -> ApiClassifier:
    """In an actor of the pool: the classifier that asks `remote`, with the cluster's limiter and the run's store."""
    import ray

    calls = shared_calls(limiter_name(remote.endpoint, remote.credential))
    slots = Slots(calls, remote.quota, run_id, integration)
    asker = ray.get_runtime_context().get_actor_id() or ""
    return ApiClassifier(remote.api, remote.limits, slots, Store(shared_store(lake, integration), asker))


def connect_here(remote: Remote) -> ApiClassifier:
    """In this process, without a cluster: the machine's limiter, and answers kept for as long as it runs."""
    limiter = Limiter(limiter_name(remote.endpoint, remote.credential))

    async def call(method: str, *arguments: Any, **named: Any) -> Any:
        return getattr(limiter, method)(*arguments, **named)

    slots = Slots(call, remote.quota, "here", "here")
    return ApiClassifier(remote.api, remote.limits, slots, MemoryStore())


class MemoryStore:
    """A store of answers for one process."""

    def __init__(self) -> None:
        self._answers: dict[str, bytes] = {}

    async def claim(self, keys: Sequence[str]) -> Claim:
        return Claim(
            {key: self._answers[key] for key in keys if key in self._answers},
            [key for key in keys if key not in self._answers],
        )

    async def put(self, answers: Mapping[str, bytes]) -> None:
        self._answers.update(answers)

    async def give_back(self, keys: Sequence[str], *, forget: bool = False) -> None:
        for key in keys if forget else ():
            self._answers.pop(key, None)


class ApiClassifier:
    """A Classifier over an Api. `classify` may be called by many threads at a time."""

    def __init__(self, api: Api, limits: Limits, slots: Slots, store: Any) -> None:
        self.model, self.revision = api.model, api.revision
        self._api, self._limits, self._slots, self._store = api, limits, slots, store
        # What was imported stays: looking through it for garbage stops the loop for a tenth of a second.
        gc.collect()
        gc.freeze()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="api", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> None:
        import anyio

        self._clients = Clients(self._limits)
        await anyio.sleep(0)  # imports its back end, which the first requests would wait for in their slots
        self._queue: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._in_flight = 0
        self._landed = asyncio.Event()
        self._works = False  # an answer has come: until then, one request at a time finds out what is wrong
        self._over: BackfillError | None = None  # why nothing more is asked
        self._failing_since: float | None = None
        self._failures = 0
        self._long_pauses = 0
        self._dispatcher = asyncio.create_task(self._dispatch())

    def classify(self, texts: Sequence[str]) -> list[Outcome]:
        return asyncio.run_coroutine_threadsafe(self._classify(texts), self._loop).result()

    async def _classify(self, texts: Sequence[str]) -> list[Outcome]:
        found: dict[str, Outcome] = {}
        by_key: dict[str, str] = {}
        for text in texts:
            rejected = self._api.precheck(text)
            if rejected:
                found[text] = rejected
            else:
                by_key[digest([self._api.key(text)])] = text
        while by_key:
            claim = await self._store.claim(list(by_key))
            for key, body in claim.known.items():
                found[by_key[key]] = await self._read_kept(key, body)
            if isinstance(self._over, RetryableError):  # one call to the store, not one for each post
                await self._store.give_back(claim.mine)
                found.update({by_key[key]: self._over for key in claim.mine})
                claim.mine.clear()
            groups = self._grouped([(key, by_key[key]) for key in claim.mine])
            for outcomes in await asyncio.gather(*(self._ask(group) for group in groups)):
                found.update(outcomes)
            by_key = {key: text for key, text in by_key.items() if text not in found}
            if by_key:  # another actor is asking about these
                await asyncio.sleep(_CLAIM_POLL)
        await self._slots.report(Counter(), at_once=True)
        return [found[text] for text in texts]

    def _grouped(self, claimed: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
        groups: list[list[tuple[str, str]]] = []
        together: list[tuple[str, str]] = []
        for key, text in claimed:
            if self._api.alone(text):
                groups.append([(key, text)])
            else:
                together.append((key, text))
        groups += [together[i : i + self._api.group] for i in range(0, len(together), self._api.group)]
        return groups

    async def _read_kept(self, key: str, body: bytes) -> Outcome:
        try:
            return _read(self._api, body)
        except RejectedPost as error:
            return error
        except MalformedError as error:
            await self._store.give_back([key], forget=True)
            return error

    async def _ask(self, group: Sequence[tuple[str, str]]) -> dict[str, Outcome]:
        """Outcomes of texts that share a request; of halves of it, where the whole gets no good answer."""
        keys, texts = [key for key, _ in group], [text for _, text in group]
        request = _Request(texts, keys, self._loop.create_future())
        try:
            self._submit(request)
            labels = await request.labels
        except (MalformedError, RejectedPost) as error:
            if len(group) == 1:
                await self._store.give_back(keys)
                return {texts[0]: error}
            half = len(group) // 2
            first, second = await asyncio.gather(self._ask(group[:half]), self._ask(group[half:]))
            return {**first, **second}
        except RetryableError as error:
            await self._store.give_back(keys)
            return dict.fromkeys(texts, error)
        return dict(zip(texts, labels, strict=True))

    def _submit(self, request: _Request, *, again: bool = False) -> None:
        if again:
            self._queue.appendleft(request)
        else:
            self._queue.append(request)
        self._arrived.set()

    async def _dispatch(self) -> None:
        """Takes requests in order; each waits for a place among those in flight and for its slot."""
        running: set[asyncio.Task[None]] = set()
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            if self._over is None:
                while self._in_flight >= (self._limits.in_flight if self._works else 1):
                    self._landed.clear()
                    await self._landed.wait()
                head = self._queue[0]
                wanted = len(self._queue) if self._works else 1
                try:
                    slot = await self._slots.wait(wanted, self._api.tokens(head.texts))
                except RetryableError as error:  # a pause that is too long to wait for
                    self._over = error
                except Exception as error:  # noqa: BLE001 - whoever waits for an answer must hear of it
                    self._over = _fatal(error)
            request = self._queue.popleft()
            if self._over is not None:
                _fail(request, self._over)
                continue
            self._in_flight += 1
            task = asyncio.create_task(self._send(request, slot))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _send(self, request: _Request, slot: Slot) -> None:
        counts = Counter(calls=1)
        counts["repeated_calls"] += bool(request.tries)
        request.tries += 1
        try:
            labels = await self._exchange(request, slot, counts)
            if not request.labels.done():
                request.labels.set_result(labels)
        except RejectedPost as error:
            counts["refused"] += 1
            _fail(request, error)
        except RetryableError as error:
            counts[f"retry_{error.kind}"] += 1
            await self._again(request, error)
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer must hear of it
            self._over = _fatal(error)
            _fail(request, self._over)
        finally:
            self._in_flight -= 1
            self._landed.set()
            await self._slots.report(counts)

    async def _exchange(self, request: _Request, slot: Slot, counts: Counter[str]) -> list[Mapping[str, Any]]:
        """One call: sent, kept durably, and only then looked into."""
        response = await self._post(self._api.call(request.texts), slot)
        count, status, body = len(request.keys), response.status_code, response.content
        retry_after = retry_after_seconds(response.headers.get("Retry-After"))
        if status in _PASSING or status >= 500:
            raise RetryableError(f"HTTP {status}", retry_after=retry_after, kind=f"http_{status}")
        kept = {key: b"%d %d %d " % (status, n, count) + body for n, key in enumerate(request.keys)}
        try:
            if status >= 300:
                self._api.judge(status, body)  # raises, unless it finds an answer in it
            await self._store.put(kept)
            counts.update(self._api.usage(body))
            await self._slots.settle(counts["tokens_in"] + counts["tokens_out"] - self._api.tokens(request.texts))
            labels = [_read(self._api, answer) for answer in kept.values()]
        except RejectedPost:
            self._answered()
            if count == 1:
                await self._store.put(kept)
            raise
        except MalformedError:
            await self._store.give_back(request.keys, forget=True)
            raise
        self._answered()
        return labels

    async def _post(self, call: Call, slot: Slot) -> httpx.Response:
        import httpx

        async def trace(event: str, _: Any) -> None:
            if event == "http11.send_request_headers.started":
                await self._slots.hold(slot)
            elif event == "http11.send_request_body.complete":
                self._slots.sent(slot)
            elif event == "http11.receive_response_headers.complete":
                self._slots.answered(slot)

        try:
            async with asyncio.timeout(self._limits.timeout), self._clients.one() as client:
                return await client.post(
                    call.url, headers=dict(call.headers), json=call.body, extensions={"trace": trace}
                )
        except (TimeoutError, httpx.TimeoutException) as error:
            raise RetryableError("no answer in time", kind="timeout") from error
        except httpx.RequestError as error:
            raise RetryableError(f"no connection ({type(error).__name__})", kind="connection") from error

    def _answered(self) -> None:
        self._works = True
        self._failing_since, self._failures, self._long_pauses = None, 0, 0
        self._slots.succeeded()

    async def _again(self, request: _Request, error: RetryableError) -> None:
        """Tries it once more after a while, unless it was tried enough or the other side is down."""
        if isinstance(error, MalformedError) and len(request.keys) > 1:
            _fail(request, error)  # halves of it may fare better
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        self._failures += 1
        throttled, asked = error.kind == "http_429", error.retry_after or 0.0
        try:
            throttles = await self._slots.throttled(error.retry_after) if throttled else 0
        except Exception as broken:  # noqa: BLE001 - the limiter failed, and whoever waits must hear of it
            self._over = _fatal(broken)
            _fail(request, self._over)
            return
        down = self._failures >= _DOWN_FAILURES and now - self._failing_since >= _DOWN_SECONDS
        request.asked_seconds += asked
        if request.asked_seconds > LONGEST_PAUSE:
            self._long_pauses += 1
            down = down or throttled or self._long_pauses >= _LONG_PAUSES
            error = asked_to_wait(asked)
            request.tries = self._limits.attempts
        if throttles >= _THROTTLES or down:
            self._over = error
        if self._over is not None or request.tries >= self._limits.attempts:
            _fail(request, error)
            return
        pause = random.uniform(0, min(_BACKOFF_MAX, _BACKOFF * 2**request.tries))  # noqa: S311
        if not throttled:  # for a 429 the limiter pauses everybody
            pause += asked
        self._submit_later(request, self._loop.time() + pause)

    def _submit_later(self, request: _Request, at: float) -> None:
        """At once where nothing more is asked: then it fails without the wait."""
        left = at - self._loop.time()
        if left <= 0 or self._over is not None:
            self._submit(request, again=True)
        else:
            self._loop.call_later(min(left, _LOOK_SECONDS), self._submit_later, request, at)


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
            http2=False, verify=self._context, timeout=self._timeout, limits=self._limits, follow_redirects=False
        )


def _fatal(error: Exception) -> FatalError:
    cause = getattr(error, "cause", error)  # Ray's wrapping, where the store or the limiter failed
    return FatalError(str(cause) if isinstance(cause, BackfillError) else f"{type(cause).__name__}: {cause}")


def _fail(request: _Request, error: BackfillError) -> None:
    if not request.labels.done():
        request.labels.set_exception(error)


def _read(api: Api, kept: bytes) -> Mapping[str, Any]:
    """The labels in a kept answer: HTTP status, place of the post in its request, size of that, body."""
    status, number, count, body = kept.split(b" ", 3)
    if int(status) >= 300:
        api.judge(int(status), body)
    return api.parse(body, int(number), int(count))
