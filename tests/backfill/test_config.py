"""backfill.example.toml names every setting, with its default, and everything in it is valid."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from actors.integrations import integrations
from backfill.config import RunSettings, load_config
from pds.settings import PdsSettings
from tests.support import ROOT

EXAMPLE = ROOT / "backfill.example.toml"


def alternatives() -> list[str]:
    """The blocks that are commented out, with their comment signs removed."""
    blocks = EXAMPLE.read_text(encoding="utf-8").split("\n\n")
    lines = [
        [line[1:] for line in block.splitlines() if re.match(r"#[\[a-z]", line)] for block in blocks
    ]
    return ["\n".join(block) for block in lines if block and block[0].startswith("[")]


def test_what_is_set_in_the_example_is_the_default() -> None:
    config = load_config(str(EXAMPLE))
    assert (config.run, config.pds) == (RunSettings(), PdsSettings())
    assert set(config.integrations) == set(integrations())
    for name, integration in integrations().items():
        assert config.integrations[name] == integration.settings()


def test_there_are_alternatives_for_each_documented_back_end() -> None:
    text = "\n".join(alternatives())
    for backend in ("embedding-head", "transformer", "zero-shot", "checkpoint", "llm"):
        assert f'backend = "{backend}"' in text
    assert 'model = "unitary/unbiased-toxic-roberta"' in text
    assert text.count('model = "MoritzLaurer/deberta-v3-base-zeroshot-v2.0"') == 3


@pytest.mark.parametrize("block", alternatives())
def test_each_alternative_is_valid_by_itself_and_changes_something(
    block: str, tmp_path: Path
) -> None:
    path = tmp_path / "backfill.toml"
    path.write_text(block, encoding="utf-8")
    [(name, settings)] = load_config(str(path)).integrations.items()
    integration = integrations()[name]
    assert settings != integration.settings()
    for table in ("labels", "hypotheses"):
        outputs = (
            getattr(settings, table).values() if table == "labels" else getattr(settings, table)
        )
        assert set(outputs) <= set(integration.outputs)


@pytest.mark.parametrize("name", ["run", "pds", *integrations()])
def test_every_setting_stands_in_the_example(name: str) -> None:
    """Those of local models and of LLMs stand in one table only."""
    kind = {"run": RunSettings, "pds": PdsSettings}.get(name) or integrations()[name].settings
    named = set(
        re.findall(
            r"^#?(\w+) = |^#?\[integrations\.\w+\.(\w+)\]",
            EXAMPLE.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    keys = {key for pair in named for key in pair if key}
    assert {field.name for field in dataclasses.fields(kind)} <= keys
