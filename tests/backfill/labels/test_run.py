"""The fused run and the phases, end to end on a real Ray, from Parquet to Parquet and SQLite."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from actors.flush_policy import FlushPolicy
from actors.integrations import resolve
from backfill.config import RunSettings
from backfill.labels import phases
from backfill.labels.enqueue import enqueue
from backfill.labels.plan import plan
from backfill.labels.post_filter import BadFiles, PostFilter, find_posts
from backfill.labels.result import RunResult
from backfill.labels.run import label_all, run
from backfill.labels.status import rebuild_database, status
from backfill.workspace import Workspace, open_workspace
from datasets.errors import BadFile, ConfigError
from datasets.locking.locks import Lock
from datasets.posts import Selection, no_uris
from tests.support import (
    DAY,
    VALENCE,
    assert_labelled_once,
    database_labels,
    lake_labels,
    make_lake,
    make_uri,
    post,
    queue_files,
    write_partition,
    write_posts,
)

DAYS = (DAY, "2024-10-02")
VALENCES = [resolve(VALENCE)]
pytestmark = pytest.mark.usefixtures("ray_here")


def workspace_of(root: Path) -> Workspace:
    return open_workspace(str(root), None, None, None, debug=False)


def scope(**changes: Any) -> PostFilter:
    return replace(PostFilter("posts", *DAYS), **changes)


def run_valence(root: Path, **changes: Any) -> RunResult:
    return run(workspace_of(root), scope(**changes), VALENCES, BadFiles(), io.StringIO())


def counts(result: RunResult) -> tuple[int, int, int, int]:
    found = result.integrations[VALENCE]
    return found.eligible, found.labelled, found.rejected.total(), found.failed


def test_a_run_labels_each_eligible_post_once_and_a_second_run_does_nothing(lake_dir: Path) -> None:
    uris = make_lake(lake_dir)
    result = run_valence(lake_dir)
    assert (counts(result), result.exit_code) == ((80, 80, 0, 0), 0)
    assert_labelled_once(lake_dir, uris)
    analyzer = SentimentIntensityAnalyzer()
    for row in lake_labels(lake_dir):
        assert row["compound"] == analyzer.polarity_scores(row["text"])["compound"]
        assert (row["label_model"], row["run_id"]) == ("vaderSentiment", result.run_id)
    before = {
        path: path.stat().st_mtime_ns for path in lake_dir.glob("ml_inference_*/**/*.parquet")
    }
    again = run_valence(lake_dir)
    assert (counts(again), again.exit_code) == ((0, 0, 0, 0), 0)
    assert before == {
        path: path.stat().st_mtime_ns for path in lake_dir.glob("ml_inference_*/**/*.parquet")
    }
    recorded = status(workspace_of(lake_dir), None, None, BadFiles()).runs
    assert [(r["run_id"], r["exit_code"]) for r in recorded] == [
        (again.run_id, 0),
        (result.run_id, 0),
    ]


def test_a_posts_file_that_is_rewritten_after_the_selection_costs_the_run_and_no_label(
    lake_dir: Path,
) -> None:
    """With as many rows as before: only their number was compared."""
    uris = make_lake(lake_dir)
    [path] = lake_dir.glob(f"preprocessed_posts/cache/partition_date={DAY}/*.parquet")
    workspace = workspace_of(lake_dir)

    def find(on_found: Callable[[], None]) -> Mapping[str, Selection]:
        found = find_posts(workspace.lake, scope(), {VALENCE: no_uris}, on_found=on_found)
        write_posts(lake_dir, DAY, [post(n) for n in range(500, 540)])
        return found

    result = label_all(workspace, VALENCES, find, FlushPolicy(), "run", {}, io.StringIO())
    error = str(result.integrations[VALENCE].error)
    assert (
        result.exit_code,
        f"{path} changed while it was read; run the command again" in error,
    ) == (1, True), error
    assert run_valence(lake_dir).exit_code == 0
    assert_labelled_once(lake_dir, {**uris, DAY: {make_uri(n) for n in range(500, 540)}})


def test_awkward_texts_are_labelled_and_stored_unchanged(lake_dir: Path) -> None:
    texts = [
        "nul\x00here",
        "quo\"te's; DROP TABLE x",
        "עברית",
        "x" * 20_000,
        "line\nbreak",
        "\\x00",
        "😀",
    ]
    write_posts(lake_dir, DAY, [post(n, text=text) for n, text in enumerate(texts)])
    assert counts(run_valence(lake_dir, end=DAY)) == (7, 7, 0, 0)
    assert sorted(row["text"] for row in lake_labels(lake_dir)) == sorted(texts)
    assert sorted(row[1] for row in database_labels(lake_dir)) == sorted(texts)


def test_the_phases_one_by_one_give_the_same_as_a_run(tmp_path: Path) -> None:
    fused, phased = tmp_path / "fused", tmp_path / "phased"
    for root in (fused, phased):
        uris = make_lake(root)
    run_valence(fused)
    workspace = workspace_of(phased)
    assert enqueue(workspace, workspace.lake, scope(), VALENCES, BadFiles()) == {VALENCE: 80}
    assert enqueue(workspace, workspace.lake, scope(), VALENCES, BadFiles()) == {VALENCE: 0}, (
        "queued posts are not queued again"
    )
    first = phases.run_queued(workspace, VALENCES, None, 30, io.StringIO())
    assert (counts(first), status(workspace, None, None, BadFiles()).queues[VALENCE]) == (
        (30, 30, 0, 0),
        {"input": 50, "output": 30},
    )
    phases.run_queued(workspace, VALENCES, None, None, io.StringIO())
    assert status(workspace, None, None, BadFiles()).queues[VALENCE] == {"input": 0, "output": 80}
    assert lake_labels(phased) == []
    assert plan(workspace, scope(), VALENCES, BadFiles()) == {VALENCE: {}}, (
        "what is staged is labelled"
    )
    assert phases.write(workspace, VALENCES) == {VALENCE: phases.Written(80, 80)}
    assert phases.write(workspace, VALENCES) == {VALENCE: phases.Written(0, 80)}
    assert status(workspace, None, None, BadFiles()).queues[VALENCE]["output"] == 80
    phases.clear(workspace, VALENCES, ["output"])
    assert_labelled_once(phased, uris)
    columns = ("uri", "text", "compound", "valence_label", "partition_date")
    labels = [
        sorted(tuple(row[c] for c in columns) for row in lake_labels(root))
        for root in (fused, phased)
    ]
    assert labels[0] == labels[1]


def test_only_what_was_enqueued_in_the_period_is_run(lake_dir: Path) -> None:
    make_lake(lake_dir)
    workspace = workspace_of(lake_dir)
    enqueue(workspace, workspace.lake, scope(end=DAY), VALENCES, BadFiles())
    for segment in (lake_dir / "queues/input" / VALENCE).iterdir():
        segment.rename(segment.with_name("20240101T000000Z" + segment.name[16:]))
    enqueue(workspace, workspace.lake, scope(), VALENCES, BadFiles())
    recent = phases.run_queued(workspace, VALENCES, timedelta(hours=1), None, io.StringIO())
    assert counts(recent) == (40, 40, 0, 0)
    assert status(workspace, None, None, BadFiles()).queues[VALENCE] == {"input": 40, "output": 40}


def test_feed_posts_are_labelled_in_their_own_partitions_also_before_the_start(
    lake_dir: Path,
) -> None:
    uris = make_lake(lake_dir, 10)
    shown = [*sorted(uris[DAYS[0]])[:3], *sorted(uris[DAYS[1]])[:2]]
    write_partition(lake_dir, "fetch_posts_used_in_feeds", DAYS[1], [{"uri": uri} for uri in shown])
    feeds = {"record_type": "posts_used_in_feeds", "start": DAYS[1]}
    assert counts(run_valence(lake_dir, **feeds)) == (5, 5, 0, 0)
    assert_labelled_once(lake_dir, {DAYS[0]: shown[:3], DAYS[1]: shown[3:]})
    assert counts(run_valence(lake_dir, **feeds)) == (0, 0, 0, 0)
    assert counts(run_valence(lake_dir)) == (15, 15, 0, 0)
    assert_labelled_once(lake_dir, uris)


def test_a_limited_run_leaves_the_rest_to_the_next(lake_dir: Path) -> None:
    uris = make_lake(lake_dir)
    assert counts(run_valence(lake_dir, limit=50)) == (50, 50, 0, 0)
    assert counts(run_valence(lake_dir)) == (30, 30, 0, 0)
    assert_labelled_once(lake_dir, uris)


def test_bad_files_stop_a_run_before_anything_or_are_skipped_and_reported(lake_dir: Path) -> None:
    make_lake(lake_dir)
    bad = write_posts(lake_dir, DAY, [post(999)], name="bad")
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(BadFile, match=r"bad\.parquet"):
        run_valence(lake_dir)
    assert lake_labels(lake_dir) == queue_files(lake_dir) == []
    result = run(workspace_of(lake_dir), scope(), VALENCES, BadFiles(skip=True), io.StringIO())
    assert (counts(result), result.exit_code) == ((80, 80, 0, 0), 0)
    assert [str(bad) in line for line in result.skipped] == [True]


def test_a_second_run_of_an_integration_is_refused_while_one_is_at_work(lake_dir: Path) -> None:
    uris = make_lake(lake_dir)
    workspace = workspace_of(lake_dir)
    with (
        Lock(workspace.lake, VALENCE, "run", "other"),
        pytest.raises(ConfigError, match="is being written by run other"),
    ):
        run_valence(lake_dir)
    run_valence(lake_dir)
    assert_labelled_once(lake_dir, uris)


def test_a_database_can_be_rebuilt_from_the_lake(lake_dir: Path) -> None:
    uris = make_lake(lake_dir)
    run_valence(lake_dir)
    for path in lake_dir.glob("backfill.db*"):
        path.unlink()
    assert rebuild_database(workspace_of(lake_dir), lambda _: None)[VALENCE] == 80
    assert_labelled_once(lake_dir, uris)


def test_status_counts_what_is_there(lake_dir: Path) -> None:
    make_lake(lake_dir)
    write_posts(lake_dir, DAY, [post(0), post(500, text=" ")], name="more")
    write_partition(
        lake_dir,
        VALENCE,
        DAY,
        [
            {
                "uri": make_uri(n),
                "was_successfully_labeled": n > 0,
                "reason": None if n else "bad luck",
            }
            for n in range(5)
        ],
    )
    found = status(workspace_of(lake_dir), None, None, BadFiles())
    assert found.coverage[VALENCE] == {
        DAYS[0]: {"posts": 40, "labelled": 4, "rejected": 1},
        DAYS[1]: {"posts": 40, "labelled": 0, "rejected": 0},
    }
    assert found.rejected[VALENCE] == {"bad luck": 1}
    assert found.queues[VALENCE] == {"input": 0, "output": 0}
    assert not (lake_dir / "backfill.db").exists(), "status changes nothing"


@pytest.mark.parametrize(
    ("part", "good_calls"), [("placement", 0), ("placement", 1), ("remote", 0), ("remote", 1)]
)
def test_a_fault_in_the_set_up_of_one_integration_is_its_error_and_the_others_finish(
    lake_dir: Path, monkeypatch: pytest.MonkeyPatch, part: str, good_calls: int
) -> None:
    """At the first call the settings are checked, at the second one the pipeline is built."""
    make_lake(lake_dir)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "a-key-for-nothing")
    perspective, calls = resolve("p"), itertools.count()

    def breaks(*arguments: Any) -> Any:
        if next(calls) >= good_calls:
            raise KeyError("no such thing")
        return getattr(perspective, part)(*arguments)

    chosen = [replace(perspective, **{part: breaks}), *VALENCES]
    result = run(workspace_of(lake_dir), scope(), chosen, BadFiles(), io.StringIO())
    assert result.exit_code == 1
    assert "KeyError: 'no such thing'" in (result.integrations[perspective.name].error or "")
    assert (counts(result), result.integrations[VALENCE].error) == ((80, 80, 0, 0), None)
    assert len(lake_labels(lake_dir)) == 80
    [recorded] = status(workspace_of(lake_dir), None, None, BadFiles()).runs
    assert recorded["exit_code"] == 1
    assert "no such thing" in recorded["counts"][perspective.name]["error"]


def test_what_fails_while_the_pipeline_is_built_is_an_error_and_nothing_is_left_for_a_next_run(
    lake_dir: Path,
) -> None:
    make_lake(lake_dir)
    workspace, settings = workspace_of(lake_dir), RunSettings()
    object.__setattr__(
        settings, "block_rows", None
    )  # past the check, as any other fault of ours would be
    broken = replace(workspace, config=replace(workspace.config, run=settings))
    result = run(broken, scope(), VALENCES, BadFiles(), io.StringIO())
    assert (result.exit_code, counts(result)) == (1, (80, 0, 0, 80))
    assert "the run stopped" in (result.integrations[VALENCE].error or "")
    assert counts(run_valence(lake_dir)) == (80, 80, 0, 0)
