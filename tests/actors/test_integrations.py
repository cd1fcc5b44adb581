"""The contract that every integration in the registry fulfils."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing

import pytest

from actors.integrations import Integration, integrations, resolve
from actors.models.backends import CommonBackend, backend_names
from datasets.errors import ConfigError
from datasets.schemas import OUTCOME_COLUMNS, POST_COLUMNS, TYPES
from tests.support import ROOT, VALENCE

ALL = list(integrations().values())


@pytest.mark.parametrize("integration", ALL, ids=lambda i: i.name)
def test_an_integration_is_well_formed(integration: Integration) -> None:
    assert re.fullmatch(r"ml_inference_[a-z_]+", integration.name)
    assert re.fullmatch(r"[a-z]", integration.alias)
    assert integration.columns
    assert set(integration.columns.values()) <= TYPES.keys()
    assert not integration.columns.keys() & {*POST_COLUMNS, *OUTCOME_COLUMNS}
    assert dataclasses.is_dataclass(integration.settings)
    assert integration.settings() == integration.settings(), "settings are values with defaults"
    assert integration.placement(integration.settings()) in ("cpu", "model", "api")
    assert integration.labels.integration == integration.name
    assert set(integration.columns) < set(integration.labels.schema.names)


@pytest.mark.parametrize("integration", ALL, ids=lambda i: i.name)
def test_an_integration_answers_to_its_name_and_alias(
    integration: Integration,
) -> None:
    short = integration.name.removeprefix("ml_inference_")
    assert resolve(integration.name) is resolve(short) is resolve(integration.alias) is integration


@pytest.mark.parametrize("integration", ALL, ids=lambda i: i.name)
def test_back_ends_are_in_the_registry_and_have_a_local_model(
    integration: Integration,
) -> None:
    hints = typing.get_type_hints(integration.settings)
    backends = set(typing.get_args(hints.get("backend"))) - {"api", "llm"}
    assert backends <= set(backend_names())

    local = integration.local_model
    assert (local is not None) == bool(backends)
    if local:
        assert backends >= set(typing.get_args(CommonBackend))
        assert set(local.required) <= set(local.outputs)
        assert {name for group in local.groups for name in group} <= set(local.outputs)
        labels = local.decide(dict.fromkeys(local.required, 0.75))
        assert labels.keys() == integration.columns.keys()


def test_names_and_aliases_are_distinct() -> None:
    assert len({name for i in ALL for name in (i.name, i.alias)}) == 2 * len(ALL)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=rf"no integration 'x'.*{VALENCE} \(v\)"):
        resolve("x")


def test_the_registry_imports_nothing_heavy() -> None:
    heavy = ("ray", "torch", "transformers", "pyarrow", "pandas", "numpy", "httpx")
    code = (
        "import sys; from actors.integrations import integrations; integrations();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"
