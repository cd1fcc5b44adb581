"""A classifier in an actor of a Ray Data pool: posts in, label rows out, no row lost.

What one post does never costs another its label. An exception is traced to the post that causes it
by halving. A post that kills the process is traced by what the process wrote down before it went
on: Ray restarts the actor and gives it the same block, and the note says which rows were at work.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from actors.integrations import Classifier, Environment, Integration, Outcome, resolve
from actors.remote.answer_cache import AnswerCacheAddress
from actors.remote.protocol import readable
from datasets.boundary.secrets import remember_environment
from datasets.errors import BackfillError, FatalError, RejectedPost, RetryableError
from datasets.labels.writing import batch_name
from datasets.schemas import PARTITION_DATE, POST_COLUMNS, staged_schema
from datasets.scratch import scratch_folder

# A range of rows that killed the process is tried again in this many pieces.
_PIECES = 16
# Deaths with one row alone at work before the row is to blame: once may be a stranger's kill.
_DEATHS = 2
_REASON_CHARS = 300
# Computing gives way to the actors that have to send at a certain time.
_NICE = 4


class ClassifierActor:
    """The callable class for `map_batches(batch_format="pyarrow", batch_size=None)`."""

    def __init__(
        self,
        integration: str,
        settings: Any,
        run_id: str,
        environment: Environment,
        answers: AnswerCacheAddress | None = None,
    ) -> None:
        """`answers` is where those of an API are kept."""
        self._integration = resolve(integration)
        self._run_id = run_id
        self._local = self._integration.placement(settings) != "api"
        # An error here would reach the driver as the death of an actor, its text in the middle of a
        # traceback. Kept, it is the answer to the first block.
        self._broken: BackfillError | None = None
        remember_environment({**os.environ, **environment})
        if self._local:
            os.nice(_NICE)
        try:
            self._classifier = _make_classifier(self._integration, settings, environment, answers)
        except BackfillError as error:
            self._broken = error
        except Exception as error:  # noqa: BLE001 - whatever a model's loading code raises
            self._broken = FatalError(
                f"{integration} cannot be loaded ({type(error).__name__}: {error})"
            )

    def __call__(self, posts: pa.Table) -> pa.Table:
        """POST_SCHEMA in; one row a post in `staged_schema` out, in the same order."""
        if self._broken:
            raise self._broken
        texts = posts["text"].to_pylist()
        if not self._local:
            outcomes = list(self._classifier.classify(texts))
            return label_rows(self._integration, self._classifier, self._run_id, posts, outcomes)
        name = batch_name(
            self._integration.name, self._classifier.revision, posts["uri"].to_pylist()
        )
        with Attempts(f"{self._run_id}-{name}") as attempts, _no_garbage_collection():
            outcomes = classify_surviving(self._classifier, texts, attempts)
        return label_rows(self._integration, self._classifier, self._run_id, posts, outcomes)


def _make_classifier(
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
    return connect(integration.remote(settings, environment), integration.name, answers)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For one block: looking for cycles among its outcomes costs VADER a tenth of its speed and finds none."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def label_rows(
    integration: Integration,
    classifier: Classifier,
    run_id: str,
    posts: pa.Table,
    outcomes: Sequence[Outcome],
) -> pa.Table:
    """Label rows of `staged_schema`, in the order of `posts`; a passing failure has no `was_successfully_labeled`."""
    count = len(posts)
    columns: dict[str, Any] = {name: posts[name] for name in (*POST_COLUMNS, PARTITION_DATE)}
    for name in integration.columns:
        columns[name] = [
            outcome.get(name) if isinstance(outcome, dict) else None for outcome in outcomes
        ]
    columns["was_successfully_labeled"] = [
        None if isinstance(outcome, RetryableError) else isinstance(outcome, dict)
        for outcome in outcomes
    ]
    columns["reason"] = [_reason(outcome) for outcome in outcomes]
    columns["label_timestamp"] = [datetime.now(UTC).strftime("%Y-%m-%d-%H:%M:%S")] * count
    columns["label_model"] = [classifier.model] * count
    columns["label_model_revision"] = [classifier.revision] * count
    columns["run_id"] = [run_id] * count
    schema = staged_schema(integration.labels.schema)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _reason(outcome: Outcome) -> str | None:
    if isinstance(outcome, RetryableError):
        return outcome.kind
    return readable(str(outcome), _REASON_CHARS) if isinstance(outcome, RejectedPost) else None


def classify_surviving(
    classifier: Classifier, texts: Sequence[str], attempts: Attempts
) -> list[Outcome]:
    """Outcomes in order, whatever single texts do to the classifier or to its process."""
    outcomes: list[Outcome] = []
    for start, stop in attempts.ranges(len(texts)):
        if attempts.is_poison(start, stop):
            outcomes.append(
                RejectedPost(f"the classifier's process died {_DEATHS} times on this post alone")
            )
            continue
        attempts.begin(start, stop)
        outcomes.extend(_classify_halving(classifier, texts[start:stop]))
    return outcomes


def _classify_halving(classifier: Classifier, texts: Sequence[str]) -> list[Outcome]:
    try:
        outcomes = list(classifier.classify(texts))
        if len(outcomes) != len(texts):
            raise FatalError(
                f"{classifier.model} gave {len(outcomes)} answers for {len(texts)} posts"
            )
        return outcomes
    except FatalError:
        raise
    except (RejectedPost, RetryableError) as error:
        return [error] * len(texts)
    except Exception as error:  # noqa: BLE001 - any fault of a model becomes the reason of the post that causes it
        if len(texts) == 1:
            return [RejectedPost(f"{type(error).__name__}: {error}")]
        half = len(texts) // 2
        return _classify_halving(classifier, texts[:half]) + _classify_halving(
            classifier, texts[half:]
        )


class Attempts:
    """A note outside the process of which rows of a block are at work, for whoever takes the block next.

    It is for deaths of the process, not of the machine, so it is written and not synced. A block
    that is done leaves no note. A block that finds one is at work alone in its process, so that the
    next death is its own and not that of a neighbour.
    """

    def __init__(self, block: str) -> None:
        self._path = os.path.join(scratch_folder(), f"{block}.json")
        # `suspects` are disjoint ranges in order, each with its deaths while it was at work alone.
        self._suspects: list[tuple[int, int, int]] = []
        with contextlib.suppress(FileNotFoundError, ValueError), open(self._path) as file:
            note = json.load(file)
            self._suspects = [tuple(entry) for entry in note["suspects"]]
            if note["at_work"]:
                self._suspects = _narrow(self._suspects, tuple(note["at_work"]))
                self._write(None)

    def ranges(self, count: int) -> list[tuple[int, int]]:
        """`count` rows in order, so cut that each suspect is alone."""
        found: list[tuple[int, int]] = []
        position = 0
        for start, stop, _ in self._suspects:
            if position < start:
                found.append((position, start))
            found.append((start, stop))
            position = stop
        if position < count:
            found.append((position, count))
        return found

    def is_poison(self, start: int, stop: int) -> bool:
        return stop - start == 1 and any(
            entry[:2] == (start, stop) and entry[2] >= _DEATHS for entry in self._suspects
        )

    def begin(self, start: int, stop: int) -> None:
        self._write((start, stop))

    def _write(self, at_work: tuple[int, int] | None) -> None:
        with open(f"{self._path}.new", "w") as file:
            json.dump({"suspects": self._suspects, "at_work": at_work}, file)
        os.replace(f"{self._path}.new", self._path)

    def __enter__(self) -> Attempts:
        _BLOCKS.enter(alone=bool(self._suspects))
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        _BLOCKS.leave()


class _Blocks:
    """Those at work in this process: any number, or one that is to be alone."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._count, self._alone = 0, False

    def enter(self, *, alone: bool) -> None:
        with self._change:
            self._change.wait_for(lambda: self._count == 0 or not (alone or self._alone))
            self._count, self._alone = self._count + 1, alone

    def leave(self) -> None:
        with self._change:
            self._count -= 1
            self._change.notify_all()


_BLOCKS = _Blocks()


def _narrow(
    suspects: Sequence[tuple[int, ...]], died: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """The suspects after one more death, with rows `died` at work: that range in pieces, or blamed once more."""
    start, stop = died
    known = [(s, e, deaths) for s, e, deaths in suspects if (s, e) != (start, stop)]
    if stop - start == 1:
        deaths = sum(entry[2] for entry in suspects if entry[:2] == (start, stop)) + 1
        return sorted([*known, (start, stop, deaths)])
    size = max(1, -(-(stop - start) // _PIECES))
    return sorted([*known, *((s, min(s + size, stop), 0) for s in range(start, stop, size))])
