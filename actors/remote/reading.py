"""What an answer says, whatever the other side has sent: labels that can be stored, or an error of ours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from actors.contract import Outcome
from actors.remote.protocol import Api, MalformedError
from datasets.errors import BackfillError, RejectedPost

# Tokens that one answer may say it used. More would hold up the next requests for a long time.
_MOST_TOKENS = 1_000_000


def read(api: Api, kept: bytes) -> Mapping[str, Any]:
    """The labels in an answer: HTTP status, place of the post in its request, size of that, body.

    Raises MalformedError for whatever cannot be read, or cannot be stored.
    """
    try:
        status, number, count, body = kept.split(b" ", 3)
        if int(status) >= 300:
            api.raise_for_error(int(status), body)
        labels = api.parse(body, int(number), int(count))
        if not all(map(_is_storable, labels.values())):
            raise MalformedError("a label that cannot be stored")
        return labels
    except BackfillError:
        raise
    except Exception as error:  # an answer may be anything, and is nobody else's fault
        raise MalformedError(f"an answer that cannot be read ({type(error).__name__})") from error


def _is_storable(value: Any) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case int():
            return -(2**63) <= value < 2**63
        case str():
            return value.isascii() or not not_text(value)
    return value is None


def not_text(text: str) -> RejectedPost | None:
    """A half of a surrogate pair has no place in a request, nor in a label."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return RejectedPost("NOT_UNICODE: the text has a half of a surrogate pair")
    return None


def usage(api: Api, body: bytes) -> Counter[str]:
    """What an answer says it used; nothing where that makes no sense, which does not spoil the answer."""
    try:
        used = api.usage(body)
    except Exception:  # noqa: BLE001 - as for `read`
        return Counter()
    return used if all(0 <= count <= _MOST_TOKENS for count in used.values()) else Counter()


def asks_again(kept: Outcome, earlier: bool) -> bool:
    """Whether a kept answer is of no use: it can't be read, or `earlier` refused a post that is tried again now."""
    return isinstance(kept, MalformedError) or (earlier and isinstance(kept, RejectedPost))
