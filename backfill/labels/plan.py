"""The plan: the selection of a run, counted. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

from actors.integrations import Integration
from backfill.labels.post_filter import BadFiles, PostFilter, find_posts, unlabelled
from backfill.workspace import Workspace
from datasets.errors import ConfigError


def plan(
    workspace: Workspace, scope: PostFilter, chosen: Sequence[Integration], bad_files: BadFiles
) -> dict[str, dict[str, int]]:
    """Integration → partition date → posts that a run would label."""
    if not workspace.lake.exists(""):
        raise ConfigError(
            f"there is no data folder {workspace.lake.root}; set --data-dir or BACKFILL_DATA_DIR"
        )
    excluded = unlabelled(
        workspace.lake, chosen, retry_rejected=scope.retry_rejected, on_bad=bad_files
    )
    found = find_posts(workspace.lake, scope, excluded, bad_files)
    return {name: selection.by_date() for name, selection in found.items()}
