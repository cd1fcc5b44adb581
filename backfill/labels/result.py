"""What a run has done: its result, its exit code, and its row in the table `runs`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from backfill.progress import IntegrationProgress, Progress
from backfill.workspace import Workspace
from datasets.database import open_database, record_run
from datasets.errors import RetryableError


@dataclass
class RunResult:
    """`integrations` by name; `skipped` names the files that were left out, and why."""

    run_id: str
    integrations: dict[str, IntegrationProgress]
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all labelled or rejected, 1 an integration stopped, 3 posts left for the next run."""
        if self.interrupted:
            return 130
        integrations = self.integrations.values()
        if any(progress.error or progress.behind for progress in integrations):
            return 1
        return 3 if any(progress.failed for progress in integrations) else 0

    def as_dict(self) -> dict[str, Any]:
        """The JSON object that the command prints."""
        counts: dict[str, dict[str, Any]] = {}
        for name, progress in self.integrations.items():
            counts[name] = {
                "eligible": progress.eligible,
                "labelled": progress.labelled,
                "rejected": progress.rejected.total(),
                "failed": progress.failed,
                "seconds": round(progress.seconds, 3),
            }
            if progress.api:
                counts[name]["api"] = progress.api
        return {"integrations": counts, "run_id": self.run_id}

    def counts(self) -> dict[str, Any]:
        """The column `counts` of the table `runs`: more detailed than `as_dict`."""
        return {
            name: {
                "eligible": progress.eligible,
                "labelled": progress.labelled,
                "rejected": dict(progress.rejected),
                "failed": progress.failed,
                "retryable": dict(progress.retryable),
                "seconds": round(progress.seconds, 3),
                "error": progress.error,
                "api": progress.api,
            }
            for name, progress in self.integrations.items()
        }


class RunRecord:
    """The run's row of the table `runs`, written when it starts and again when it ends."""

    def __init__(
        self, workspace: Workspace, run_id: str, command: str, selection: Mapping[str, Any]
    ) -> None:
        self._database_url = workspace.database_url
        self._row: dict[str, Any] = {
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

    def start(self, progress: Progress) -> None:
        """A database that does not answer costs the row and not the run. Raises ConfigError."""
        try:
            self._write(self._row)
        except RetryableError as error:
            progress.say(
                f"{error}; going on without it: the lake has the labels, and it will catch up"
            )

    def finish(self, counts: Mapping[str, Any], exit_code: int) -> None:
        """Does nothing where the database does not answer. Raises ConfigError."""
        end = {"finished_at": _now(), "counts": dict(counts), "exit_code": exit_code}
        try:
            self._write({**self._row, **end})
        except RetryableError:
            return

    def _write(self, row: Mapping[str, Any]) -> None:
        with closing(open_database(self._database_url)) as database:
            record_run(database, row)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
