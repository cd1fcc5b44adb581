"""The classifier in an actor of a Ray Data pool: posts in, one label row per post out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.contract import Classifier, Outcome
from actors.crash_journal import CrashJournal
from actors.fault_isolation import classify_isolated
from actors.integrations import Environment, Integration, resolve
from actors.remote.answer_cache import AnswerCacheAddress
from actors.remote.protocol import readable
from datasets.boundary.secrets import remember_environment
from datasets.errors import (
    BackfillError,
    FatalError,
    RejectedPost,
    RetryableError,
)
from datasets.garbage_collection import collection_paused
from datasets.labels.writing import batch_name
from datasets.schemas import PARTITION_DATE, POST_COLUMNS, staged_schema
from datasets.timestamps import pipeline_time, utc_now

_MAX_REASON_CHARS = 300
# Local classifiers yield to the actors that must send requests at a certain
# time.
_NICENESS = 4


class ClassifierActor:
    """A callable class for `map_batches(batch_format="pyarrow", batch_size=None)`."""

    def __init__(
        self,
        integration: str,
        settings: Any,
        run_id: str,
        environment: Environment,
        answers: AnswerCacheAddress | None = None,
    ) -> None:
        """`answers` is the cache for the answers of a remote API, which needs one."""
        self._integration = resolve(integration)
        self._run_id = run_id
        self._is_local = self._integration.placement(settings) != "api"
        remember_environment({**os.environ, **environment})
        if self._is_local:
            os.nice(_NICENESS)

        # Raised here, an error would reach the driver as the death of an
        # actor, inside a traceback. So it is kept, and raised for the first
        # block.
        self._error: BackfillError | None = None
        try:
            self._classifier = _load_classifier(self._integration, settings, environment, answers)
        except BackfillError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - models raise errors of any kind
            self._error = FatalError(
                f"{integration} cannot be loaded ({type(error).__name__}: {error})"
            )

    def __call__(self, posts: pa.Table) -> pa.Table:
        """POST_SCHEMA in; `staged_schema` out, one row per post, in the same order."""
        if self._error:
            raise self._error

        texts = posts["text"].to_pylist()
        if self._is_local:
            outcomes = self._classify_locally(posts["uri"].to_pylist(), texts)
        else:
            outcomes = list(self._classifier.classify(texts))
        return label_rows(
            self._integration,
            self._classifier,
            self._run_id,
            posts,
            outcomes,
        )

    def _classify_locally(self, uris: Sequence[str], texts: Sequence[str]) -> list[Outcome]:
        batch = batch_name(self._integration.name, self._classifier.revision, uris)
        # Garbage collection would take a tenth of VADER's time.
        with (
            CrashJournal(f"{self._run_id}-{batch}") as journal,
            collection_paused(),
        ):
            return classify_isolated(self._classifier, texts, journal)


def _load_classifier(
    integration: Integration,
    settings: Any,
    environment: Environment,
    answers: AnswerCacheAddress | None,
) -> Classifier:
    if integration.placement(settings) != "api":
        return integration.load(settings)

    from actors.remote.client import connect

    assert integration.remote
    assert answers
    return connect(
        integration.remote(settings, environment),
        integration.name,
        answers,
    )


def label_rows(
    integration: Integration,
    classifier: Classifier,
    run_id: str,
    posts: pa.Table,
    outcomes: Sequence[Outcome],
) -> pa.Table:
    """Label rows of `staged_schema`, in the order of `posts`.

    `was_successfully_labeled` is null for a transient failure.
    """
    columns: dict[str, Any] = {name: posts[name] for name in (*POST_COLUMNS, PARTITION_DATE)}
    for name in integration.columns:
        columns[name] = [
            outcome.get(name) if isinstance(outcome, dict) else None for outcome in outcomes
        ]

    columns["was_successfully_labeled"] = [_succeeded(outcome) for outcome in outcomes]
    columns["reason"] = [_reason(outcome) for outcome in outcomes]

    constants = {
        "label_timestamp": pipeline_time(utc_now()),
        "label_model": classifier.model,
        "label_model_revision": classifier.revision,
        "run_id": run_id,
    }
    columns |= {name: [value] * len(posts) for name, value in constants.items()}

    schema = staged_schema(integration.labels.schema)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _succeeded(outcome: Outcome) -> bool | None:
    if isinstance(outcome, RetryableError):
        return None
    return isinstance(outcome, dict)


def _reason(outcome: Outcome) -> str | None:
    if isinstance(outcome, RetryableError):
        return outcome.kind
    if isinstance(outcome, RejectedPost):
        return readable(str(outcome), _MAX_REASON_CHARS)
    return None
