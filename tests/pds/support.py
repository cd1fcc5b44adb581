"""Data that others published: the repositories of a reference PDS, and the protocol's test vectors.

Both are read from `shared/`, beside the checkout. Tests that need them carry `needs_fixtures` or
`needs_interop` and skip elsewhere; tests of the same code with repositories of our own
(tests/pds/repos.py) run everywhere.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import pytest

from datasets.repos.state import Identity
from pds.identity import read_document
from tests.support import ROOT

SHARED = ROOT.parent / "shared"
FIXTURES = SHARED / "pds_fixtures"
INTEROP = SHARED / "interop"

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason="needs the repositories of a reference PDS in ../shared/pds_fixtures",
)
needs_interop = pytest.mark.skipif(
    not INTEROP.is_dir(),
    reason="needs the protocol's test vectors in ../shared/interop",
)

WITH_CAR = ["alice", "bob", "carol", "blankpage"]


def _load_index() -> dict[str, Any]:
    path = FIXTURES / "index.json"
    return json.loads(path.read_text()) if path.exists() else {}


INDEX = _load_index()


def car(name: str) -> bytes:
    return (FIXTURES / f"{name}.car").read_bytes()


def identity(name: str) -> Identity:
    body = (FIXTURES / f"{name}.did.json").read_bytes()
    return read_document(INDEX[name]["did"], 200, body, 0, insecure=True)


@lru_cache
def expected(name: str) -> list[dict[str, Any]]:
    """The records that the repository holds: `uri`, `cid`, `value`."""
    lines = (FIXTURES / f"{name}.records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def vectors(name: str) -> list[str]:
    """Lines of a text file of test vectors, blanks at their ends included; [] without the file."""
    path = INTEROP / name
    if not path.exists():
        return []

    lines = path.read_text().split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def json_vectors(name: str) -> list[dict[str, Any]]:
    """Entries of a JSON file of test vectors; [] without the file."""
    path = INTEROP / name
    return json.loads(path.read_text()) if path.exists() else []
