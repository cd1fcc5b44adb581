"""The part of a run that uses Ray: each integration's pipeline in a thread, and their results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.batch_counts import BatchCounts
from actors.buffer import LabelBuffer
from actors.flush_policy import FlushPolicy
from actors.integrations import Integration, Placement
from backfill.labels.result import RunResult
from backfill.progress import IntegrationProgress, Progress
from backfill.workspace import Workspace
from datasets.answer_store import RunScope, remove_answers
from datasets.errors import our_error
from datasets.posts import Selection

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from actors.pool_sizes import PoolSize
    from backfill.labels.pipeline import ApiSession, IntegrationRun

# Seconds for which an interrupted run waits for an integration to save what it has.
_STOP_SECONDS = 15.0
_JOIN_SECONDS = 0.2


class RunExecution:
    """Labels the selected posts of a run's integrations, and fills in its result."""

    def __init__(
        self,
        workspace: Workspace,
        policy: FlushPolicy,
        result: RunResult,
        progress: Progress,
        scope: RunScope,
    ) -> None:
        self.result = result
        self.progress = progress
        self._workspace = workspace
        self._policy = policy
        self._scope = scope
        self._stop = threading.Event()
        self._runs: dict[str, IntegrationRun] = {}
        self._sessions: dict[str, ApiSession] = {}

    def label(self, chosen: Sequence[Integration], selections: Mapping[str, Selection]) -> None:
        """`selections` by integration. Ray must be running if any of them has posts."""
        for name, selection in selections.items():
            self.result.integrations[name].eligible = selection.total

        busy = [integration for integration in chosen if selections[integration.name].total]
        for integration in chosen:
            if integration not in busy:
                self._finish_leftovers(integration)
        if busy:
            self.progress.set_status("starting the classifiers")
            self._label_with_ray(busy, selections)

    def _finish_leftovers(self, integration: Integration) -> None:
        """Nothing to label, but a killed run may have left staged labels or a database behind."""
        progress = self.result.integrations[integration.name]
        with error_recorded(progress):
            buffer = LabelBuffer(
                self._workspace.lake,
                integration.name,
                self.result.run_id,
                self._workspace.database_url,
                self._policy,
                self._scope.dates,
            )
            progress.behind = buffer.close()
            self.result.skipped += map(str, buffer.skipped())
            remove_answers(self._workspace.lake, integration.name, self._scope)

    def _label_with_ray(
        self, chosen: Sequence[Integration], selections: Mapping[str, Selection]
    ) -> None:
        from actors.pool_sizes import size_pools

        settings = {
            integration.name: self._workspace.config.settings(integration) for integration in chosen
        }
        placements: dict[str, Placement] = {}
        for integration in chosen:
            with error_recorded(self.result.integrations[integration.name]):
                placements[integration.name] = integration.placement(settings[integration.name])
        pools = size_pools(placements, settings, self._workspace.config.run.api_actors)

        self.progress.report_stalls(self._diagnose_stall)
        work = {
            integration.name: partial(
                self._label_integration,
                integration,
                settings[integration.name],
                selections[integration.name],
                pools[integration.name],
            )
            for integration in chosen
            if integration.name in placements
        }
        self._run_threads(work)
        for name in list(self._runs):
            self._close(name)

    def _run_threads(self, work: Mapping[str, Callable[[], None]]) -> None:
        """One thread for each integration: Datasets of one driver run side by side from threads."""
        finished = {name: threading.Event() for name in work}

        def run(name: str) -> None:
            try:
                work[name]()
            finally:
                finished[name].set()

        for name in work:
            threading.Thread(target=run, args=(name,), name=name, daemon=True).start()

        try:
            # Not `join`: after an interrupt in it, Python 3.11 considers a running thread ended.
            for event in finished.values():
                while not event.wait(_JOIN_SECONDS):
                    pass
        except KeyboardInterrupt:
            self.result.interrupted = True
            self._stop.set()
            self.progress.say("stopping; what is labelled is being saved")
            for event in finished.values():
                event.wait(_STOP_SECONDS)

    def _label_integration(
        self,
        integration: Integration,
        settings: Any,
        selection: Selection,
        pool: PoolSize,
    ) -> None:
        from backfill.labels import pipeline

        name = integration.name
        progress = self.result.integrations[name]
        started = time.monotonic()

        def count(receipt: BatchCounts) -> None:
            progress.labelled += receipt.labelled
            progress.rejected.update(receipt.rejected)
            progress.retryable.update(receipt.failed)

        with error_recorded(progress):
            run = pipeline.IntegrationRun(
                lake=self._workspace.lake,
                integration=integration,
                settings=settings,
                selection=selection,
                pool=pool,
                run_settings=self._workspace.config.run,
                scope=self._scope,
                buffer=self._make_buffer(integration),
            )
            self._runs[name] = run
            if run.is_api:
                self._sessions[name] = pipeline.ApiSession.open(run)
            pipeline.label_posts(run, count, self._stop)
        progress.seconds = time.monotonic() - started

    def _make_buffer(self, integration: Integration) -> ActorHandle[LabelBuffer]:
        from backfill.labels import pipeline

        return pipeline.make_buffer(
            self._workspace.lake,
            integration,
            self.result.run_id,
            self._workspace.database_url,
            self._policy,
            self._scope.dates,
        )

    def _diagnose_stall(self, name: str) -> str:
        from backfill.labels.stall_diagnosis import diagnose_stall

        session = self._sessions.get(name)
        return diagnose_stall(session.activity(self._runs[name]) if session else None)

    def _close(self, name: str) -> None:
        """Waits until the buffer has flushed, then leaves the shared actors of an API."""
        import ray

        run = self._runs[name]
        progress = self.result.integrations[name]
        with error_recorded(progress):
            progress.behind = ray.get(run.buffer.close.remote())
            self.result.skipped += map(str, ray.get(run.buffer.skipped.remote()))

        session = self._sessions.get(name)
        if session is None:
            return
        with error_recorded(progress):
            # Posts that failed have no answer in the cache, and do not count here.
            staged = (
                not progress.error
                and not self.result.interrupted
                and progress.failed == progress.retryable.total()
            )
            progress.api = session.close(run, staged=staged)


@contextmanager
def error_recorded(progress: IntegrationProgress) -> Iterator[None]:
    """An exception in the block becomes the integration's error, unless it has one already.

    It does not stop other integrations, and it does not count as a transient failure of posts.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of Ray, of a model's code, of ours: unwrapped, reported
        progress.error = progress.error or str(our_error(error))
