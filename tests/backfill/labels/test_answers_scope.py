"""What a run's answers are for, as the command that started it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backfill.labels.post_filter import PostFilter
from backfill.labels.run import _run_scope
from datasets.answer_store import RunScope
from datasets.posts import Sample

POSTS = PostFilter("posts", "2024-10-01", "2024-10-31")


def scope_of(scope: PostFilter, run_id: str = "run-1") -> RunScope:
    return _run_scope(run_id, "run", {**scope.as_dict(), "integrations": [run_id]}, scope.dates)


def test_the_same_command_is_of_the_same_kind_whatever_its_dates() -> None:
    first, again = scope_of(POSTS), scope_of(POSTS, "run-2")
    assert first == replace(again, run_id="run-1")
    longer = scope_of(replace(POSTS, start="2024-09-01"))
    assert longer.kind == first.kind
    assert longer.dates == ("2024-09-01", "2024-10-31")
    assert first.whole
    assert not first.retry_rejected


@pytest.mark.parametrize(
    "changes",
    [
        {"record_type": "posts_used_in_feeds"},
        {"limit": 5},
        {"sample": Sample(0.5)},
        {"retry_rejected": True},
    ],
)
def test_a_command_that_selects_otherwise_is_of_another_kind(changes: dict[str, Any]) -> None:
    scope = scope_of(replace(POSTS, **changes))
    assert scope.kind != scope_of(POSTS).kind
    assert scope.retry_rejected == ("retry_rejected" in changes)
    assert scope.whole == ("limit" not in changes)
