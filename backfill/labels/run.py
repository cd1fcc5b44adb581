"""The run: selected posts of several integrations, side by side, into the lake and the database."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, TextIO

from actors.flush_policy import FlushPolicy
from actors.integrations import Integration
from backfill.labels.execution import RunExecution, error_recorded
from backfill.labels.post_filter import BadFiles, PostFilter, find_posts, unlabelled
from backfill.labels.result import RunRecord, RunResult
from backfill.progress import IntegrationProgress, Progress
from backfill.ray_session import ray_running
from backfill.workspace import Workspace, new_run_id
from datasets.answer_store import RunScope
from datasets.errors import BackfillError, ConfigError
from datasets.labels import writing
from datasets.labels.reading import Labels
from datasets.lake import Lake
from datasets.locking.locks import ALL_DATES, Dates, Lock, live_runs
from datasets.posts import OnBadFile, Selection, raise_bad_file
from datasets.queues import digest

# Selects the posts of each integration, by name. Called once the integrations are locked and
# recovered. Calls its argument as soon as it knows that there are posts.
SelectPosts = Callable[[Callable[[], None]], Mapping[str, Selection]]

# Seconds to wait for the buffer of a killed run to end, and for another run's recovery.
_BUFFER_SECONDS = 60.0
_RECOVERY_SECONDS = 600.0


def run(
    workspace: Workspace,
    scope: PostFilter,
    chosen: Sequence[Integration],
    bad_files: BadFiles,
    stream: TextIO,
) -> RunResult:
    """Labels eligible posts straight from the lake: selection, run and write phases in one."""

    def select_posts(on_found: Callable[[], None]) -> Mapping[str, Selection]:
        excluded = unlabelled(
            workspace.lake, chosen, retry_rejected=scope.retry_rejected, on_bad=bad_files
        )
        return find_posts(workspace.lake, scope, excluded, bad_files, on_found)

    policy = FlushPolicy(
        workspace.config.run.flush_rows,
        workspace.config.run.flush_seconds,
        replace=scope.retry_rejected,
        skip_bad_files=bad_files.skip,
    )
    selection = {**scope.as_dict(), "integrations": [integration.name for integration in chosen]}
    result = label_all(
        workspace,
        chosen,
        select_posts,
        policy,
        "run",
        selection,
        stream,
        dates=scope.dates,
        on_bad=bad_files,
    )
    result.skipped = list(dict.fromkeys(map(str, [*bad_files.skipped, *result.skipped])))
    return result


def label_all(
    workspace: Workspace,
    chosen: Sequence[Integration],
    select_posts: SelectPosts,
    policy: FlushPolicy,
    command: str,
    selection: Mapping[str, Any],
    stream: TextIO,
    after: Callable[[Mapping[str, Lock]], None] = lambda _: None,
    dates: Dates = ALL_DATES,
    on_bad: OnBadFile = raise_bad_file,
) -> RunResult:
    """Labels what `select_posts` selects, with the integrations locked for the partition dates.

    `after` is called before the locks are released, with the locks by integration. `command` and
    `selection` go into the table `runs`. `on_bad` is given label files that cannot be read.
    Raises ConfigError before anything is changed.
    """
    workspace.lake.check()
    run_id = new_run_id()
    result = RunResult(run_id, {integration.name: IntegrationProgress() for integration in chosen})
    chosen = _check_settings(workspace, chosen, result)
    scope = _run_scope(run_id, command, selection, dates)
    record = RunRecord(workspace, run_id, command, selection)

    with ExitStack() as stack:
        locks = _lock(workspace, chosen, run_id, dates, stack)
        for integration in chosen:
            recover(workspace.lake, integration.labels, run_id, dates, on_bad)

        progress = stack.enter_context(Progress(stream, result.integrations))
        record.start(progress)
        execution = RunExecution(workspace, policy, result, progress, scope)
        try:
            _label_selected(workspace, chosen, select_posts, execution)
            after(locks)
        except Exception:
            with suppress(BackfillError):
                record.finish(result.counts(), 1)
            raise
        # The first error is the one to report.
        with suppress(*([BackfillError] if result.exit_code else [])):
            record.finish(result.counts(), result.exit_code)
    return result


def _lock(
    workspace: Workspace,
    chosen: Sequence[Integration],
    run_id: str,
    dates: Dates,
    stack: ExitStack,
) -> dict[str, Lock]:
    """Locks the integrations, by name, until `stack` ends."""
    locks: dict[str, Lock] = {}
    for integration in chosen:
        lock = Lock(workspace.lake, integration.name, "run", run_id, dates=dates)
        locks[integration.name] = stack.enter_context(lock)
    return locks


def _check_settings(
    workspace: Workspace, chosen: Sequence[Integration], result: RunResult
) -> list[Integration]:
    """The integrations that can run as they are configured. Raises ConfigError if none can."""
    runnable = []
    for integration in chosen:
        with error_recorded(result.integrations[integration.name]):
            integration.check_settings(workspace.config.settings(integration))
            runnable.append(integration)

    if not runnable:
        errors = [progress.error or "" for progress in result.integrations.values()]
        raise ConfigError("; ".join(errors))
    return runnable


def _run_scope(run_id: str, command: str, selection: Mapping[str, Any], dates: Dates) -> RunScope:
    """Which answers of the cache the run may use.

    Runs whose selections differ only in their dates or integrations are of the same kind.
    """
    rest = {
        name: value
        for name, value in selection.items()
        if name not in ("start", "end", "integrations")
    }
    kind = digest([command, json.dumps(rest, sort_keys=True, default=str)])
    return RunScope(
        run_id,
        kind,
        *dates,
        whole=rest.get("limit") is None,
        retry_rejected=bool(rest.get("retry_rejected")),
    )


def recover(
    lake: Lake,
    labels: Labels,
    run_id: str,
    dates: Dates = ALL_DATES,
    on_bad: OnBadFile = raise_bad_file,
) -> None:
    """Completes what killed runs have left, for a caller that holds the lock `run` of these dates.

    Runs before posts are selected, because it moves labels. The buffer of a killed run ends first.
    """
    name = labels.integration
    with (
        Lock(lake, name, "buffer", run_id, _BUFFER_SECONDS, dates),
        Lock(lake, name, "recover", run_id, _RECOVERY_SECONDS) as recovery,
    ):
        live = live_runs(lake, name, besides=run_id)
        writing.recover(lake, labels, live, recovery.ensure, on_bad)


def _label_selected(
    workspace: Workspace,
    chosen: Sequence[Integration],
    select_posts: SelectPosts,
    execution: RunExecution,
) -> None:
    """Selects posts while Ray starts, which takes seconds. Without posts, Ray does not start.

    Ray starts in this, the main thread: its processes end with the thread that started them.
    """
    execution.progress.set_status("looking for posts to label")
    found = threading.Event()
    with ExitStack() as stack:
        try:
            with ThreadPoolExecutor(1) as executor:
                selecting = executor.submit(select_posts, found.set)
                selecting.add_done_callback(lambda _: found.set())
                found.wait()
                if not selecting.done() or any(
                    selection.total for selection in selecting.result().values()
                ):
                    stack.enter_context(ray_running(workspace.ray_address, debug=workspace.debug))
                selections = selecting.result()
            execution.label(chosen, selections)
        except KeyboardInterrupt:
            execution.result.interrupted = True
