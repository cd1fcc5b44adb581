"""Recovery when a label buffer starts: finishing what dead runs have left."""

from __future__ import annotations

from collections.abc import Callable

from actors.flush_policy import FlushPolicy
from datasets.labels import writing
from datasets.labels.reading import Labels
from datasets.lake import Lake
from datasets.locking.locks import Lock, live_runs
from datasets.posts import OnBadFile

# How long to wait for another run's recovery, which may adopt many
# batches.
_WAIT_SECONDS = 600.0


def recover_batches(
    lake: Lake,
    labels: Labels,
    run_id: str,
    policy: FlushPolicy,
    next_flush_name: Callable[[], str],
    on_bad: OnBadFile,
) -> list[str]:
    """Finishes interrupted flushes, and adopts batches of dead runs.

    With the policy `never`, batches stay in the queue and are not adopted.
    `on_bad` is called for label files that cannot be used.
    Returns the batches that this run has staged before a restart.
    """
    integration = labels.integration
    with Lock(lake, integration, "recover", run_id, _WAIT_SECONDS) as lock:
        live = live_runs(lake, integration, besides=run_id)
        writing.recover(lake, labels, live, lock.ensure, on_bad)
        if not (policy.never or policy.keep):
            writing.drop_written(lake, labels)

        staged = writing.staged(lake, labels)
        mine = [name for name in staged if writing.run_of(name) == run_id]
        others = [name for name in staged if name not in mine]
        orphaned = writing.left_by_dead(lake, labels, others, live)
        if policy.never:
            return mine

        rows = writing.count_staged(lake, labels, orphaned)
        for names in policy.divide(rows):
            writing.adopt(
                lake,
                labels,
                names,
                next_flush_name(),
                keep=policy.keep,
                ensure=lock.ensure,
                on_bad=on_bad,
            )
    return mine
