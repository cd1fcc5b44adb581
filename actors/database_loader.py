"""Loading label files into the database, which may be unreachable for a while."""

from __future__ import annotations

import time
from collections.abc import Sequence

from datasets.database import Database, open_database
from datasets.database_sync import OnFill, fill, load
from datasets.errors import RetryableError
from datasets.labels.reading import Labels
from datasets.lake import Lake
from datasets.posts import OnBadFile

# A connection attempt may hang for ten seconds, so not every flush tries
# again.
_RETRY_SECONDS = 30.0


class DatabaseLoader:
    """Loads the label files of one integration, from the lake.

    `behind` is why the database lacks some of them, or None. An unreachable
    database loses no label: the next load that succeeds loads all files
    that it lacks. `on_bad` is called for label files that cannot be used.
    """

    def __init__(
        self,
        lake: Lake,
        labels: Labels,
        url: str,
        on_bad: OnBadFile,
    ) -> None:
        self.behind: RetryableError | None = None
        self._lake = lake
        self._labels = labels
        self._url = url
        self._on_bad = on_bad
        self._database: Database | None = None
        self._next_attempt = 0.0

    @property
    def is_open(self) -> bool:
        return self._database is not None

    @property
    def is_due(self) -> bool:
        """False for a while after the database could not be reached."""
        return self.behind is None or time.monotonic() >= self._next_attempt

    def load(self, paths: Sequence[str]) -> None:
        """Loads these files.

        When it first opens the database, loads all that it lacks.
        """
        try:
            if self._database is None:
                self._database = open_database(self._url)
                on_fill = OnFill(bad_file=self._on_bad)
                fill(
                    self._lake,
                    self._labels,
                    self._database,
                    ours_only=True,
                    tell=on_fill,
                )
            elif paths:
                load(self._lake, self._labels, self._database, paths)
            self.behind = None
        except RetryableError as error:
            self.behind = error
            self._next_attempt = time.monotonic() + _RETRY_SECONDS
            if self._database is not None:
                self._database.close()
            self._database = None
