"""Whether the users of a host that does not answer are somewhere else by now. Pure.

Where they are was cached. To ask the directory again for each of them would be a request for every
user of a host that is merely down, so a few are asked for: if one has moved, all are asked for; if
none has, the others are left where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_SAMPLE = 20
Held = TypeVar("Held")


@dataclass
class _Host(Generic[Held]):
    asked: int = 0
    answered: int = 0
    moved: bool = False
    held: list[Held] = field(default_factory=list)


class RelocationProbe(Generic[Held]):
    """What is held is whatever the caller needs to go on with a user."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host[Held]] = {}

    def ask(self, host: str, held: Held) -> bool | None:
        """Whether to ask for this user again; None: it is held until that is known."""
        doubt = self._hosts.setdefault(host, _Host())
        if doubt.moved or doubt.asked < _SAMPLE:
            doubt.asked += 1
            return True
        if doubt.answered >= doubt.asked:
            return False
        doubt.held.append(held)
        return None

    def answered(self, host: str, *, moved: bool) -> tuple[bool, Sequence[Held]]:
        """One of those asked for has moved, or not. Whether to ask for those that were held, and who they are."""
        doubt = self._hosts[host]
        doubt.answered += 1
        doubt.moved = doubt.moved or moved
        if not doubt.moved and doubt.answered < doubt.asked:
            return False, ()
        held, doubt.held = doubt.held, []
        if doubt.moved:
            doubt.asked += len(held)
        return doubt.moved, held
