"""Classifying a block so that the failure of one post does not cost another post its label.

An exception is traced to the post that causes it by bisection, and a crash
of the process by the block's `CrashJournal`.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.contract import Classifier, Outcome
from actors.crash_journal import MAX_CRASHES, CrashJournal
from datasets.errors import FatalError, RejectedPost, RetryableError


def classify_isolated(
    classifier: Classifier, texts: Sequence[str], journal: CrashJournal
) -> list[Outcome]:
    """Returns one outcome per text, in order.

    Raises FatalError if no post can be labelled.
    """
    outcomes: list[Outcome] = []
    for start, stop in journal.ranges(len(texts)):
        if journal.is_poison(start, stop):
            outcomes.append(
                RejectedPost(
                    f"the classifier's process died {MAX_CRASHES} times on this post alone"
                )
            )
            continue

        journal.begin(start, stop)
        outcomes.extend(_classify_bisecting(classifier, texts[start:stop]))
    return outcomes


def _classify_bisecting(classifier: Classifier, texts: Sequence[str]) -> list[Outcome]:
    try:
        outcomes = list(classifier.classify(texts))
    except FatalError:
        raise
    except (RejectedPost, RetryableError) as error:
        return [error] * len(texts)
    except Exception as error:  # noqa: BLE001 - any fault of a model is the reason of one post
        if len(texts) == 1:
            return [RejectedPost(f"{type(error).__name__}: {error}")]
        half = len(texts) // 2
        first = _classify_bisecting(classifier, texts[:half])
        return first + _classify_bisecting(classifier, texts[half:])

    if len(outcomes) != len(texts):
        raise FatalError(f"{classifier.model} gave {len(outcomes)} answers for {len(texts)} posts")
    return outcomes
