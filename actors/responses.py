"""Answers that were paid for: kept durably before anybody looks into them, until their labels are.

A key stands for one question (endpoint, model, prompt, text). Who claims a key is the one who asks;
others with the same question wait for the answer. So equal texts of a run are asked once, by any
number of actors, and what was answered before a kill is not asked again after it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.queues import digest

# A claim that was neither answered nor given back by then belonged to an actor that is gone.
CLAIM_SECONDS = 300.0
# Answers kept for equal texts later in the run, a kilobyte or two each; the oldest go first.
_KEPT = 2_000_000
_SWEEP_EVERY = 10_000


@dataclass(frozen=True)
class Claim:
    """`known` are answered; `mine` are for the caller to ask; the rest are being asked by another."""

    known: dict[str, bytes]
    mine: list[str]


class ResponseStore:
    """An async actor over an SQLite file: beside the queues, or for a lake on S3 in the user's state folder.

    That folder is XDG_STATE_HOME, or ~/.local/state: it outlives a restart of the machine, not its loss.
    """

    def __init__(self, lake: Lake, integration: str) -> None:
        self._path = store_path(lake, integration)
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, body BLOB NOT NULL)"
            )
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"cannot keep answers in {self._path} ({error}); check the folder") from error
        self._claims: dict[str, tuple[float, str]] = {}
        self._lives: dict[str, str] = {}
        self._committing = asyncio.Lock()
        self._puts = 0

    async def claim(self, keys: Sequence[str], actor: str = "", life: str = "") -> Claim:
        """`actor` asks. It has another `life` after a death, and what it had claimed before is nobody's then."""
        now = time.monotonic()
        if self._lives.setdefault(actor, life) != life:
            self._lives[actor] = life
            self._claims = {key: claim for key, claim in self._claims.items() if claim[1] != actor}
        known: dict[str, bytes] = {}
        mine: list[str] = []
        for key in keys:
            row = self._database.execute("SELECT body FROM responses WHERE key = ?", (key,)).fetchone()
            if row:
                known[key] = row[0]
            elif key not in self._claims or self._claims[key][0] <= now - CLAIM_SECONDS:
                self._claims[key] = now, actor
                mine.append(key)
        return Claim(known, mine)

    async def put(self, answers: Mapping[str, bytes]) -> None:
        """Durable when it returns."""
        try:
            async with self._committing:
                await asyncio.to_thread(self._insert, answers)
        except sqlite3.Error as error:
            raise ConfigError(f"cannot keep answers in {self._path} ({error}); check the disk") from error
        for key in answers:
            self._claims.pop(key, None)

    def _insert(self, answers: Mapping[str, bytes]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?)", answers.items())
        self._puts += len(answers)
        if self._puts >= _SWEEP_EVERY:
            self._puts = 0
            self._database.execute(
                "DELETE FROM responses WHERE rowid <= (SELECT max(rowid) FROM responses) - ?", (_KEPT,)
            )
        self._database.execute("COMMIT")

    async def give_back(self, keys: Sequence[str], *, forget: bool = False) -> None:
        """Ends claims without an answer; `forget` also drops an answer that made no sense."""
        for key in keys:
            self._claims.pop(key, None)
            if forget:
                self._database.execute("DELETE FROM responses WHERE key = ?", (key,))


def store_path(lake: Lake, integration: str) -> str:
    if lake.is_local:
        return os.path.join(os.path.abspath(lake.root), "queues", "responses", f"{integration}.db")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "label-backfill", "responses", f"{digest([lake.root])}-{integration}.db")


def remove_store(lake: Lake, integration: str) -> None:
    """When every post of a run is labelled, its answers are of no more use. Nobody may have it open."""
    for suffix in ("", "-wal", "-shm"):
        path = store_path(lake, integration) + suffix
        if os.path.exists(path):
            os.unlink(path)


def shared_store(lake: Lake, integration: str) -> Any:
    """The run's one store. The driver makes it, on its own node, where the folder is sure to be; the pool finds it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(ResponseStore)
        .options(
            name=f"responses-{digest([lake.root, integration])}",
            namespace="label-backfill",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=1000,
            scheduling_strategy=here,
        )
        .remote(lake, integration)
    )
