from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from backfill import progress
from backfill.progress import Progress, Tally
from backfill.stalls import explain


def actor(state: str, *, address: str = "192.0.2.1", restarts: int = 0) -> dict[str, Any]:
    return {"State": state, "Address": {"IPAddress": address}, "NumRestarts": restarts}


@pytest.mark.parametrize(
    ("actors", "api", "sentence"),
    [
        ([actor("PENDING_CREATION", address="")], False, "1 of its actors wait for a place"),
        ([actor("DEPENDENCIES_UNREADY", address=""), actor("ALIVE")], False, "which has 0.5 CPU and 0 GPU free"),
        ([actor("PENDING_CREATION"), actor("ALIVE")], False, "1 of the run's actors are still loading their models"),
        ([actor("ALIVE", restarts=3)], False, "died 3 times"),
        ([actor("ALIVE")], True, "the API does not answer, or has asked for a pause"),
        ([actor("ALIVE")], False, "at work on their batches"),
    ],
)
def test_a_wait_is_explained_by_what_can_be_seen(actors: list[dict[str, Any]], api: bool, sentence: str) -> None:
    assert sentence in explain(actors, {"CPU": 0.5, "GPU": 0.0}, api=api)


def test_only_what_stalls_is_said_and_not_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    moving, still, over = Tally(eligible=10**6), Tally(eligible=10, labelled=1), Tally(eligible=10, seconds=1.0)
    stream = io.StringIO()
    shown = Progress(stream, {"moving": moving, "still": still, "over": over})
    now[0] = 900.0
    shown._say_what_stalls()  # while posts are selected, nothing is expected
    shown.watch(lambda name: f"because of {name}")
    for second in range(900, 1500):
        now[0] = float(second)
        moving.labelled += 1
        if second == 1300:
            still.retryable["http_503"] += 1
        shown._say_what_stalls()
    assert stream.getvalue().splitlines() == [
        "still: nothing labelled for 1 min 0 s: because of still",
        "still: nothing labelled for 2 min 0 s: because of still",
        "still: nothing labelled for 4 min 0 s: because of still",
        "still: nothing labelled for 1 min 0 s: because of still",
        "still: nothing labelled for 2 min 0 s: because of still",
    ]
