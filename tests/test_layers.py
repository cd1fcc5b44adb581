"""The shape of the code: layers, cycles, and the sizes and names of folders and modules.

Layers: cli → backfill → {actors | pds} → datasets. An arrow may import; nothing else may.
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
FOLDERS = sorted({path.parent for path in MODULES})

# `__init__.py` does not count: it is empty.
MAX_MODULES = 13
MAX_LINES = 520
# This many modules with a common prefix are a folder in disguise.
PREFIX_MODULES = 3


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_statements(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """All of them, those inside functions too, but not those for type checkers only."""

    def visit(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            children = list(node.orelse)
        for child in children:
            yield from visit(child)

    return visit(ast.parse(path.read_text()))


def imported_layers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.add((node.module or "").split(".")[0])
    return found & MAY_IMPORT.keys()


def imported_names(path: Path) -> set[str]:
    """Candidates for module names: `from a import b` imports `a`, and `a.b` if that is a module."""
    found = set()
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_imports_only_lower_layers(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    assert imported_layers(path) <= MAY_IMPORT[layer] | {layer}


def test_every_layer_has_modules() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == MAY_IMPORT.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module_name(path) for path in MODULES}
    graph = {
        module_name(path): (imported_names(path) & names) - {module_name(path)} for path in MODULES
    }
    assert sum(map(len, graph.values())) > len(MODULES), "the graph has lost its edges"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' ← '.join(error.args[1])}")


@pytest.mark.parametrize("folder", FOLDERS, ids=shown)
def test_a_folder_holds_few_modules_and_none_is_a_folder_in_disguise(folder: Path) -> None:
    stems = [path.stem for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(stems) <= MAX_MODULES, f"{shown(folder)} has {len(stems)} modules; make a folder"

    prefixes = Counter(stem.split("_")[0] for stem in stems)
    crowded = [prefix for prefix, count in prefixes.items() if count >= PREFIX_MODULES]
    assert not crowded, f"{shown(folder)} has {PREFIX_MODULES} modules {crowded}_…; make a folder"


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_module_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{shown(path)} has {lines} lines; split it by subject"


def test_datasets_is_ours_and_hugging_faces_is_not_installed() -> None:
    import datasets

    assert Path(datasets.__file__ or "").parent == ROOT / "datasets"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("datasets")
