"""What a sync writes: identities and statuses every moment, staged repositories in large batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from datasets.database import Database
from datasets.lake import Lake
from datasets.locking.locks import Lock
from datasets.repos.flush import flush, outdated
from datasets.repos.staging import StagingReceipt
from datasets.repos.state import Identity, RepoState, save_identities, save_repos
from pds.settings import PdsSettings

# Seconds, and rows, between two writes of statuses.
_SAVE_SECONDS, _SAVE_ROWS = 2.0, 2000
# Without news for so long, what is staged is flushed: only hosts that rest are left.
_IDLE_SECONDS = 20.0
# Staged repositories stand in one manifest, which is in memory as a whole.
_FLUSH_REPOS = 20_000


class Writer:
    """Of one run. `say` is told what a flush is about, and what it leaves out."""

    def __init__(
        self,
        lake: Lake,
        database: Database,
        run_id: str,
        lock: Lock,
        settings: PdsSettings,
        say: Callable[[str], None],
    ) -> None:
        self._lake, self._database, self._run_id, self._lock = lake, database, run_id, lock
        self._settings = settings
        self._say = say
        self._identities: list[Identity] = []
        self._states: list[RepoState] = []
        self._receipts: list[StagingReceipt] = []
        self._rows = self._batches = 0
        self._saved = self._news = time.monotonic()
        self._oldest = 0.0
        self.staged: set[str] = set()
        """The users whose repositories wait for a flush."""

    def identity(self, identity: Identity) -> None:
        self._identities.append(identity)

    def state(self, state: RepoState) -> None:
        self._states.append(state)

    def receipt(self, receipt: StagingReceipt, rows: int) -> None:
        now = time.monotonic()
        if not self._receipts:
            self._oldest = now
        self._news = now
        self._receipts.append(receipt)
        self._rows += rows
        self.staged.update(repo.did for repo in receipt.repos)

    def write_due(self) -> None:
        now = time.monotonic()
        if (
            now - self._saved >= _SAVE_SECONDS
            or len(self._states) + len(self._identities) >= _SAVE_ROWS
        ):
            self.save()
        old = (
            now - self._oldest >= self._settings.flush_seconds or now - self._news >= _IDLE_SECONDS
        )
        if self._receipts and (
            old or self._rows >= self._settings.flush_rows or len(self.staged) >= _FLUSH_REPOS
        ):
            self.flush()

    def save(self) -> None:
        save_identities(self._database, self._identities)
        if self._states:
            with self._database.transaction():
                save_repos(self._database, self._states)
        self._identities, self._states = [], []
        self._saved = time.monotonic()

    def flush(self) -> None:
        """Everything that is staged."""
        if self._receipts:
            self._say(f"writing the records of {len(self.staged):,} users")
            self._batches += 1
            batch = f"{self._run_id}-{self._batches}"
            written = flush(self._lake, self._database, self._receipts, batch, self._lock.ensure)
            say_outdated(self._receipts, written, self._say)
        self._receipts, self._rows = [], 0
        self.staged = set()


def say_outdated(
    receipts: Sequence[StagingReceipt], written: Sequence[RepoState], say: Callable[[str], None]
) -> None:
    """Names what a flush has left out."""
    if dids := sorted(outdated(receipts, written)):
        others = f" and of {len(dids) - 1:,} more" if len(dids) > 1 else ""
        say(f"left out what was fetched of {dids[0]}{others}: the lake has newer records")
