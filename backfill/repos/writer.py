"""Writes what a sync finds: identities and statuses often, staged repositories in large batches."""

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

# Statuses and identities are saved at this age, or at this number.
_SAVE_SECONDS = 2.0
_SAVE_ROWS = 2000
# If nothing was staged for this long, only paused hosts are left, and the rest is flushed.
_IDLE_SECONDS = 20.0
# All repositories of a flush are in one manifest, which is in memory as a whole.
_FLUSH_REPOS = 20_000


class Writer:
    """The writer of one run. `say` receives messages for the user."""

    def __init__(
        self,
        lake: Lake,
        database: Database,
        run_id: str,
        lock: Lock,
        settings: PdsSettings,
        say: Callable[[str], None],
    ) -> None:
        self._lake = lake
        self._database = database
        self._run_id = run_id
        self._lock = lock
        self._settings = settings
        self._say = say

        self._identities: list[Identity] = []
        self._states: list[RepoState] = []
        self._last_save = time.monotonic()

        self._receipts: list[StagingReceipt] = []
        self._staged_rows = 0
        self._batches = 0
        self._first_receipt = 0.0
        self._last_receipt = time.monotonic()

        self.staged: set[str] = set()
        """DIDs whose repositories wait for a flush."""

    def add_identity(self, identity: Identity) -> None:
        self._identities.append(identity)

    def add_state(self, state: RepoState) -> None:
        self._states.append(state)

    def add_receipt(self, receipt: StagingReceipt, rows: int) -> None:
        now = time.monotonic()
        if not self._receipts:
            self._first_receipt = now
        self._last_receipt = now

        self._receipts.append(receipt)
        self._staged_rows += rows
        self.staged.update(repo.did for repo in receipt.repos)

    def write_due(self) -> None:
        """Saves and flushes, if it is time."""
        now = time.monotonic()
        unsaved = len(self._states) + len(self._identities)
        if now - self._last_save >= _SAVE_SECONDS or unsaved >= _SAVE_ROWS:
            self.save()

        if self._receipts and self._is_flush_due(now):
            self.flush()

    def _is_flush_due(self, now: float) -> bool:
        return (
            now - self._first_receipt >= self._settings.flush_seconds
            or now - self._last_receipt >= _IDLE_SECONDS
            or self._staged_rows >= self._settings.flush_rows
            or len(self.staged) >= _FLUSH_REPOS
        )

    def save(self) -> None:
        """Writes identities and statuses to the database."""
        save_identities(self._database, self._identities)
        if self._states:
            with self._database.transaction():
                save_repos(self._database, self._states)

        self._identities = []
        self._states = []
        self._last_save = time.monotonic()

    def flush(self) -> None:
        """Moves everything that is staged into the lake."""
        if self._receipts:
            self._say(f"writing the records of {len(self.staged):,} users")
            self._batches += 1
            batch = f"{self._run_id}-{self._batches}"
            written = flush(self._lake, self._database, self._receipts, batch, self._lock.ensure)
            report_outdated(self._receipts, written, self._say)

        self._receipts = []
        self._staged_rows = 0
        self.staged = set()


def report_outdated(
    receipts: Sequence[StagingReceipt],
    written: Sequence[RepoState],
    say: Callable[[str], None],
) -> None:
    """Tells the user which repositories a flush left out, if any."""
    dids = sorted(outdated(receipts, written))
    if not dids:
        return

    others = f" and {len(dids) - 1:,} more" if len(dids) > 1 else ""
    say(f"left out the fetched records of {dids[0]}{others}: the lake has newer ones")
