"""Which posts a command is about, and finding them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from actors.integrations import Integration
from datasets.errors import BadFile
from datasets.labels.reading import labelled_uris
from datasets.lake import Lake
from datasets.locking.locks import Dates
from datasets.posts import (
    OnBadFile,
    Sample,
    Selection,
    UrisOf,
    day_after,
    post_sources,
    raise_bad_file,
    select,
)

RecordType = Literal["posts", "posts_used_in_feeds"]
FEED_LOOKBACK_DAYS = 4


@dataclass(frozen=True)
class PostFilter:
    """Inclusive dates (YYYY-MM-DD), of feeds for `posts_used_in_feeds`."""

    record_type: RecordType
    start: str
    end: str
    limit: int | None = None
    sample: Sample | None = None
    lookback_days: int = FEED_LOOKBACK_DAYS
    retry_rejected: bool = False

    @property
    def dates(self) -> Dates:
        """Partition dates that its posts may have."""
        lookback = self.lookback_days if self.record_type == "posts_used_in_feeds" else 0
        return day_after(self.start, -lookback), self.end

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class BadFiles:
    """What to do about files that cannot be used: stop at the first, or skip and remember."""

    skip: bool = False
    skipped: list[BadFile] = field(default_factory=list)

    def __call__(self, error: BadFile) -> None:
        if not self.skip:
            raise error
        if error.path not in [known.path for known in self.skipped]:
            self.skipped.append(error)


def find_posts(
    lake: Lake,
    scope: PostFilter,
    excluded: Mapping[str, UrisOf],
    on_bad: OnBadFile = raise_bad_file,
    on_found: Callable[[], None] = lambda: None,
) -> dict[str, Selection]:
    """For each name, the posts of the scope without those that its URIs leave out."""
    sources = post_sources(
        lake, scope.record_type, scope.start, scope.end, scope.lookback_days, on_bad
    )
    return select(lake, sources, excluded, scope.sample, scope.limit, on_bad, on_found)


def unlabelled(
    lake: Lake,
    chosen: Sequence[Integration],
    *,
    retry_rejected: bool,
    on_bad: OnBadFile = raise_bad_file,
) -> dict[str, UrisOf]:
    """What each integration leaves out: its labels."""
    return {
        integration.name: labelled_uris(
            lake, integration.labels, retry_rejected=retry_rejected, on_bad=on_bad
        )
        for integration in chosen
    }
