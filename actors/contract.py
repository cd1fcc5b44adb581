"""What the pool expects of a classifier, and what a classifier returns for each post."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from datasets.errors import RejectedPost, RetryableError

# The result for one post: values of the integration's own columns, or why
# there are none.
Outcome = Mapping[str, Any] | RejectedPost | RetryableError


class Classifier(Protocol):
    """A loaded model, or the client of a remote one.

    `model` and `revision` are written to every label row.
    """

    model: str
    revision: str

    def classify(self, texts: Sequence[str]) -> Sequence[Outcome]:
        """Returns one outcome per text, in the order of the texts.

        The failure of a single post is an outcome, not an exception. Raises
        FatalError if no post can be labelled. Any other exception is
        attributed to one of the texts: the pool bisects the batch to find
        it.
        """
