"""What all back ends have in common: the registry, checks and settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.models.backends import backend_names, check_model
from actors.models.settings import ModelSettings
from actors.models.torch_runtime import choose_device
from datasets.errors import ConfigError
from tests.actors.models.loading import load, settings
from tests.support import ROOT


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, encoder: Path) -> None:
    for broken in (tmp_path / "none", tmp_path):
        with pytest.raises(
            ConfigError,
            match=r"^the model .* cannot be loaded .*; check model and revision",
        ) as caught:
            load("transformer", settings(broken))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="needs a model"):
        check_model("transformer", ModelSettings(), "ml_inference_test")
    with pytest.raises(ConfigError, match="there is no checkpoint"):
        check_model("checkpoint", settings(encoder, checkpoint="none"), "ml_inference_ime")
    with pytest.raises(ConfigError, match="there is no head none"):
        check_model("embedding-head", ModelSettings(heads="none"), "ml_inference_ime")


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 4},
        {"threads": 0},
        {"token_budget": -1},
        {"gpu": 0},
        {"gpu": 1.5},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ModelSettings(**changes)


def test_a_device_is_chosen_by_what_it_can_do() -> None:
    assert choose_device("float32").dtype is torch.float32
    assert choose_device("bfloat16").dtype is torch.bfloat16
    assert choose_device("auto").dtype in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("backend", backend_names())
def test_settings_are_checked_without_importing_torch(backend: str) -> None:
    code = f"""
import sys
from actors.models.backends import check_model
from actors.models.settings import ModelSettings
from datasets.errors import ConfigError
try:
    check_model({backend!r}, ModelSettings(), "ml_inference_none")
except ConfigError as error:
    print("torch" in sys.modules, "transformers" in sys.modules, error)
"""
    found = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert found.startswith("False False ")
    assert "backfill.toml" in found
