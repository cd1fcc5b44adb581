"""Writing files while a lock is held that, on S3, another may have taken over meanwhile.

Nothing stops a request that was on its way when its sender was stopped. So the writer asks for its
lock after each file as well. Where it has lost it, the one who took over has either seen the file
and counts on it, or has not and writes the same posts. So a late file is removed only where files
of a later run hold each of its posts, and whoever takes over removes what came late while it worked
(`remove_late`). Of two files it is always the earlier run's that goes, so that not both do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import BackfillError, FileGone
from datasets.lake import Lake
from datasets.locking.locks import Lock
from datasets.posts import read_uris

_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Writer:
    """A run that writes files of a dataset, with its id in each name as the last of the ids there."""

    lake: Lake
    dataset: str
    run_id: str
    locks: Sequence[Lock]

    def ensure(self) -> None:
        """Raises ConfigError where a lock was lost."""
        for lock in self.locks:
            lock.ensure()

    @contextmanager
    def writing(self, path: str, day: str, uris: pa.Array | pa.ChunkedArray) -> Iterator[None]:
        """Around writing a file of these posts; raises ConfigError where a lock was lost before or meanwhile."""
        self.ensure()
        yield
        try:
            self.ensure()
        except BackfillError:
            with suppress(BackfillError):  # the first error is the one to tell
                self._remove_if_held(path, day, uris, lambda run_id: run_id > self.run_id)
            raise

    def remove_late(self, before: set[str], alike: Callable[[str], bool]) -> None:
        """Removes files that came after one's own listing, and whose posts one has written too.

        Of those that are written by runs like this one, as `alike` tells by their paths, and are earlier.
        """
        for day, paths in self.lake.partitions(self.dataset).items():
            for path in paths:
                if path not in before and alike(path) and _run_of(path) < self.run_id:
                    self.ensure()
                    with suppress(FileGone):  # its writer was quicker
                        uris = read_uris(self.lake, [path])
                        self._remove_if_held(path, day, uris, lambda run_id: run_id == self.run_id)

    def _remove_if_held(
        self, path: str, day: str, uris: pa.Array | pa.ChunkedArray, counts: Callable[[str], bool]
    ) -> None:
        paths = self.lake.partitions(self.dataset, day, day).get(day, [])
        others = read_uris(
            self.lake, [other for other in paths if other != path and counts(_run_of(other))]
        )
        if pc.all(pc.is_in(uris, value_set=others)).as_py():
            self.lake.delete(path)


def _run_of(path: str) -> str:
    """The id of the run that wrote a file, '' for files of others."""
    found: list[str] = _RUN_ID.findall(path.rpartition("/")[2])
    return found[-1] if found else ""
