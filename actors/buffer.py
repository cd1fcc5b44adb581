"""The label buffer: the only writer of an integration's labels in a run.

`stage` acknowledges a batch once it is durable. One thread flushes staged
batches to the lake, by size or by age, and another loads what was flushed
from there into the database.

The files are described in datasets/labels/writing.py. The buffer only
remembers which batches and files are waiting, so the actor may die at any
moment: its successor reads the disk and continues.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from actors.batch_counts import BatchCounts, count_batch, count_stored
from actors.database_loader import DatabaseLoader
from actors.flush_policy import FlushPolicy
from actors.integrations import resolve
from actors.recovery import recover_batches
from datasets.errors import BackfillError, BadFile
from datasets.labels import writing
from datasets.lake import Lake
from datasets.locking.locks import ALL_DATES, Dates, Lock

# How long to wait for the writer of a killed run, which may finish a flush
# before it notices.
_PREDECESSOR_SECONDS = 60.0
# Back-pressure: staging waits while this many flushes' worth of rows are
# staged, and flushing while the files of this many flushes wait for the
# database. A slow disk or database then slows down the classifiers, rather
# than filling the queue.
_MAX_BACKLOG = 5


class LabelBuffer:
    """A plain class, which `ray.remote` turns into an actor whose calls may overlap.

    Buffers of disjoint partition dates write concurrently.
    """

    def __init__(
        self,
        lake: Lake,
        integration: str,
        run_id: str,
        database_url: str,
        policy: FlushPolicy,
        dates: Dates = ALL_DATES,
    ) -> None:
        self._lake = lake
        self._labels = resolve(integration).labels
        self._run_id = run_id
        self._policy = policy
        self._dates = dates
        self._lock: Lock | None = None
        self._loader = DatabaseLoader(lake, self._labels, database_url, self._skip)
        self._skipped: dict[str, BadFile] = {}

        # Guards everything below.
        self._changed = threading.Condition()
        # Rows of each staged batch that waits for a flush, and when the
        # oldest was staged.
        self._rows: dict[str, int] = {}
        self._oldest: float | None = None
        # Every durable batch of this run, with its counts if this instance
        # staged it.
        self._taken: dict[str, BatchCounts | None] = {}
        # Label files of each flush that wait for the database.
        self._unloaded: deque[list[str]] = deque()
        self._flush_count = 0
        self._closing = False
        self._flushed_all = False
        self._error: BackfillError | None = None
        self._threads: list[threading.Thread] = []

    def open(self) -> BatchCounts:
        """Recovers what earlier runs have left, before anything is staged.

        The first `stage` would do so otherwise. Raises the same errors.
        """
        with self._changed:
            self._open()
        return BatchCounts(0)

    def stage(self, rows: pa.Table) -> BatchCounts:
        """Makes a batch durable, and returns its counts.

        A repeated batch changes nothing, and the counts are those of what
        the first one stored. Batches repeat when Ray repeats a call, or
        recomputes a block after the death of a node. Posts that failed the
        first time may have answers then; they are left for the next run.

        Raises ConfigError if this batch or an earlier flush could not be
        written.
        """
        known = rows.filter(pc.is_valid(rows["was_successfully_labeled"]))
        counts = count_batch(rows)
        if not len(known):
            return counts

        name = self._batch_name(rows)
        with self._changed:
            lock = self._open()
            self._changed.wait_for(self._has_room)
            self._raise_error()
            if name in self._taken:
                return self._taken[name] or count_stored(self._lake, self._labels, rows)
            self._taken[name] = counts

        try:
            lock.ensure()
            writing.stage(self._lake, self._labels, name, known)
        except BaseException:
            with self._changed:
                self._taken.pop(name, None)
            raise

        with self._changed:
            self._rows[name] = len(known)
            self._oldest = self._oldest or time.monotonic()
            self._changed.notify_all()
        return counts

    def _batch_name(self, rows: pa.Table) -> str:
        """Derived from all posts, because a recomputed block may have fewer failures."""
        revision = str(rows["label_model_revision"][0])
        batch = writing.batch_name(self._labels.integration, revision, rows["uri"].to_pylist())
        return writing.segment_name(self._run_id, batch)

    def close(self) -> str | None:
        """Flushes all staged batches, unless the policy is to never flush.

        Returns why the database is behind the lake, or None if it is not.
        """
        with self._changed:
            lock = self._open()
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        lock.release()

        with self._changed:
            self._raise_error()
        return str(self._loader.behind) if self._loader.behind else None

    def skipped(self) -> list[BadFile]:
        """After `close`: label files that could not be used."""
        return list(self._skipped.values())

    def _open(self) -> Lock:
        """Only on the first call: before, the driver may be reading what recovery would move."""
        if self._lock:
            return self._lock

        lock = Lock(
            self._lake,
            self._labels.integration,
            "buffer",
            self._run_id,
            _PREDECESSOR_SECONDS,
            self._dates,
        )
        try:
            self._recover()
        except BaseException:
            # The next call tries again.
            lock.release()
            raise

        self._lock = lock
        if not self._policy.never:
            self._start(self._flush_until_closed)
            self._start(self._load_until_flushed)
        return lock

    def _recover(self) -> None:
        """Finishes what dead runs have left, and finds the durable batches of this run."""
        lake, labels = self._lake, self._labels
        staged = recover_batches(
            lake, labels, self._run_id, self._policy, self._next_flush_name, self._skip
        )
        flushed = writing.flushed_batches(lake, labels, self._run_id)
        self._taken = dict.fromkeys([*flushed, *staged])
        self._rows = writing.count_staged(lake, labels, staged)
        self._oldest = time.monotonic() if staged else None

    def _skip(self, error: BadFile) -> None:
        if not self._policy.skip_bad_files:
            raise error
        self._skipped[error.path] = error

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(
            target=self._run,
            args=(work,),
            name=work.__name__,
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        """Reports an error of a thread to the next caller, and ends the other thread."""
        try:
            work()
        except BackfillError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - the next caller gets it
            self._fail(BackfillError(f"the label buffer failed ({type(error).__name__}: {error})"))

    def _fail(self, error: BackfillError) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    def _has_room(self) -> bool:
        is_full = sum(self._rows.values()) >= _MAX_BACKLOG * self._policy.rows
        return bool(self._error) or self._policy.never or not is_full

    def _is_flush_due(self) -> bool:
        if self._closing or self._error:
            return True
        waited = time.monotonic() - self._oldest if self._oldest else 0.0
        return sum(self._rows.values()) >= self._policy.rows or waited >= self._policy.seconds

    def _flush_until_closed(self) -> None:
        while not self._flushed_all:
            with self._changed:
                self._changed.wait_for(self._is_flush_due, timeout=1.0)
                if self._error:
                    return
                closing = self._closing
                due = self._is_flush_due()
                batches = dict(self._rows)

            if due:
                self._flush(batches)
            with self._changed:
                self._flushed_all = closing
                self._changed.notify_all()

    def _flush(self, batches: Mapping[str, int]) -> None:
        assert self._lock
        for chunk in self._policy.divide(batches):
            written = writing.flush(
                self._lake,
                self._labels,
                chunk,
                self._next_flush_name(),
                keep=self._policy.keep,
                replace=self._policy.replace,
                ensure=self._lock.ensure,
                on_bad=self._skip,
            )
            with self._changed:
                for name in chunk:
                    del self._rows[name]
                self._oldest = time.monotonic() if self._rows else None
                self._unloaded.append(written)
                self._changed.notify_all()
                self._changed.wait_for(lambda: len(self._unloaded) < _MAX_BACKLOG or self._error)
                self._raise_error()

    def _next_flush_name(self) -> str:
        """Unique, also after a restart of this actor."""
        self._flush_count += 1
        return f"{self._run_id}-{time.time_ns():x}-{self._flush_count}"

    def _load_until_flushed(self) -> None:
        """Loads label files flush by flush; at the end all that the database may still lack."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unloaded or self._flushed_all or self._error)
                if self._error:
                    return
                # Opening the database loads all files that it lacks, so all
                # that wait now.
                flushes = list(self._unloaded)[: 1 if self._loader.is_open else None]

            if not flushes or self._loader.is_due:
                self._loader.load([path for paths in flushes for path in paths])
            if not flushes:
                return

            with self._changed:
                for _ in flushes:
                    self._unloaded.popleft()
                self._changed.notify_all()
