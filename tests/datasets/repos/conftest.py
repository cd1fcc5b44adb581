from __future__ import annotations

from pathlib import Path

import pytest

from datasets.database import Database, open_database
from datasets.lake import Lake
from datasets.repos.state import create_tables


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Lake, Database]:
    """An empty lake and its database."""
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    create_tables(database)
    return Lake(str(tmp_path / "lake")), database
