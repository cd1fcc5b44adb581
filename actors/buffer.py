"""The label buffer: the one writer of an integration's labels in a run.

`stage` acknowledges a batch when it is durable; a thread flushes what is staged, by size or by age,
to the lake, and another loads what was flushed from there into the database. What is on disk is in
datasets/labels/writing.py; held here is only which batches and files wait. So the actor may die at any
moment: its successor reads the disk and goes on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from actors.integrations import resolve
from datasets.database import Database, open_database
from datasets.database_sync import OnFill, fill, load
from datasets.errors import BackfillError, BadFile, RetryableError
from datasets.labels import writing
from datasets.labels.reading import labelled_uris
from datasets.lake import Lake
from datasets.locking.locks import ALL_DATES, Dates, Lock, live_runs
from datasets.schemas import PARTITION_DATE

# The writer of a killed run may finish a flush before it notices.
_PREDECESSOR_SECONDS = 60.0
# Another run may be taking up much that was staged.
_RECOVERY_SECONDS = 600.0
# Staging waits while this many flushes' worth of rows are staged, and flushing while the files of so
# many wait for the database: what is slow slows the classifiers down instead of filling the queue.
_BACKLOG = 5
# A connection that hangs holds a flush up for ten seconds. So not each of them tries again.
_DATABASE_SECONDS = 30.0
# Why a post of a batch that was made again is left for the next run though it has an answer now.
_ANSWERED_LATE = "answered_late"


@dataclass(frozen=True)
class FlushPolicy:
    """Flush when `rows` are staged or the oldest has waited `seconds`.

    `never` leaves all in the output queue, for a write phase. `keep` leaves what is flushed in the
    queue too, for a clear phase. `replace` takes older, rejected rows of the same posts out.
    `skip_bad_files` goes on without label files that cannot be used.
    """

    rows: int = 100_000
    seconds: float = 300.0
    never: bool = False
    keep: bool = False
    replace: bool = False
    skip_bad_files: bool = False


@dataclass(frozen=True)
class Receipt:
    """What a batch held. `failed` and `rejected` count posts by reason."""

    labelled: int
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


class LabelBuffer:
    """A plain class; `ray.remote` makes it an actor whose calls may overlap.

    Buffers of disjoint partition dates write side by side.
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
        self._lake, self._run_id, self._url, self._policy, self._dates = (
            lake,
            run_id,
            database_url,
            policy,
            dates,
        )
        self._labels = resolve(integration).labels
        self._lock: Lock | None = None
        self._database: Database | None = None
        self._changed = threading.Condition()
        self._rows: dict[str, int] = {}  # staged batches that wait for a flush
        # Every batch of this run that is durable, with its receipt if it was staged in this life.
        self._taken: dict[str, Receipt | None] = {}
        self._flushes = 0
        # Label files of each flush that wait for the database.
        self._unloaded: deque[list[str]] = deque()
        self._flushed = False  # after the last flush
        self._oldest: float | None = None
        self._closing = False
        self._error: BackfillError | None = None
        self._behind: RetryableError | None = None
        self._skipped: dict[str, BadFile] = {}
        self._try_again = 0.0
        self._threads: list[threading.Thread] = []

    def open(self) -> Receipt:
        """What the first `stage` would do before it, while nothing is labelled yet. Raises what that would."""
        with self._changed:
            self._open()
        return Receipt(0)

    def stage(self, rows: pa.Table) -> Receipt:
        """Makes a batch durable. The same batch again changes nothing, and its receipt says what the first has stored.

        Again is a call that Ray repeats, or a block that is made anew after the death of a node: then posts that
        had failed the first time may have answers, which are not stored; they are left for the next run.

        Raises ConfigError where this or an earlier flush could not write.
        """
        known = rows.filter(pc.is_valid(rows["was_successfully_labeled"]))
        receipt = _receipt(rows)
        if not len(known):
            return receipt
        revision = str(rows["label_model_revision"][0])
        # Named by all posts: after the death of a node a block may come again, with answers that had failed before.
        batch = writing.batch_name(self._labels.integration, revision, rows["uri"].to_pylist())
        name = writing.segment_name(self._run_id, batch)
        with self._changed:
            lock = self._open()
            self._changed.wait_for(self._has_room)
            self._raise_error()
            if name in self._taken:
                return self._taken[name] or self._receipt_of_stored(rows)
            self._taken[name] = receipt
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
        return receipt

    def _receipt_of_stored(self, rows: pa.Table) -> Receipt:
        """The receipt of a batch that was staged in an earlier life, from what the queue and the lake have of it."""
        uris_of = labelled_uris(self._lake, self._labels)
        days = pc.unique(rows[PARTITION_DATE]).to_pylist()
        stored = pa.chunked_array(
            [chunk for day in days for chunk in uris_of(day).chunks], pa.string()
        )

        succeeded = rows["was_successfully_labeled"]
        late = pc.and_(pc.is_valid(succeeded), pc.invert(pc.is_in(rows["uri"], value_set=stored)))
        outcomes = {
            "was_successfully_labeled": pc.if_else(late, None, succeeded),
            "reason": pc.if_else(late, _ANSWERED_LATE, rows["reason"]),
        }
        return _receipt(pa.table(outcomes))

    def close(self) -> str | None:
        """Flushes all that is staged, unless the policy says never. None, or why the database is behind the lake."""
        with self._changed:
            lock = self._open()
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        lock.release()
        with self._changed:
            self._raise_error()
        return str(self._behind) if self._behind else None

    def skipped(self) -> list[BadFile]:
        """Label files that could not be used, after `close`."""
        return list(self._skipped.values())

    def _open(self) -> Lock:
        """On the first call, because until then the driver may still be reading what recovery would move."""
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
            self._take_up()
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        for work in (
            () if self._policy.never else (self._flush_until_closed, self._load_until_flushed)
        ):
            thread = threading.Thread(
                target=self._work, args=(work,), name=work.__name__, daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return lock

    def _take_up(self) -> None:
        """What dead runs have left, and what is durable of this one."""
        lake, labels, policy = self._lake, self._labels, self._policy
        with Lock(lake, labels.integration, "recover", self._run_id, _RECOVERY_SECONDS) as recovery:
            live = live_runs(lake, labels.integration, besides=self._run_id)
            writing.recover(lake, labels, live, recovery.ensure, self._skip)
            if not (policy.never or policy.keep):
                writing.drop_written(lake, labels)
            staged = writing.staged(lake, labels)
            mine = [name for name in staged if writing.run_of(name) == self._run_id]
            left = writing.left_by_dead(
                lake, labels, [name for name in staged if name not in mine], live
            )
            for names in (
                [] if policy.never else self._chunks(writing.count_staged(lake, labels, left))
            ):
                writing.adopt(
                    lake, labels, names, self._next_name(),
                    keep=policy.keep, ensure=recovery.ensure, on_bad=self._skip,
                )  # fmt: skip
        self._taken = dict.fromkeys([*writing.flushed_batches(lake, labels, self._run_id), *mine])
        self._rows = writing.count_staged(lake, labels, mine)
        self._oldest = time.monotonic() if mine else None

    def _chunks(self, rows: Mapping[str, int]) -> Iterator[list[str]]:
        """The batches, at most the policy's rows at a time (at least one batch)."""
        chunk: list[str] = []
        for name, count in rows.items():
            if chunk and sum(rows[earlier] for earlier in chunk) + count > self._policy.rows:
                yield chunk
                chunk = []
            chunk.append(name)
        if chunk:
            yield chunk

    def _has_room(self) -> bool:
        waiting = sum(self._rows.values())
        return bool(self._error) or self._policy.never or waiting < _BACKLOG * self._policy.rows

    def _raise_error(self) -> None:
        if self._error:
            raise self._error

    def _work(self, work: Callable[[], None]) -> None:
        """A thread's error reaches the next caller, and ends the other thread."""
        try:
            work()
        except BackfillError as error:
            self._stop(error)
        except Exception as error:  # noqa: BLE001 - nothing may be swallowed
            self._stop(BackfillError(f"the label buffer failed ({type(error).__name__}: {error})"))

    def _flush_until_closed(self) -> None:
        while not self._flushed:
            with self._changed:
                self._changed.wait_for(self._due, timeout=1.0)
                if self._error:
                    return
                closing, due = self._closing, self._due()
                batches = dict(self._rows)
            if due:
                self._flush(batches)
            with self._changed:
                self._flushed = closing
                self._changed.notify_all()

    def _due(self) -> bool:
        if self._closing or self._error:
            return True
        waited = time.monotonic() - self._oldest if self._oldest else 0.0
        return sum(self._rows.values()) >= self._policy.rows or waited >= self._policy.seconds

    def _flush(self, batches: Mapping[str, int]) -> None:
        assert self._lock
        for chunk in self._chunks(batches):
            written = writing.flush(
                self._lake, self._labels, chunk, self._next_name(),
                keep=self._policy.keep, replace=self._policy.replace, ensure=self._lock.ensure, on_bad=self._skip,
            )  # fmt: skip
            with self._changed:
                for name in chunk:
                    del self._rows[name]
                self._oldest = time.monotonic() if self._rows else None
                self._unloaded.append(written)
                self._changed.notify_all()
                self._changed.wait_for(lambda: len(self._unloaded) < _BACKLOG or self._error)
                self._raise_error()

    def _next_name(self) -> str:
        """New for each flush, also after a restart of this actor."""
        self._flushes += 1
        return f"{self._run_id}-{time.time_ns():x}-{self._flushes}"

    def _load_until_flushed(self) -> None:
        """Loads the label files of a flush at a time; at the end all that are missing, where some may be.

        A database that does not answer costs no label: the lake goes on, and a later flush tries again.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unloaded or self._flushed or self._error)
                if self._error:
                    return
                # Opening the database loads all that is missing there, so all that waits now.
                flushes = list(self._unloaded)[: 1 if self._database else None]
            if not flushes or not self._behind or time.monotonic() >= self._try_again:
                self._load([path for paths in flushes for path in paths])
            if not flushes:
                return
            with self._changed:
                for _ in flushes:
                    self._unloaded.popleft()
                self._changed.notify_all()

    def _load(self, paths: Sequence[str]) -> None:
        try:
            if self._database is None:
                self._database = open_database(self._url)
                fill(
                    self._lake,
                    self._labels,
                    self._database,
                    ours_only=True,
                    tell=OnFill(bad_file=self._skip),
                )
            elif paths:
                load(self._lake, self._labels, self._database, paths)
            self._behind = None
        except RetryableError as error:
            self._behind, self._try_again = error, time.monotonic() + _DATABASE_SECONDS
            if self._database is not None:
                self._database.close()
            self._database = None

    def _skip(self, error: BadFile) -> None:
        if not self._policy.skip_bad_files:
            raise error
        self._skipped[error.path] = error

    def _stop(self, error: BackfillError) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()


def _receipt(rows: pa.Table) -> Receipt:
    succeeded = rows["was_successfully_labeled"]

    def reasons(mask: pa.ChunkedArray) -> Counter[str]:
        counts = pc.value_counts(rows["reason"].filter(mask)).to_pylist()
        return Counter({entry["values"]: entry["counts"] for entry in counts})

    rejected = pc.fill_null(pc.invert(succeeded), False)
    return Receipt(
        pc.sum(succeeded).as_py() or 0, reasons(rejected), reasons(pc.is_null(succeeded))
    )
