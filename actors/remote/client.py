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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.contract import Outcome
from actors.remote.answer_cache import AnswerCacheAddress, answer_cache_calls
from actors.remote.answer_client import Answers, MemoryAnswers
from actors.remote.connections import Clients, read_body
from actors.remote.protocol import (
    LONGEST_PAUSE,
    Api,
    AskOtherwise,
    Call,
    DoubtfulRefusal,
    Limits,
    MalformedError,
    Remote,
    asked_to_wait,
)
from actors.remote.rate_limit_client import Permit, RateLimitClient, shared_calls
from actors.remote.rate_limiter import Limiter, limiter_name
from actors.remote.reading import asks_again, not_text, read, usage
from datasets.boundary.http_headers import retry_after_seconds
from datasets.errors import BackfillError, FatalError, RejectedPost, RetryableError
from datasets.queues import digest

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
# Statuses below 500 that pass: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)
# Nobody refuses this for what it says: where it is refused, so is everything.
_HARMLESS = "Good morning, everyone!"
# So many refusals in a row, that may be of every request, and it is asked about that once more.
_REFUSALS = 10


@dataclass(eq=False)
class _Request:
    texts: list[str]
    keys: list[str]
    labels: asyncio.Future[list[Mapping[str, Any]]]
    tries: int = 0
    asked_seconds: float = 0.0  # that the other side asked it to wait, in all


def connect(remote: Remote, integration: str, store: AnswerCacheAddress) -> ApiClassifier:
    """In an actor of the pool: the classifier that asks `remote`, with the cluster's limiter and store of answers."""
    import ray

    calls = shared_calls(limiter_name(remote.endpoint, remote.credential))
    slots = RateLimitClient(calls, remote.quota, store.scope.run_id, integration)
    actor = ray.get_runtime_context().get_actor_id() or ""
    return ApiClassifier(
        remote.api, remote.limits, slots, Answers(answer_cache_calls(store), store.scope, actor)
    )


def connect_here(remote: Remote, answers: Answers | None = None) -> ApiClassifier:
    """In this process, without a cluster: the machine's limiter, and if not said otherwise, answers in memory."""
    limiter = Limiter(limiter_name(remote.endpoint, remote.credential))

    async def call(method: str, *arguments: Any, **named: Any) -> Any:
        return getattr(limiter, method)(*arguments, **named)

    slots = RateLimitClient(call, remote.quota, "here", "here")
    return ApiClassifier(remote.api, remote.limits, slots, answers or MemoryAnswers())


class ApiClassifier:
    """A Classifier over an Api. `classify` may be called by many threads at a time."""

    def __init__(
        self, api: Api, limits: Limits, slots: RateLimitClient, answers: Answers | MemoryAnswers
    ) -> None:
        self.model, self.revision = api.model, api.revision
        self._api, self._limits, self._slots, self._answers = api, limits, slots, answers
        # What was imported stays: looking through it for garbage stops the loop for a tenth of a second.
        gc.collect()
        gc.freeze()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="api", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> None:
        import anyio

        self._clients = Clients(self._limits)
        await anyio.sleep(
            0
        )  # imports its back end, which the first requests would wait for in their slots
        self._queue: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._in_flight = 0
        self._landed = asyncio.Event()
        self._works = (
            False  # an answer has come: until then, one request at a time finds out what is wrong
        )
        self._refusals = 0  # that may be of every request, without a success in between
        self._proving = asyncio.Lock()
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
            rejected = not_text(text) or self._api.precheck(text)
            if rejected:
                found[text] = rejected
            else:
                by_key[digest([self._api.key(text)])] = text
        forgotten: set[str] = set()
        while by_key:
            claim = await self._answers.claim(list(by_key))
            kept = {key: self._read_kept(body) for key, body in claim.known.items()}
            again = {
                key for key, outcome in kept.items() if asks_again(outcome, key in claim.earlier)
            } - forgotten
            found.update(
                {by_key[key]: outcome for key, outcome in kept.items() if key not in again}
            )
            if again:
                await self._answers.forget(list(again))
                forgotten |= again
            if isinstance(
                self._over, RetryableError
            ):  # one call to the store, not one for each post
                await self._answers.give_back(claim.mine)
                found.update({by_key[key]: self._over for key in [*claim.mine, *again]})
                claim.mine.clear()
            groups = self._grouped([(key, by_key[key]) for key in claim.mine])
            for outcomes in await asyncio.gather(*(self._ask(group) for group in groups)):
                found.update(outcomes)
            by_key = {key: text for key, text in by_key.items() if text not in found}
            if by_key and not again:  # another actor is asking about these
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
        groups += [
            together[i : i + self._api.group] for i in range(0, len(together), self._api.group)
        ]
        return groups

    def _read_kept(self, kept: bytes) -> Outcome:
        try:
            return read(self._api, kept)
        except (RejectedPost, MalformedError) as error:
            return error
        except (
            BackfillError
        ) as error:  # what was kept is about the post; this is a reading of another version
            return MalformedError(str(error))

    async def _ask(self, group: Sequence[tuple[str, str]]) -> dict[str, Outcome]:
        """Outcomes of texts that share a request; of halves of it, where the whole gets no good answer."""
        keys, texts = [key for key, _ in group], [text for _, text in group]
        request = _Request(texts, keys, self._loop.create_future())
        try:
            self._submit(request)
            labels = await request.labels
        except (MalformedError, RejectedPost) as error:
            if len(group) == 1:
                await self._answers.give_back(keys)
                return {texts[0]: error}
            half = len(group) // 2
            first, second = await asyncio.gather(self._ask(group[:half]), self._ask(group[half:]))
            return {**first, **second}
        except RetryableError as error:
            await self._answers.give_back(keys)
            return dict.fromkeys(texts, error)
        except FatalError:
            await self._answers.give_back(keys)
            raise
        return dict(zip(texts, labels, strict=True))

    def _submit(self, request: _Request, *, again: bool = False) -> None:
        if self._over is not None:
            _fail(request, self._over)
        elif again:
            self._queue.appendleft(request)
        else:
            self._queue.append(request)
        self._arrived.set()

    def _end(self, error: BackfillError) -> None:
        """Nothing more is asked, and whoever waits for a slot, perhaps for an hour, hears of it now."""
        self._over = self._over or error
        while self._queue:
            _fail(self._queue.popleft(), self._over)

    async def _dispatch(self) -> None:
        """Takes requests in order; each waits for a place among those in flight and for its slot."""
        running: set[asyncio.Task[None]] = set()
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            while self._in_flight >= (self._limits.in_flight if self._works else 1):
                self._landed.clear()
                await self._landed.wait()
            if not self._queue:
                continue
            wanted = len(self._queue) if self._works else 1
            try:
                slot = await self._slots.wait(wanted, self._api.tokens(self._queue[0].texts))
            except RetryableError as error:  # a pause that is too long to wait for
                self._end(error)
            except Exception as error:  # noqa: BLE001 - whoever waits for an answer must hear of it
                self._end(_fatal(error))
            if not self._queue:
                continue
            request = self._queue.popleft()
            self._in_flight += 1
            task = asyncio.create_task(self._send(request, slot))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _send(self, request: _Request, slot: Permit) -> None:
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
            request.tries -= isinstance(error, AskOtherwise)
            await self._again(request, error)
        except Exception as error:  # noqa: BLE001 - whoever waits for the answer must hear of it
            self._end(_fatal(error))
            _fail(request, _fatal(error))
        finally:
            self._in_flight -= 1
            self._landed.set()
            await self._slots.report(counts)

    async def _exchange(
        self, request: _Request, slot: Permit, counts: Counter[str]
    ) -> list[Mapping[str, Any]]:
        """One call: sent, looked into, and kept durably if it is an answer; an odd one must not come back for ever."""
        status, body = await self._post(self._api.call(request.texts), slot)
        count = len(request.keys)
        kept = {key: b"%d %d %d " % (status, n, count) + body for n, key in enumerate(request.keys)}
        used = usage(self._api, body) if status < 300 else Counter[str]()
        counts.update(used)
        try:
            labels = [read(self._api, answer) for answer in kept.values()]
            await self._answers.put(kept)
        except RejectedPost as error:
            if isinstance(error, DoubtfulRefusal):
                await self._prove(error, counts)
            self._answered()
            if count == 1:
                await self._answers.put(kept)
            raise
        finally:
            if used:
                await self._slots.settle(used.total() - self._api.tokens(request.texts))
        self._answered()
        self._refusals = 0
        return labels

    async def _prove(self, refusal: DoubtfulRefusal, counts: Counter[str]) -> None:
        """Returns where the refusal is of the post. Raises FatalError where a harmless text is refused too."""
        self._refusals += 1
        async with self._proving:
            if self._over is not None:
                raise self._over
            if self._works and self._refusals < _REFUSALS:
                return
            slot = await self._slots.wait(1, self._api.tokens([_HARMLESS]))
            counts["calls"] += 1
            status, body = await self._post(self._api.call([_HARMLESS]), slot)
            if status < 300:
                counts.update(usage(self._api, body))
            else:
                try:
                    self._api.raise_for_error(status, body)
                except RejectedPost:
                    error = FatalError(refusal.otherwise)
                    self._end(error)
                    raise error from refusal
            self._refusals = 0

    async def _post(self, call: Call, slot: Permit) -> tuple[int, bytes]:
        """HTTP status and body. Raises RetryableError for what passes."""
        import httpx

        async def trace(event: str, _: Any) -> None:
            if event == "http11.send_request_headers.started":
                await self._slots.hold(slot)
            elif event == "http11.send_request_body.complete":
                self._slots.sent(slot)
            elif event == "http11.receive_response_headers.complete":
                self._slots.answered(slot)

        more: dict[str, Any] = {
            "headers": dict(call.headers),
            "json": call.body,
            "extensions": {"trace": trace},
        }
        try:
            async with (
                asyncio.timeout(self._limits.timeout),
                self._clients.one() as client,
                client.stream("POST", call.url, **more) as response,
            ):
                status = response.status_code
                passing = status in _PASSING or status >= 500
                try:
                    body = await read_body(response)
                except MalformedError:
                    if not passing:
                        raise
        except (TimeoutError, httpx.TimeoutException) as error:
            raise RetryableError("no answer in time", kind="timeout") from error
        except httpx.RequestError as error:
            raise RetryableError(
                f"no connection ({type(error).__name__})", kind="connection"
            ) from error
        if passing:
            retry_after = retry_after_seconds(response.headers.get("Retry-After"))
            raise RetryableError(f"HTTP {status}", retry_after=retry_after, kind=f"http_{status}")
        return status, body

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
            self._end(_fatal(broken))
            _fail(request, _fatal(broken))
            return
        down = self._failures >= _DOWN_FAILURES and now - self._failing_since >= _DOWN_SECONDS
        request.asked_seconds += asked
        if request.asked_seconds > LONGEST_PAUSE:
            self._long_pauses += 1
            down = down or throttled or self._long_pauses >= _LONG_PAUSES
            error = asked_to_wait(asked)
            request.tries = self._limits.attempts
        if throttles >= _THROTTLES or down:
            self._end(error)
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


def _fatal(error: Exception) -> FatalError:
    cause = getattr(error, "cause", error)  # Ray's wrapping, where the store or the limiter failed
    return FatalError(
        str(cause) if isinstance(cause, BackfillError) else f"{type(cause).__name__}: {cause}"
    )


def _fail(request: _Request, error: BackfillError) -> None:
    if not request.labels.done():
        request.labels.set_exception(error)
