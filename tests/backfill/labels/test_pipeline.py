from __future__ import annotations

import pytest

from actors.classifiers import perspective
from actors.integrations import Environment
from backfill.labels.pipeline import api_block_rows


@pytest.mark.parametrize(
    ("requests", "group", "rows"),
    [
        (1.0, 1, 10),
        (0.01, 1, 1),
        (6.0, 1, 60),
        (100.0, 1, 64),
        (0.05, 10, 10),
        (0.5, 10, 50),
        (8.0, 10, 64),
    ],
)
def test_at_a_slow_quota_a_block_is_what_ten_seconds_give(
    requests: float, group: int, rows: int
) -> None:
    """So labels come in all the time, and a healthy run does not look dead."""
    remote = perspective.remote(
        perspective.Settings(qps=requests), Environment(PERSPECTIVE_API_KEY="k")
    )
    remote.api.group = group
    assert api_block_rows(remote, most=64) == rows
