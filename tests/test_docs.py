"""The documentation says what is so: commands parse, links resolve, messages exist, steps work."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from actors.integrations import integrations
from cli.__main__ import make_cli
from tests import data_dictionary, documents
from tests.documents import CONFIGURATIONS, PACKAGES, PAGES, Block, Command
from tests.support import ROOT, make_lake

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
COMMANDS = [command for path in [*PAGES, *CONFIGURATIONS] for command in documents.commands(path)]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# Commands


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.module == "cli"], ids=str)
def test_a_command_of_ours_parses(command: Command) -> None:
    if "words" not in command.arguments:  # the integration that CONTRIBUTING.md adds
        parse(make_cli(), list(command.arguments))


def parse(
    command: click.Command, arguments: list[str], parent: click.Context | None = None
) -> None:
    """Raises UsageError for what click refuses. Runs nothing."""
    if isinstance(command, click.Group):
        options = [word for word in arguments if word.startswith("-")]
        if not arguments or options == arguments:
            return
        name, *rest = arguments
        context = click.Context(command, parent=parent, info_name=name)
        found = command.get_command(context, name)
        assert found, f"there is no command {name}"
        parse(found, rest, context)
        return

    # A command that a sentence only mentions has no arguments, and may need some.
    if arguments and arguments != ["--help"]:
        command.make_context("cli", arguments, parent)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.module != "cli"], ids=str)
def test_another_command_names_a_module_that_exists(command: Command) -> None:
    assert importlib.util.find_spec(command.module), command.module
    first = command.arguments[0] if command.arguments else ""
    if command.module == "tests.benchmarks" and first.islower():
        assert (ROOT / f"tests/benchmarks/{first}.py").exists()
    if command.module == "pytest":
        files = [word for word in command.arguments if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files)


def test_every_command_is_documented() -> None:
    shown = {command.arguments for command in COMMANDS if command.module == "cli"}
    for path in all_commands(make_cli()):
        assert any(arguments[: len(path)] == path for arguments in shown), " ".join(path)


def all_commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        here = (*path, name)
        found += all_commands(command, here) if isinstance(command, click.Group) else [here]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", read(ROOT / "Makefile"), re.MULTILINE))
    assert documents.make_targets(read(path)) <= targets


# Links and paths


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_resolve(path: Path) -> None:
    for link in documents.links(read(path)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in documents.anchors(read(target)), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in documents.paths(read(path)) - {"actors/classifiers/words.py"}:
        # A module may become a folder of the same name.
        assert any(ROOT.glob(name)) or (ROOT / f"{name}.py").exists(), name


def test_the_architecture_names_every_folder_with_code() -> None:
    named = documents.paths(read(ROOT / "docs/architecture.md"))
    folders = {
        str(path.parent.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert folders <= named


def test_every_page_is_in_the_readme() -> None:
    linked = {link.partition("#")[0] for link in documents.links(read(README))}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").iterdir()} <= linked


# Content


def test_the_readme_is_short_and_lists_every_integration() -> None:
    text = read(README)
    assert len(text.splitlines()) <= 250
    rows = [row[:2] for row in documents.table_rows(text, "Label your posts")]
    listed = [[name.strip("`"), alias.strip("`")] for name, alias in rows if "ml_" in name]
    assert listed == [[i.name, i.alias] for i in integrations().values()]


def test_messages_of_the_runbook_are_those_of_the_code() -> None:
    messages = [
        row[0].strip("`")
        for row in documents.table_rows(read(ROOT / "docs/operations.md"), "Runbook")
        if row[0].startswith("`")
    ]
    assert len(messages) > 20
    literals = documents.literals()
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in literals, message


def test_every_column_has_a_meaning_and_the_data_dictionary_is_current() -> None:
    meanings = data_dictionary.load_meanings()
    columns = {section.table: set(section.types) for section in data_dictionary.sections()}
    assert {table: set(names) for table, names in meanings.items()} == columns
    assert read(data_dictionary.PAGE) == data_dictionary.render(), (
        "run python -m tests.data_dictionary"
    )


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors"}
    assert citation["version"] == VERSION
    assert f"\n## {VERSION} - {citation['date-released']}\n" in read(ROOT / "CHANGELOG.md")
    images = re.findall(
        r"label-backfill:(\d\S*)",
        read(ROOT / "deploy/rayjob.yaml") + read(ROOT / "docs/operations.md"),
    )
    assert set(images) == {VERSION}


def test_github_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load(read(ROOT / ".github/workflows/ci.yml"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert re.findall(r"^make (\w+)$", read(ROOT / ".ci/run"), re.MULTILINE) == ["lint", "test"]


def test_hooks_call_tools_of_the_environment() -> None:
    config = yaml.safe_load(read(ROOT / ".pre-commit-config.yaml"))
    for hook in [hook for repo in config["repos"] for hook in repo["hooks"]]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


# CONTRIBUTING.md, "Add an integration": each step, in a copy of the tree


def test_an_integration_is_added_by_following_the_steps(tmp_path: Path) -> None:
    section = re.split(r"^## ", read(CONTRIBUTING), flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith("Add an integration")]
    copy_tree(tmp_path)
    make_lake(tmp_path / "demo-data", 3)
    shell = [follow(block, tmp_path) for block in documents.blocks(text)][-1]

    run = [line for line in shell.splitlines() if " cli run " not in line]  # that would start Ray
    assert len(run) == len(shell.splitlines()) - 1
    output = [call(line, tmp_path) for line in run]
    assert re.search(r"^total +6$", output[2], re.MULTILINE)
    assert "words" in output[3]
    code = (
        "from actors.integrations import resolve; found = resolve('w');"
        "print(found.load(found.settings()).classify(['a b', '']))"
    )
    assert call(f'python -c "{code}"', tmp_path) == "[{'word_count': 2}, {'word_count': 0}]\n"


def copy_tree(target: Path) -> None:
    for name in (*PACKAGES, "tests", "docs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "backfill.example.toml", "pyproject.toml"):
        shutil.copy(ROOT / name, target / name)


def follow(block: Block, root: Path) -> str:
    """Carries out what the sentence before a block says; the block's code."""
    instruction = block.before.split("\n\n")[-1]
    [*_, file] = re.findall(r"`([\w/.]+\.\w+)`", instruction) or [""]
    if "Create" in instruction:
        (root / file).write_text(block.code, encoding="utf-8")
    elif "`_REGISTRY`" in instruction:
        edit(root / file, r"(_REGISTRY = \(\n(?:    .*\n)*)", block.code)
    elif "Add a row" in instruction:
        edit(root / file, r"((?:\| `ml_inference_.*\n)+)", block.code)
    elif file.endswith(".toml"):
        edit(root / file, r"([\s\S]+)\Z", f"\n{block.code}")
    return block.code


def edit(path: Path, after: str, text: str) -> None:
    """Inserts `text` after the one place that the pattern finds."""
    changed, count = re.subn(after, lambda match: match[1] + text, read(path), count=1)
    assert count == 1, path
    path.write_text(changed, encoding="utf-8")


def call(line: str, folder: Path) -> str:
    words = line.replace("python", f'"{sys.executable}"', 1)
    result = subprocess.run(
        words, shell=True, cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
    return result.stdout
