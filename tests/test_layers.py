"""The layers of the house: cli → backfill → {actors | pds} → datasets. An arrow may import; nothing else may."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "cli": {"backfill", "actors", "pds", "datasets"},
    "backfill": {"actors", "pds", "datasets"},
    "actors": {"datasets"},
    "pds": {"datasets"},
    "datasets": set(),
}
MODULES = sorted(path for layer in MAY_IMPORT for path in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.add((node.module or "").split(".")[0])
    return found & MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_lower_layers(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    assert imported(path) <= MAY_IMPORT[layer] | {layer}


def test_every_layer_has_modules() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == MAY_IMPORT.keys()


def test_datasets_is_ours_and_hugging_faces_is_not_installed() -> None:
    import datasets

    assert Path(datasets.__file__ or "").parent == ROOT / "datasets"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("datasets")
