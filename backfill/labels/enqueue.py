"""The enqueue phase: eligible posts from the lake into the input queues."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa

from actors.integrations import Integration
from backfill.labels.post_filter import BadFiles, PostFilter, find_posts, unlabelled
from backfill.workspace import Workspace
from datasets import queues
from datasets.lake import Lake
from datasets.posts import Selection, UrisOf, read_part, read_uris

# Posts of one segment: a run phase holds the rest of one segment in memory.
SEGMENT_ROWS = 50_000


def enqueue(
    workspace: Workspace,
    source: Lake,
    scope: PostFilter,
    chosen: Sequence[Integration],
    bad_files: BadFiles,
) -> dict[str, int]:
    """Posts of `source` that are neither labelled (there or here) nor queued yet; the number by integration."""
    workspace.lake.check()
    at = datetime.now(UTC)
    here = unlabelled(workspace.lake, chosen, retry_rejected=scope.retry_rejected, on_bad=bad_files)
    there = (
        unlabelled(source, chosen, retry_rejected=scope.retry_rejected, on_bad=bad_files)
        if source != workspace.lake
        else {}
    )
    excluded = {
        i.name: _any_of(
            [
                here[i.name],
                _queued_uris(workspace.lake, i.name),
                *([there[i.name]] if there else []),
            ]
        )
        for i in chosen
    }
    found = find_posts(source, scope, excluded, bad_files)
    for name, selection in found.items():
        _write_segments(workspace.lake, source, name, selection, at)
    return {name: selection.total for name, selection in found.items()}


def _any_of(sources: Sequence[UrisOf]) -> UrisOf:
    def uris_of(day: str) -> pa.ChunkedArray:
        return pa.chunked_array(
            [chunk for source in sources for chunk in source(day).chunks], pa.string()
        )

    return uris_of


def _queued_uris(lake: Lake, integration: str) -> UrisOf:
    segments = queues.queued_posts(lake, integration)
    return lambda day: read_uris(lake, segments.get(day, ()))


def _write_segments(
    lake: Lake, source: Lake, integration: str, selection: Selection, at: datetime
) -> None:
    pending: list[pa.Table] = []
    day = ""

    def flush() -> None:
        if pending:
            queues.enqueue(lake, integration, pa.concat_tables(pending), at)
            pending.clear()

    for part in selection.parts:
        if part.date != day:
            flush()
            day = part.date
        for posts in read_part(source, part):
            pending.append(posts)
            if sum(map(len, pending)) >= SEGMENT_ROWS:
                flush()
    flush()
