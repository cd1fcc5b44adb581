"""The project's documents, read as data: code blocks, commands, links, headings, tables."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PACKAGES = ("cli", "backfill", "actors", "pds", "datasets")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Other files that show commands, in comments.
CONFIGURATIONS = [
    ROOT / name
    for name in (
        "backfill.example.toml",
        "ray_cluster.yaml",
        "deploy/rayjob.yaml",
        "Dockerfile",
        "Makefile",
    )
]
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"python -m (\S+)([^`\n]*)")
# What ends a command: a comment, a pipe or another command.
_END = re.compile(r"\s+(?:#|\||&&|&$)")


@dataclass(frozen=True)
class Block:
    """A fenced code block, and the paragraph before it."""

    language: str
    code: str
    before: str


@dataclass(frozen=True)
class Command:
    """`python -m MODULE ARGUMENTS`, as it stands in `path`."""

    path: Path
    module: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        words = " ".join([self.module, *self.arguments])
        return f"{self.path.relative_to(ROOT)}: {words}"


def blocks(text: str) -> list[Block]:
    """All fenced code blocks, without their indentation within a list."""
    found = []
    end = 0
    for match in _BLOCK.finditer(text):
        indent, language, code = match.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines()]
        found.append(Block(language, "\n".join(lines) + "\n", text[end : match.start()].strip()))
        end = match.end()
    return found


def commands(path: Path) -> Iterator[Command]:
    """Every `python -m …` of a file, in a block, in a sentence or in a comment."""
    text = re.sub(r"\\\n[ #]*", " ", path.read_text(encoding="utf-8"))
    for module, rest in _COMMAND.findall(text):
        line = _END.split(rest)[0].rstrip(" .,;:)")
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", module):
            continue
        words = shlex.split(line)
        # An ellipsis stands for more arguments, or for the value of the option before it.
        if words[-1:] == ["…"] and not "".join(words[-2:-1]).startswith("--"):
            words.pop()
        yield Command(path, module, tuple(words))


def make_targets(text: str) -> set[str]:
    """Targets that a document tells to make, in code."""
    code = [block.code for block in blocks(text)] + re.findall(r"`([^`\n]+)`", text)
    return {name for line in code for name in re.findall(r"\bmake ([a-z]+)\b", line)}


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]+`", "", _BLOCK.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    }


def paths(text: str) -> set[str]:
    """Files and folders of this repository that a document names in code."""
    first = "|".join((*PACKAGES, "tests", "docs", "deploy"))
    named = re.findall(rf"`((?:{first})/[\w./*-]*)`(?! \(new\))", text)
    return {name.rstrip("/") for name in named}


def table_rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the tables below a heading, without the headers."""
    _, marks, section = re.split(rf"^(#+) {re.escape(heading)}$", text, flags=re.MULTILINE)
    section = re.split(rf"^#{{1,{len(marks)}}} ", section, flags=re.MULTILINE)[0]
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        found += [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in table.splitlines()[2:]
        ]
    return found


def literals() -> str:
    """Every string literal of the packages, adjacent ones joined, one a line."""
    nodes = (
        node
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    return "\n".join(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
