"""Small models with random weights, saved once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def encoder(folder: Path) -> Path:
    return models.save_encoder(folder / "encoder")


@pytest.fixture(scope="session")
def distil(folder: Path) -> Path:
    return models.save_distil(folder / "distil")


@pytest.fixture(scope="session")
def classifier(folder: Path) -> Path:
    return models.save_classifier(folder / "classifier", ["fine", "toxicity", "insult"])
