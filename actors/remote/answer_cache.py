"""Answers that were paid for, shared by a cluster: an actor in front of the file that keeps them.

A key stands for one question (endpoint, model, prompt, text). Who claims a key is the one who asks;
others with the same question wait for the answer. So equal texts of a run are asked once, by any
number of actors, and what was answered before a kill is not asked again after it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.remote.shared_actors import kill_shared_actor, shared_actor
from datasets import answer_store as table
from datasets.answer_store import RunScope
from datasets.boundary.placement import on_node
from datasets.errors import ConfigError, FatalError
from datasets.locking.locks import overlap
from datasets.queues import digest

# An actor of which nothing was heard for so many seconds is gone, and what it had claimed is free.
CLAIM_SECONDS = 300.0
# The store itself ends when no run was heard for so long: a driver that was killed never leaves.
SILENT_SECONDS = 900.0
# The time of last use is noted to so many seconds.
_USE_SECONDS = 3_600.0
_SWEEP_EVERY = 10_000
# A store that is just being ended by the last run is made anew; so often, after so many seconds each.
_TRIES, _TRY_SECONDS = 50, 0.2


@dataclass(frozen=True)
class ClientId:
    """An actor that asks for a run. It has another `life` after a death."""

    actor: str = ""
    incarnation: str = ""
    scope: RunScope = field(default_factory=RunScope)


_NOBODY = ClientId()


@dataclass(frozen=True)
class Claim:
    """`known` are answered; `mine` are for the caller to ask; the rest are being asked by another.

    `earlier` are those of `known` from before a run that is to ask again about rejected posts.
    """

    known: dict[str, bytes]
    mine: list[str]
    earlier: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AnswerCacheAddress:
    """The file, the node whose file it is, and the run that uses it."""

    path: str
    node: str
    scope: RunScope

    @property
    def name(self) -> str:
        return f"responses-{digest([self.path, self.node])}"


class AnswerCache:
    """An async actor over an SQLite file: beside the queues, or for a lake on S3 in the user's state folder.

    That folder is XDG_STATE_HOME, or ~/.local/state: it outlives a restart of the machine, not its loss.
    `end` is called when nothing was heard for SILENT_SECONDS. `clock` is monotonic, `wall` since the epoch.
    """

    def __init__(
        self,
        path: str,
        end: Callable[[], None] | None = None,
        silent_seconds: float = SILENT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._end, self._silent_seconds, self._clock, self._wall = (
            path,
            end,
            silent_seconds,
            clock,
            wall,
        )
        self._connection: sqlite3.Connection | None = None
        self._claims: dict[str, tuple[str, str | None]] = {}  # key → actor, and which claim of it
        self._actors: dict[
            str, tuple[float, ClientId]
        ] = {}  # → when it was last heard, and as whom
        self._runs: dict[str, tuple[float, RunScope]] = {}  # → when it was last heard
        self._over: set[str] = set()  # runs
        self._heard = clock()  # anybody
        self._committing = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._puts = 0

    async def join(self, scope: RunScope) -> None:
        """A run begins. Raises ConfigError where answers can't be kept."""
        self._hear(ClientId(scope=scope))
        _ = self._database

    async def leave(self, scope: RunScope, *, staged: bool) -> int:
        """A run ends: how many others still use this store. Its answers go if all its labels are `staged`."""
        if staged:
            await self._commit(table.delete_staged, scope)
        self._end_run(scope.run_id)
        now = self._clock()
        others = sum(now - heard <= CLAIM_SECONDS for heard, _ in self._runs.values())
        if not others and self._connection:
            async with self._committing:
                self._connection.close()
                self._connection = None
        return others

    async def alive(self, client_id: ClientId) -> None:
        """Says that `asker` still is at work on what it has claimed, as every other call of it does."""
        self._hear(client_id)

    async def claim(
        self, keys: Sequence[str], client_id: ClientId = _NOBODY, number: str | None = None
    ) -> Claim:
        """The same `number` again is the same claim, which Ray repeats where it does not know whether it arrived."""
        self._hear(client_id)
        known: dict[str, bytes] = {}
        mine: list[str] = []
        earlier: set[str] = set()
        used: list[tuple[Any, ...]] = []
        for key in keys:
            row = self._find(key)
            if row:
                known[key] = row[0]
                kept_by_us, change = self._use(row[1:], client_id.scope)
                if not kept_by_us:
                    earlier.add(key)
                if change:
                    used.append((*change, key))
            elif client_id.scope.run_id not in self._over and self._is_free(
                key, client_id.actor, number
            ):
                self._claims[key] = client_id.actor, number
                mine.append(key)
        if used:
            await self._commit(table.note_use, used)
        return Claim(
            known, mine, frozenset(earlier) if client_id.scope.retry_rejected else frozenset()
        )

    def _find(self, key: str) -> tuple[Any, ...] | None:
        try:
            return table.find(self._database, key)
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot read answers in {self._path} ({error}); check the disk"
            ) from error

    def _is_free(self, key: str, asks: str, number: str | None) -> bool:
        actor, claim = self._claims.get(key, (None, None))
        gone = actor is None or self._clock() - self._actors[actor][0] > CLAIM_SECONDS
        return gone or (number is not None and (actor, claim) == (asks, number))

    def _use(
        self, row: tuple[Any, ...], scope: RunScope
    ) -> tuple[bool, tuple[str, str, str, float] | None]:
        """Whether a row is of this run, or of an unfinished one that this one covers; and what changes by its use."""
        run, kind, first, last, used = row
        covered = kind == scope.kind and first >= scope.first and last <= scope.last
        # What runs over different posts have asked for, no end of one of them deletes.
        after = scope.covers if covered else ("", first, last)
        changed = after != (kind, first, last) or used < self._wall() - _USE_SECONDS
        return covered or run == scope.run_id, (*after, self._wall()) if changed else None

    async def put(self, answers: Mapping[str, bytes], client_id: ClientId = _NOBODY) -> None:
        """Durable when it returns."""
        self._hear(client_id)
        owner = client_id.scope.run_id, *client_id.scope.covers, self._wall()
        self._puts += len(answers)
        sweep = self._puts >= _SWEEP_EVERY
        self._puts = 0 if sweep else self._puts
        await self._commit(
            table.insert, [(key, body, *owner) for key, body in answers.items()], sweep
        )
        for key in answers:
            self._claims.pop(key, None)

    async def give_back(self, keys: Sequence[str], client_id: ClientId = _NOBODY) -> None:
        """Ends claims without an answer."""
        self._hear(client_id)
        for key in keys:
            if self._claims.get(key, ("",))[0] == client_id.actor:
                del self._claims[key]

    async def forget(self, keys: Sequence[str], client_id: ClientId = _NOBODY) -> None:
        """Deletes answers of earlier runs. What was asked in this one stays: it is newer than what the caller saw."""
        self._hear(client_id)
        await self._commit(table.forget, [(key, client_id.scope.run_id) for key in keys])

    def _hear(self, client_id: ClientId) -> None:
        now, scope = self._clock(), client_id.scope
        self._heard = now
        if self._end and self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        if (
            client_id.actor in self._actors
            and self._actors[client_id.actor][1].incarnation != client_id.incarnation
        ):
            self._claims = {
                key: claim for key, claim in self._claims.items() if claim[0] != client_id.actor
            }
        self._actors[client_id.actor] = now, client_id
        if scope.run_id in self._over:  # an actor may outlive its run by a moment
            return
        if scope.run_id not in self._runs:
            # Runs lock their dates: one that had some of these was killed.
            for other in [
                run for run, (_, its) in self._runs.items() if overlap(its.dates, scope.dates)
            ]:
                self._end_run(other)
        self._runs[scope.run_id] = now, scope

    def _end_run(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        self._over.add(run_id)
        actors = {
            actor
            for actor, (_, client_id) in self._actors.items()
            if client_id.scope.run_id == run_id
        }
        self._claims = {key: claim for key, claim in self._claims.items() if claim[0] not in actors}

    async def _watch(self) -> None:
        while self._clock() - self._heard <= self._silent_seconds:
            await asyncio.sleep(self._silent_seconds / 4)
        assert self._end
        self._end()

    @property
    def _database(self) -> sqlite3.Connection:
        """Opened when it is first needed: an error in the constructor would be the death of the actor."""
        if self._connection is None:
            self._connection = table.open_responses(self._path, self._wall())
        return self._connection

    async def _commit(self, change: Callable[..., None], *arguments: Any) -> None:
        """In a thread, one after another; durable when it returns."""
        async with self._committing:
            try:
                await asyncio.to_thread(change, self._database, *arguments)
            except sqlite3.Error as error:
                raise ConfigError(
                    f"cannot keep answers in {self._path} ({error}); check the disk"
                ) from error


def answer_cache_calls(address: AnswerCacheAddress) -> Callable[..., Any]:
    """Calls of the cluster's store of this file: `call(method, *arguments)` awaits one.

    It belongs to no run; the last one to leave it ends it. Another may end it just now: then it is made anew.
    """
    from ray.exceptions import RayActorError

    actor = _shared_answer_cache(address)

    async def call(method: str, *arguments: Any, **named: Any) -> Any:
        nonlocal actor
        for _ in range(_TRIES):
            try:
                return await getattr(actor, method).remote(*arguments, **named)
            except RayActorError:
                await asyncio.sleep(_TRY_SECONDS)
                actor = _shared_answer_cache(address)
        raise FatalError(
            f"the actor that keeps answers in {address.path} cannot be started; run the same command again"
        )

    return call


def join_answer_cache(address: AnswerCacheAddress) -> None:
    asyncio.run(answer_cache_calls(address)("join", address.scope))


def leave_answer_cache(address: AnswerCacheAddress, *, staged: bool) -> None:
    """`staged`: every answered post of the run has a label that is durable."""
    if not asyncio.run(answer_cache_calls(address)("leave", address.scope, staged=staged)):
        kill_shared_actor(address.name)


def _shared_answer_cache(
    address: AnswerCacheAddress, silent_seconds: float = SILENT_SECONDS
) -> Any:
    """On the driver's node, where the folder is sure to be."""
    return shared_actor(
        AnswerCache,
        address.name,
        address.path,
        _end_this_actor,
        silent_seconds,
        scheduling_strategy=on_node(address.node),
        max_concurrency=1000,
    )


def _end_this_actor() -> None:
    import ray

    ray.kill(ray.get_runtime_context().current_actor)
