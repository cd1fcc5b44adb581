"""`demo`: every integration, without a key, on a small lake made for it."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from cli import options
from cli.run import summary
from cli.tables import short

if TYPE_CHECKING:
    from backfill.workspace import Workspace

DEMO_DIR = "./demo-data"
_WIDTH = 80


@click.command()
@options.workspace_options
def demo(workspace: Workspace) -> None:
    """Build a small lake, label it with every integration, without a key, and show the labels.

    The lake is made in ./demo-data, unless --data-dir says otherwise.
    """
    from backfill.addresses import lake_at
    from backfill.labels import demo as backfill_demo
    from backfill.labels.post_filter import BadFiles, PostFilter
    from backfill.labels.run import run
    from backfill.labels.status import status
    from cli.status import coverage_table

    if workspace.lake == lake_at(options.DEFAULT_DATA_DIR):
        demo_lake = lake_at(DEMO_DIR)
        workspace = replace(
            workspace, lake=demo_lake, database_url=f"sqlite:///{demo_lake.root}/backfill.db"
        )
    lake = backfill_demo.make_lake(workspace.lake.root)
    able = backfill_demo.without_keys(workspace)
    scope = PostFilter("posts", backfill_demo.START, backfill_demo.END)
    _say(
        f"A lake of demo posts is in {lake.root}. Labelling it with {', '.join(short(i.name) for i in able.chosen)}."
    )
    for name, reason in able.local.items():
        _say(f"{short(name)}: {reason}. A local model stands in for it here, and its rows say so.")
    for name, reason in able.unable.items():
        _say(f"{short(name)} is left out: {reason}.")
    result = run(able.workspace, scope, able.chosen, BadFiles(), sys.stderr)
    click.echo(f"\n{summary(result)}\n")
    click.echo(coverage_table(status(workspace, None, None, BadFiles())))
    width = max(len(short(i.name)) for i in able.chosen) + 2
    for post in backfill_demo.some_labels(lake, able.chosen, 3):
        click.echo(f"\n{click.style(textwrap.fill(post.text, _WIDTH), bold=True)}")
        for name, labels in post.labels.items():
            _say(_shown(labels), first=f"  {short(name):<{width}}", rest=" " * (width + 2))
    again = run(able.workspace, scope, able.chosen, BadFiles(), sys.stderr)
    left = sum(tally.eligible for tally in again.integrations.values())
    click.echo(f"\nThe same run again: {left} posts left to label.")
    click.echo(f"Look around: python -m cli status --data-dir {lake.root}")
    if result.exit_code or left:
        sys.exit(result.exit_code or 1)


def _say(text: str, first: str = "", rest: str = "") -> None:
    click.echo(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
            break_long_words=False,
        )
    )


def _shown(labels: dict[str, object]) -> str:
    """Numbers with two digits."""
    return ", ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in labels.items()
    )
