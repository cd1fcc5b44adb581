"""Decodes downloads in Ray tasks, in groups."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any

from datasets.lake import Lake
from pds.repo.decode import DecodedGroup, DecodeFailure, Spooled, decode_group
from pds.settings import MIB

# A group is all waiting downloads, within these limits: a task costs some milliseconds, and its
# rows become one file.
_GROUP_REPOS = 64
_GROUP_BYTES = 16 * MIB
_GATHER_SECONDS = 0.1

# Memory of a task: Python and its libraries, and this many times the CARs. Measured by
# tests/benchmarks/pds_memory.py.
_TASK_BYTES = 256 * MIB
_CAR_TIMES = 4
_DEFAULT_NODE_BYTES = 4096 * MIB
_NODE_SHARE = 0.9

_ATTEMPTS = 2

OnDecoded = Callable[[Sequence[Spooled], DecodedGroup], Awaitable[None]]
OnError = Callable[[BaseException], None]


class DecodeQueue:
    """Decodes downloads on this node, where the files lie, and deletes them afterwards.

    `on_decoded` is called for each group, `on_error` for an error that is not about a repository.
    """

    def __init__(self, lake: Lake, run_id: str, on_decoded: OnDecoded, on_error: OnError) -> None:
        import ray

        self._lake = lake
        self._run_id = run_id
        self._on_decoded = on_decoded
        self._on_error = on_error

        self._waiting = deque[Spooled]()
        self._running: set[asyncio.Task[None]] = set()
        node_id = ray.get_runtime_context().get_node_id()
        self._task, self._memory, tasks = _remote_decode(node_id)
        self._free_tasks = asyncio.Semaphore(tasks)

    def add(self, spooled: Spooled) -> None:
        self._waiting.append(spooled)
        if len(self._waiting) == 1:
            self._start(self._decode_waiting())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _decode_waiting(self) -> None:
        """Starts group after group, each as soon as a task is free, until none is waiting."""
        await asyncio.sleep(_GATHER_SECONDS)
        while self._waiting:
            await self._free_tasks.acquire()
            self._start(self._decode(self._next_group()))

    def _next_group(self) -> list[Spooled]:
        group = [self._waiting.popleft()]
        size = group[0].size

        while self._waiting and len(group) < _GROUP_REPOS:
            if size + self._waiting[0].size > _GROUP_BYTES:
                break
            size += self._waiting[0].size
            group.append(self._waiting.popleft())

        return group

    async def _decode(self, group: list[Spooled]) -> None:
        try:
            decoded = await self._run_task(group)
            await self._on_decoded(group, decoded)
        except Exception as error:  # noqa: BLE001 - passed on, as nothing awaits this coroutine
            self._on_error(error)
        finally:
            for spooled in group:
                with suppress(FileNotFoundError):
                    os.unlink(spooled.path)
            self._free_tasks.release()

    async def _run_task(self, group: list[Spooled], attempt: int = 1) -> DecodedGroup:
        """Decodes a group in a Ray task.

        If the task's process dies, the repositories are decoded one at a time, to find the one that
        kills it. That one is tried again, then rejected.
        """
        from ray.exceptions import OutOfMemoryError, WorkerCrashedError

        name = f"{self._run_id}-{token_hex(6)}"
        wanted = _TASK_BYTES + _CAR_TIMES * sum(spooled.size for spooled in group)
        task = self._task.options(memory=min(wanted, self._memory))
        try:
            decoded: DecodedGroup = await task.remote(self._lake, name, group)
            return decoded
        except (OutOfMemoryError, WorkerCrashedError) as error:
            if len(group) > 1:
                return await self._run_one_by_one(group)
            if attempt < _ATTEMPTS:
                return await self._run_task(group, attempt + 1)
            return _killed_decoder(group[0], out_of_memory=isinstance(error, OutOfMemoryError))

    async def _run_one_by_one(self, group: list[Spooled]) -> DecodedGroup:
        """Reports all results but the last, which it returns."""
        parts = [await self._run_task([spooled]) for spooled in group]
        for part in parts[:-1]:
            await self._on_decoded([], part)
        return parts[-1]


def _killed_decoder(spooled: Spooled, *, out_of_memory: bool) -> DecodedGroup:
    status = "corrupt"
    reason = "decoding it kills the decoder"
    if out_of_memory:
        status = "too_large"
        reason = "decoding it takes more memory than there is"

    failure = DecodeFailure(spooled.job, status, reason, bad_signature=False)
    return DecodedGroup(None, 0, (failure,))


def _remote_decode(node_id: str) -> tuple[Any, int, int]:
    """The Ray task on this node, the memory (bytes) that one may reserve, and how many may run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    resources = next(node for node in ray.nodes() if node["NodeID"] == node_id)["Resources"]
    memory = int(resources.get("memory", _DEFAULT_NODE_BYTES) * _NODE_SHARE)
    cpus = int(resources.get("CPU", 1))

    decorate = ray.remote(
        num_cpus=1,
        max_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
    )
    return decorate(decode_group), memory, max(1, cpus)
