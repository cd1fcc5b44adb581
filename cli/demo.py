"""`demo`: everything that needs no key, on a small lake made for it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from cli import options
from cli.run import summary
from cli.tables import short

if TYPE_CHECKING:
    from backfill.config import Workspace

DEMO_DIR = "./demo-data"


@click.command()
@options.workspace_options
def demo(place: Workspace) -> None:
    """Build a small lake, label it with every integration that needs no key, and show the labels.

    The lake is made in ./demo-data, unless --data-dir says otherwise.
    """
    from backfill import demo as backfill_demo
    from backfill.run import run
    from backfill.scope import BadFiles, Scope
    from backfill.status import status
    from cli.status import coverage_table
    from datasets.lake import Lake

    if place.lake.root == options.DEFAULT_DATA_DIR:
        place = replace(place, lake=Lake(DEMO_DIR), database_url=f"sqlite:///{DEMO_DIR}/backfill.db")
    lake = backfill_demo.make_lake(place.lake.root)
    chosen, unable = backfill_demo.keyless(place)
    scope = Scope("posts", backfill_demo.START, backfill_demo.END)
    click.echo(f"A lake of demo posts is in {lake.root}. Labelling it with {', '.join(short(i.name) for i in chosen)}.")
    for reason in unable:
        click.echo(f"Left out: {reason}")
    result = run(place, scope, chosen, BadFiles(), sys.stderr)
    click.echo(f"\n{summary(result)}\n")
    click.echo(coverage_table(status(place, None, None, BadFiles())))
    for post in backfill_demo.some_labels(lake, chosen, 3):
        click.echo(f"\n{click.style(post.text, bold=True)}")
        for name, labels in post.labels.items():
            click.echo(f"  {short(name)}: {_shown(labels)}")
    again = run(place, scope, chosen, BadFiles(), sys.stderr)
    left = sum(tally.eligible for tally in again.tallies.values())
    click.echo(f"\nThe same run again: {left} posts left to label.")
    command = f"python -m cli status --data-dir {lake.root}"
    click.echo(f"Look around: {command}, or open {lake.root}/backfill.db")
    if result.exit_code or left:
        sys.exit(result.exit_code or 1)


def _shown(labels: dict[str, object]) -> str:
    """The first few, numbers with two digits."""
    cells = [f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in labels.items()]
    more = f", and {len(cells) - 4} more" if len(cells) > 4 else ""
    return ", ".join(cells[:4]) + more
