"""Hands downloads to Ray tasks, in groups, and gives back what came of them."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any

from datasets.boundary.placement import on_node, this_node
from datasets.lake import Lake
from pds.repo.decode import DecodedGroup, DecodeFailure, Spooled, decode_group
from pds.settings import MIB

# A group is as many waiting downloads as there are, within these bounds: a task costs some
# milliseconds, and its rows become one file.
_GROUP_REPOS, _GROUP_BYTES = 64, 16 * MIB
_GATHER_SECONDS = 0.1
# Memory of a task: Python and its libraries, and this many times the CARs. Measured by
# tests/benchmarks/pds_memory.py.
_TASK_BYTES, _TIMES = 256 * MIB, 4
_ATTEMPTS = 2

OnDecoded = Callable[[Sequence[Spooled], DecodedGroup], Awaitable[None]]
OnError = Callable[[BaseException], None]


class DecodeQueue:
    """Decodes what is added, on the node that it lies on. `on_decoded` is called for each group."""

    def __init__(self, lake: Lake, run_id: str, on_decoded: OnDecoded, on_error: OnError) -> None:
        self._lake, self._run_id = lake, run_id
        self._on_decoded, self._on_error = on_decoded, on_error
        self._waiting = deque[Spooled]()
        self._running: set[asyncio.Task[None]] = set()
        self._task, self._memory, tasks = _remote_decode(this_node())
        self._slots = asyncio.Semaphore(tasks)

    def add(self, spooled: Spooled) -> None:
        self._waiting.append(spooled)
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._gather())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _gather(self) -> None:
        """Empties the queue: group after group, each as soon as a task is free."""
        await asyncio.sleep(_GATHER_SECONDS)
        while self._waiting:
            await self._slots.acquire()
            group = [self._waiting.popleft()]
            size = group[0].size
            while (
                self._waiting
                and len(group) < _GROUP_REPOS
                and size + self._waiting[0].size <= _GROUP_BYTES
            ):
                size += self._waiting[0].size
                group.append(self._waiting.popleft())
            task = asyncio.create_task(self._decode(group))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _decode(self, group: list[Spooled]) -> None:
        try:
            await self._on_decoded(group, await self._decoded(group))
        except Exception as error:  # noqa: BLE001 - of another process: the driver must hear of it
            self._on_error(error)
        finally:
            for spooled in group:
                with suppress(FileNotFoundError):
                    os.unlink(spooled.path)
            self._slots.release()

    async def _decoded(self, group: list[Spooled], attempt: int = 1) -> DecodedGroup:
        """A group that kills its process is decoded one by one, so that it is known which one does."""
        from ray.exceptions import OutOfMemoryError, WorkerCrashedError

        name = f"{self._run_id}-{token_hex(6)}"
        memory = min(_TASK_BYTES + _TIMES * sum(spooled.size for spooled in group), self._memory)
        try:
            decoded: DecodedGroup = await self._task.options(memory=memory).remote(
                self._lake, name, group
            )
            return decoded
        except (OutOfMemoryError, WorkerCrashedError) as error:
            if len(group) > 1:
                parts = [await self._decoded([spooled]) for spooled in group]
                for part in parts[:-1]:
                    await self._on_decoded([], part)
                return parts[-1]
            if attempt < _ATTEMPTS:
                return await self._decoded(group, attempt + 1)
            large = isinstance(error, OutOfMemoryError)
            reason = (
                "decoding it takes more memory than there is"
                if large
                else "decoding it kills the decoder"
            )
            failure = DecodeFailure(
                group[0].job, "too_large" if large else "corrupt", reason, bad_signature=False
            )
            return DecodedGroup(None, 0, (failure,))


def _remote_decode(node_id: str) -> tuple[Any, int, int]:
    """The task on this node, the memory that one may ask for, and how many run at a time."""
    import ray

    node = next(node for node in ray.nodes() if node["NodeID"] == node_id)
    options = {
        "num_cpus": 1,
        "max_retries": 0,
        "scheduling_strategy": on_node(node_id),
    }
    memory = int(node["Resources"].get("memory", 4096 * MIB) * 0.9)
    return ray.remote(**options)(decode_group), memory, max(1, int(node["Resources"].get("CPU", 1)))
