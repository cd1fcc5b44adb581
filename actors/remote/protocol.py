"""What a remote API is: requests, answers, errors, quota. Values only; client.py sends the requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets.boundary.http_headers import moment_in
from datasets.boundary.secrets import redact
from datasets.errors import RejectedPost, RetryableError

# A post waits for pauses of so many seconds in all. What would take longer is left for the next run.
LONGEST_PAUSE = 3600.0


@dataclass(frozen=True)
class Quota:
    """Requests a second, and where the endpoint counts them too, tokens a minute."""

    requests: float
    tokens_per_minute: float | None = None


@dataclass(frozen=True)
class Limits:
    """`in_flight` requests at a time; seconds for the whole answer; how often a request is tried."""

    in_flight: int = 100
    timeout: float = 30.0
    attempts: int = 8


@dataclass(frozen=True)
class Call:
    """One HTTP POST of a JSON body. The secret goes into a header, never into the URL."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class Api(Protocol):
    """One remote API, as one integration uses it."""

    model: str
    revision: str
    # Posts of one request at the most.
    group: int

    def precheck(self, text: str) -> RejectedPost | None:
        """A reason not to ask at all."""

    def alone(self, text: str) -> bool:
        """Whether this text must not share a request with others."""

    def key(self, text: str) -> str:
        """All that the answer depends on; equal keys are asked once."""

    def call(self, texts: Sequence[str]) -> Call: ...

    def tokens(self, texts: Sequence[str]) -> float:
        """What the request will count for, about; 0 where tokens are not counted."""

    def raise_for_error(self, status: int, body: bytes) -> None:
        """What an HTTP status of 300 to 499 means. Raises RejectedPost, RetryableError or FatalError.

        It depends on nothing else: a kept answer is judged again. Where a refusal may be of the post or
        of every request, that is a DoubtfulRefusal.
        """

    def parse(self, body: bytes, number: int, count: int) -> Mapping[str, Any]:
        """The labels of post `number` of `count`. Raises MalformedError where the answer has none."""

    def usage(self, body: bytes) -> Counter[str]:
        """`tokens_in` and `tokens_out` of an answer, where it says."""


@dataclass(frozen=True)
class Remote:
    """An API with what it takes to ask it: the quota belongs to `credential` at `endpoint`.

    `prices` are for a million tokens in and out, where they are known.
    """

    api: Api
    quota: Quota
    limits: Limits
    endpoint: str
    credential: str
    prices: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"Remote({self.api.model})"


class DoubtfulRefusal(RejectedPost):
    """A refusal of the post; or where nothing has worked yet, perhaps of every request, as `otherwise` then says."""

    def __init__(self, reason: str, otherwise: str) -> None:
        super().__init__(reason, otherwise)
        self.reason, self.otherwise = reason, otherwise

    def __str__(self) -> str:
        return self.reason


class AskOtherwise(RetryableError):
    """A refusal of how the request was put. It is put otherwise from now on, so this was no try of it."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, 0.0, kind)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.message, self.kind)


class MalformedError(RetryableError):
    """An answer that does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="malformed")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


def asked_to_wait(seconds: float, now: float | None = None) -> RetryableError:
    """What becomes of a post where the other side asks, `now` (epoch), for a pause beyond LONGEST_PAUSE."""
    until = f"asked to wait until {moment_in(seconds, now)}"
    return RetryableError(until, retry_after=seconds, kind=until)


def readable(text: str, most: int = 200) -> str:
    """Words of the other side, at most so many characters, as they can be shown and stored.

    Without any secret, and that first: one that is cut is not known any more.
    """
    return " ".join(redact(text)[:most].encode("utf-8", "replace").decode().split())
