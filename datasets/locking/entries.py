"""What a lock says in its name: who wants or holds it, in which role, for which partition dates."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["run", "buffer", "recover"]
# Inclusive partition dates, YYYY-MM-DD.
Dates = tuple[str, str]
ALL_DATES: Dates = ("0001-01-01", "9999-12-31")
SUFFIX = ".lock"


@dataclass(frozen=True)
class Entry:
    """One lock's file or object. The token is new for each attempt, so no two attempts share a name."""

    role: str
    dates: Dates
    run_id: str
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def name(self) -> str:
        return f"{self.role}.{self.dates[0]}.{self.dates[1]}.{self.run_id}.{self.token}{SUFFIX}"

    def excludes(self, other: Entry) -> bool:
        return (
            self.role == other.role
            and overlap(self.dates, other.dates)
            and self.token != other.token
        )


def parse(path: str) -> Entry:
    role, start, end, run_id, token = path.rpartition("/")[2].removesuffix(SUFFIX).split(".")
    return Entry(role, (start, end), run_id, token)


def overlap(one: Dates, other: Dates) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def myself(entry: Entry) -> str:
    """What the holder says of itself to those who find the lock taken."""
    return f"run {entry.run_id} (process {os.getpid()} on {os.uname().nodename})"
