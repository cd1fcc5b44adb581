from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from actors.remote.rate_limiter import Activity
from backfill import progress
from backfill.labels.stall_diagnosis import diagnose_actors, diagnose_api
from backfill.progress import IntegrationProgress, Progress


def actor(state: str, *, address: str = "192.0.2.1", restarts: int = 0) -> dict[str, Any]:
    return {"State": state, "Address": {"IPAddress": address}, "NumRestarts": restarts}


@pytest.mark.parametrize(
    ("actors", "api", "sentence"),
    [
        ([actor("PENDING_CREATION", address="")], None, "1 of its actors wait for a place"),
        (
            [actor("DEPENDENCIES_UNREADY", address=""), actor("ALIVE")],
            None,
            "which has 0.5 CPU and 0 GPU free",
        ),
        (
            [actor("PENDING_CREATION"), actor("ALIVE")],
            None,
            "1 of the run's actors are still loading their models",
        ),
        ([actor("ALIVE", restarts=3)], None, "died 3 times"),
        ([actor("ALIVE")], Activity(), "the API does not answer"),
        ([actor("ALIVE")], None, "at work on their batches"),
    ],
)
def test_a_wait_is_explained_by_what_can_be_seen(
    actors: list[dict[str, Any]], api: Activity | None, sentence: str
) -> None:
    assert sentence in diagnose_actors(actors, {"CPU": 0.5, "GPU": 0.0}, api)


@pytest.mark.parametrize(
    ("api", "sentence"),
    [
        (
            Activity(60, 1.0, True),
            "the API answers, as fast as its quota lets it; answers so far: 60, the last 1 s ago",
        ),
        (
            Activity(7, 80.0, True, pause=0.3),
            "the API answers, as fast as its quota lets it; answers so far: 7, the last",
        ),
        (
            Activity(60, 90.0),
            "the API has stopped answering; what is sent is tried again; answers so far: 60",
        ),
        (Activity(), "the API does not answer; what is sent is tried again"),
        (
            Activity(60, 1.0, True, pause=1800.0),
            "the API asked for a pause until 2027-01-15 08:30 UTC; answers so far: 60",
        ),
    ],
)
def test_an_api_that_answers_is_told_from_one_that_does_not(api: Activity, sentence: str) -> None:
    assert diagnose_api(api, now=1_800_000_000.0).startswith(sentence)


def test_only_what_stalls_is_said_and_not_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    moving, still, over = (
        IntegrationProgress(eligible=10**6),
        IntegrationProgress(eligible=10, labelled=1),
        IntegrationProgress(eligible=10, seconds=1.0),
    )
    stream = io.StringIO()
    shown = Progress(stream, {"moving": moving, "still": still, "over": over})
    now[0] = 900.0
    shown._say_stalls()  # while posts are selected, nothing is expected
    shown.report_stalls(lambda name: f"because of {name}")
    for second in range(900, 1500):
        now[0] = float(second)
        moving.labelled += 1
        if second == 1300:
            still.retryable["http_503"] += 1
        shown._say_stalls()
    assert stream.getvalue().splitlines() == [
        "still: nothing labelled for 1 min 0 s: because of still",
        "still: nothing labelled for 2 min 0 s: because of still",
        "still: nothing labelled for 4 min 0 s: because of still",
        "still: nothing labelled for 1 min 0 s: because of still",
        "still: nothing labelled for 2 min 0 s: because of still",
    ]


def test_a_slow_pace_is_not_shown_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tally = IntegrationProgress(eligible=100)
    shown = Progress(io.StringIO(), {"slow": tally})
    shown._line()
    now[0], tally.labelled = 20.0, 10
    assert shown._line() == "10 of 100 posts, 0.5/s, 3 min 0 s left, 0 rejected"
