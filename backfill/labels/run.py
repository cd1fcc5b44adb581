"""The run: selected posts of several integrations side by side through their pools into the lake and the database."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, TextIO

from actors.batch_counts import BatchCounts
from actors.buffer import LabelBuffer
from actors.flush_policy import FlushPolicy
from actors.integrations import Integration, Placement
from backfill.labels.post_filter import BadFiles, PostFilter, find_posts, unlabelled
from backfill.progress import Progress, Tally
from backfill.ray_session import ray_running
from backfill.workspace import Workspace, new_run_id
from datasets.answer_store import RunScope, remove_answers
from datasets.database import open_database, record_run
from datasets.errors import BackfillError, ConfigError, RetryableError, our_error
from datasets.labels import writing
from datasets.locking.locks import ALL_DATES, Dates, Lock, live_runs
from datasets.posts import Selection
from datasets.queues import digest

# Finds the posts of each integration: called once the integrations are locked and recovered.
# It calls back as soon as it knows that there are some.
Find = Callable[[Callable[[], None]], Mapping[str, Selection]]
_STOP_SECONDS = 15.0


@dataclass
class RunResult:
    run_id: str
    tallies: dict[str, Tally]
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all labelled or rejected, 1 an integration stopped, 3 posts are left for the next run."""
        if self.interrupted:
            return 130
        if any(tally.error or tally.behind for tally in self.tallies.values()):
            return 1
        return 3 if any(tally.failed for tally in self.tallies.values()) else 0

    def as_dict(self) -> dict[str, Any]:
        counts = {
            name: {
                "eligible": tally.eligible,
                "labelled": tally.labelled,
                "rejected": tally.rejected.total(),
                "failed": tally.failed,
                "seconds": round(tally.seconds, 3),
                **({"api": tally.api} if tally.api else {}),
            }
            for name, tally in self.tallies.items()
        }
        return {"integrations": counts, "run_id": self.run_id}


def run(
    workspace: Workspace,
    scope: PostFilter,
    chosen: Sequence[Integration],
    bad_files: BadFiles,
    stream: TextIO,
) -> RunResult:
    """The fused run: eligible posts to labels in the lake and the database."""

    def find(on_found: Callable[[], None]) -> Mapping[str, Selection]:
        excluded = unlabelled(
            workspace.lake, chosen, retry_rejected=scope.retry_rejected, on_bad=bad_files
        )
        return find_posts(workspace.lake, scope, excluded, bad_files, on_found)

    policy = FlushPolicy(
        workspace.config.run.flush_rows, workspace.config.run.flush_seconds,
        replace=scope.retry_rejected, skip_bad_files=bad_files.skip,
    )  # fmt: skip
    selection = {**scope.as_dict(), "integrations": [integration.name for integration in chosen]}
    result = label_all(workspace, chosen, find, policy, "run", selection, stream, dates=scope.dates)
    result.skipped = list(dict.fromkeys(map(str, [*bad_files.skipped, *result.skipped])))
    return result


def label_all(
    workspace: Workspace,
    chosen: Sequence[Integration],
    find: Find,
    policy: FlushPolicy,
    command: str,
    selection: Mapping[str, Any],
    stream: TextIO,
    after: Callable[[Mapping[str, Lock]], None] = lambda _: None,
    dates: Dates = ALL_DATES,
) -> RunResult:
    """Labels what `find` finds, then does `after`, while the integrations are locked for the partition dates.

    `after` is given the locks, by the names of the integrations.

    Everything that may refuse does so before anything is touched.
    """
    workspace.lake.check()
    run_id = new_run_id()
    result = RunResult(run_id, {integration.name: Tally() for integration in chosen})
    chosen = _able(workspace, chosen, result)
    record: dict[str, Any] = {
        "run_id": run_id,
        "command": command,
        "selection": dict(selection),
        "started_at": _now(),
        "versions": {
            "python": platform.python_version(),
            "ray": version("ray"),
            "pyarrow": version("pyarrow"),
        },
    }
    with ExitStack() as stack:
        locks = {
            i.name: stack.enter_context(Lock(workspace.lake, i.name, "run", run_id, dates=dates))
            for i in chosen
        }
        for integration in chosen:
            _recover(workspace, integration, run_id, dates)
        progress = stack.enter_context(Progress(stream, result.tallies))
        _note_run(workspace, record, progress)
        try:
            _label_found(
                workspace,
                chosen,
                find,
                policy,
                result,
                progress,
                _scope(run_id, command, selection, dates),
            )
            after(locks)
        except Exception:
            with suppress(BackfillError):
                _note_run(workspace, record, progress, _counts(result), 1)
            raise
        with suppress(
            *([BackfillError] if result.exit_code else [])
        ):  # the first error is the one to tell
            _note_run(workspace, record, progress, _counts(result), result.exit_code)
    return result


def _scope(run_id: str, command: str, selection: Mapping[str, Any], dates: Dates) -> RunScope:
    """What the run's answers are for; runs whose selections differ in their dates only are of one kind."""
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


def _recover(workspace: Workspace, integration: Integration, run_id: str, dates: Dates) -> None:
    """Before posts are looked for, so that what it moves is found. The buffer of a killed run has to end first."""
    lake, name = workspace.lake, integration.name
    with (
        Lock(lake, name, "buffer", run_id, 60.0, dates),
        Lock(lake, name, "recover", run_id, 600.0) as recovery,
    ):
        writing.recover(
            lake, integration.labels, live_runs(lake, name, besides=run_id), recovery.ensure
        )


def _note_run(
    workspace: Workspace,
    record: Mapping[str, Any],
    progress: Progress,
    counts: Mapping[str, Any] | None = None,
    exit_code: int | None = None,
) -> None:
    """A row of `runs`, by a connection for it alone. A database that does not answer costs the row, not the run."""
    done = (
        {"finished_at": _now(), "counts": dict(counts), "exit_code": exit_code}
        if counts is not None
        else {}
    )
    try:
        with closing(open_database(workspace.database_url)) as database:
            record_run(database, {**record, **done})
    except RetryableError as error:
        if not done:
            progress.say(
                f"{error}; going on without it: the lake has the labels, and it will catch up"
            )


def _able(
    workspace: Workspace, chosen: Sequence[Integration], result: RunResult
) -> list[Integration]:
    """Those that can run as they are set. One that cannot stops nobody else; raises ConfigError if none can."""
    able = []
    for integration in chosen:
        with _blamed(result.tallies[integration.name]):
            integration.check_settings(workspace.config.settings(integration))
            able.append(integration)
    if not able:
        raise ConfigError("; ".join(tally.error or "" for tally in result.tallies.values()))
    return able


def _label_found(
    workspace: Workspace,
    chosen: Sequence[Integration],
    find: Find,
    policy: FlushPolicy,
    result: RunResult,
    progress: Progress,
    scope: RunScope,
) -> None:
    """Ray takes seconds to start, in which posts can be selected; and nothing to label needs no Ray.

    Ray starts in this, the main thread: its processes are told to end with the thread that started them.
    """
    progress.status("looking for posts to label")
    known = threading.Event()
    with ExitStack() as stack:
        try:
            with ThreadPoolExecutor(1) as executor:
                finding = executor.submit(find, known.set)
                finding.add_done_callback(lambda _: known.set())
                known.wait()
                if not finding.done() or any(
                    selection.total for selection in finding.result().values()
                ):
                    stack.enter_context(ray_running(workspace.ray_address, debug=workspace.debug))
                selections = finding.result()
            for name, selection in selections.items():
                result.tallies[name].eligible = selection.total
            busy = [integration for integration in chosen if selections[integration.name].total]
            for integration in chosen:
                if integration not in busy:
                    _finish_leftovers(workspace, integration, policy, result, scope)
            if busy:
                progress.status("starting the classifiers")
                _label_with_ray(workspace, busy, selections, policy, result, progress, scope)
        except KeyboardInterrupt:
            result.interrupted = True


def _finish_leftovers(
    workspace: Workspace,
    integration: Integration,
    policy: FlushPolicy,
    result: RunResult,
    scope: RunScope,
) -> None:
    """Nothing to label, but a killed run may have left staged labels, or the database may be behind."""
    tally = result.tallies[integration.name]
    with _blamed(tally):
        buffer = LabelBuffer(
            workspace.lake,
            integration.name,
            result.run_id,
            workspace.database_url,
            policy,
            scope.dates,
        )
        tally.behind = buffer.close()
        result.skipped += map(str, buffer.skipped())
        remove_answers(workspace.lake, integration.name, scope)


def _label_with_ray(
    workspace: Workspace,
    chosen: Sequence[Integration],
    selections: Mapping[str, Selection],
    policy: FlushPolicy,
    result: RunResult,
    progress: Progress,
    scope: RunScope,
) -> None:
    import ray

    from backfill.labels import pipeline
    from backfill.labels.stalls import why_waiting

    settings = {integration.name: workspace.config.settings(integration) for integration in chosen}
    placements: dict[str, Placement] = {}
    for integration in chosen:
        with _blamed(result.tallies[integration.name]):
            placements[integration.name] = integration.placement(settings[integration.name])
    pools = pipeline.size_pools(placements, settings, workspace.config.run.api_actors)
    works: dict[str, pipeline.Labelling] = {}
    sessions: dict[str, pipeline.ApiSession] = {}
    stop = threading.Event()

    def label(integration: Integration) -> None:
        name, started = integration.name, time.monotonic()
        tally = result.tallies[name]

        def count(receipt: BatchCounts) -> None:
            tally.labelled += receipt.labelled
            tally.rejected.update(receipt.rejected)
            tally.retryable.update(receipt.failed)

        with _blamed(tally):
            works[name] = work = pipeline.Labelling(
                workspace.lake, integration, settings[name], selections[name], pools[name], workspace.config.run, scope,
                pipeline.make_buffer(workspace.lake, integration, result.run_id, workspace.database_url, policy, scope.dates),
            )  # fmt: skip
            if work.is_api:
                sessions[name] = pipeline.ApiSession.open(work)
            pipeline.label_posts(work, count, stop)
        tally.seconds = time.monotonic() - started

    progress.watch(
        lambda name: why_waiting(sessions[name].activity(works[name]) if name in sessions else None)
    )
    _in_threads(label, [i for i in chosen if i.name in placements], stop, result, progress)
    for name, work in list(works.items()):
        tally = result.tallies[name]
        with _blamed(tally):
            tally.behind = ray.get(work.buffer.close.remote())
            result.skipped += map(str, ray.get(work.buffer.skipped.remote()))
        if name not in sessions:
            continue
        with _blamed(tally):
            # What failed has no answer that was kept.
            staged = (
                not tally.error
                and not result.interrupted
                and tally.failed == tally.retryable.total()
            )
            tally.api = sessions[name].close(work, staged=staged)


@contextmanager
def _blamed(tally: Tally) -> Iterator[None]:
    """Whatever goes wrong in the block is this integration's error, the first one being the one to tell.

    It stops no other integration, and is never taken for posts that the next run could label.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of Ray, of a model's code, of ours: unwrapped and told
        tally.error = tally.error or str(our_error(error))


def _in_threads(
    label: Callable[[Integration], None],
    chosen: Sequence[Integration],
    stop: threading.Event,
    result: RunResult,
    progress: Progress,
) -> None:
    """One thread an integration: Datasets of one driver run side by side from threads."""
    over = {integration.name: threading.Event() for integration in chosen}

    def work(integration: Integration) -> None:
        try:
            label(integration)
        finally:
            over[integration.name].set()

    for integration in chosen:
        threading.Thread(
            target=work, args=(integration,), name=integration.name, daemon=True
        ).start()
    try:
        # Not `join`: after an interrupt in it, Python 3.11 takes a thread that still runs for ended.
        for event in over.values():
            while not event.wait(0.2):
                pass
    except KeyboardInterrupt:
        result.interrupted = True
        stop.set()
        progress.say("stopping; what is labelled is being saved")
        for event in over.values():
            event.wait(_STOP_SECONDS)


def _counts(result: RunResult) -> dict[str, Any]:
    return {
        name: {
            "eligible": tally.eligible,
            "labelled": tally.labelled,
            "rejected": dict(tally.rejected),
            "failed": tally.failed,
            "retryable": dict(tally.retryable),
            "seconds": round(tally.seconds, 3),
            "error": tally.error,
            "api": tally.api,
        }
        for name, tally in result.tallies.items()
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
