"""Finds out whether the users of a host that does not respond have moved to another host. Pure.

Their host comes from the cache of identities. To resolve all of them again would be one request
per user of a host that is merely down. So a few are resolved first. If one of them has moved, all
others are resolved too; if none has, the others are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

_SAMPLE = 20

Held = TypeVar("Held")


class Decision(Enum):
    RESOLVE = auto()
    DO_NOT_RESOLVE = auto()
    WAIT = auto()
    """Until the sample tells; `record` returns the user then."""


@dataclass
class _HostSample(Generic[Held]):
    resolving: int = 0
    answered: int = 0
    moved: bool = False
    waiting: list[Held] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.answered >= self.resolving


class RelocationProbe(Generic[Held]):
    """`Held` is what the caller needs to continue with a user who waited."""

    def __init__(self) -> None:
        self._samples: dict[str, _HostSample[Held]] = {}

    def decide(self, host: str, held: Held) -> Decision:
        """What to do about a user of a host that does not respond."""
        sample = self._samples.setdefault(host, _HostSample())

        if sample.moved or sample.resolving < _SAMPLE:
            sample.resolving += 1
            return Decision.RESOLVE

        if sample.complete:
            return Decision.DO_NOT_RESOLVE

        sample.waiting.append(held)
        return Decision.WAIT

    def record(self, host: str, *, moved: bool) -> tuple[bool, Sequence[Held]]:
        """Records whether a user who was resolved again has moved.

        Returns the users who need not wait any longer, and whether to resolve them.
        """
        sample = self._samples[host]
        sample.answered += 1
        sample.moved = sample.moved or moved
        if not sample.moved and not sample.complete:
            return False, ()

        released = sample.waiting
        sample.waiting = []
        if sample.moved:
            sample.resolving += len(released)
        return sample.moved, released
