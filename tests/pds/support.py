"""The fixtures of the reference PDS, and the protocol's own vectors."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets.repos.state import Identity
from pds.identity import read_document

FIXTURES = Path(__file__).parent / "fixtures"
INTEROP = Path(__file__).parent / "interop"
INDEX: dict[str, Any] = json.loads((FIXTURES / "index.json").read_text())
WITH_CAR = ["alice", "bob", "carol", "blankpage"]


def car(name: str) -> bytes:
    return (FIXTURES / f"{name}.car").read_bytes()


def identity(name: str) -> Identity:
    body = (FIXTURES / f"{name}.did.json").read_bytes()
    return read_document(INDEX[name]["did"], 200, body, 0, insecure=True)


@lru_cache
def expected(name: str) -> list[dict[str, Any]]:
    """The records that the repository holds: `uri`, `cid`, `value`."""
    return [
        json.loads(line) for line in (FIXTURES / f"{name}.records.jsonl").read_text().splitlines()
    ]


def vectors(name: str) -> list[str]:
    """The lines of a file of the protocol's own vectors. Blanks at their ends are part of them."""
    lines = (INTEROP / name).read_text().split("\n")
    return [line for line in lines if line and not line.startswith("#")]
