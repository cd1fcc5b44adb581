"""A caller's side of the store of answers: what it has claimed, kept alive for as long as it is at work on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any

from actors.remote.answer_cache import CLAIM_SECONDS, Claim, ClientId
from datasets.answer_store import RunScope

# Seconds that an answer waits for others on its way to the store.
_TOGETHER = 0.03
# While it has claims, a caller is heard so often at the least.
_HEARTBEAT = CLAIM_SECONDS / 5


class Answers:
    """`call(method, *arguments)` awaits a method of the store, wherever that is."""

    def __init__(
        self,
        call: Callable[..., Any],
        scope: RunScope,
        actor: str,
        heartbeat_seconds: float = _HEARTBEAT,
    ) -> None:
        self._call, self._heartbeat_seconds = call, heartbeat_seconds
        self._asker = ClientId(actor, token_hex(4), scope)
        self._claimed: set[str] = set()
        self._heartbeat: asyncio.Task[None] | None = None
        self._pending: dict[str, bytes] = {}
        self._sending: asyncio.Task[None] | None = None

    async def claim(self, keys: Sequence[str]) -> Claim:
        claim: Claim = await self._call("claim", keys, self._asker, token_hex(8))
        self._claimed.update(claim.mine)
        if self._claimed and self._heartbeat is None:
            self._heartbeat = asyncio.create_task(self._stay_alive())
        return claim

    async def _stay_alive(self) -> None:
        while self._claimed:
            await asyncio.sleep(self._heartbeat_seconds)
            # The next claim or answer meets the same error, and is awaited.
            with suppress(Exception):
                await self._call("alive", self._asker)
        self._heartbeat = None

    async def put(self, answers: Mapping[str, bytes]) -> None:
        """Durable when it returns. Answers of the same moment travel together."""
        self._pending.update(answers)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await self._sending

    async def _send(self) -> None:
        await asyncio.sleep(_TOGETHER)
        answers, self._pending, self._sending = self._pending, {}, None
        await self._call("put", answers, self._asker)
        self._claimed.difference_update(answers)

    async def give_back(self, keys: Sequence[str]) -> None:
        self._claimed.difference_update(keys)
        await self._call("give_back", keys, self._asker)

    async def forget(self, keys: Sequence[str]) -> None:
        """So that answers of earlier runs are asked for again."""
        await self._call("forget", keys, self._asker)


class MemoryAnswers:
    """For one process, and for as long as it runs."""

    def __init__(self) -> None:
        self._answers: dict[str, bytes] = {}

    async def claim(self, keys: Sequence[str]) -> Claim:
        known = {key: self._answers[key] for key in keys if key in self._answers}
        return Claim(known, [key for key in keys if key not in known])

    async def put(self, answers: Mapping[str, bytes]) -> None:
        self._answers.update(answers)

    async def give_back(self, keys: Sequence[str]) -> None:
        """Nobody else waits for them."""

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._answers.pop(key, None)
