"""`train-head` and `evaluate`: a group's own heads from its own hand labels, and how good any back end is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from actors.integrations import integrations, resolve
from cli import options
from cli.tables import table

if TYPE_CHECKING:
    from backfill.heads.model_card import Report
    from backfill.workspace import Workspace


class OneIntegration(click.ParamType[str]):
    name = "NAME|ALIAS"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = options.IntegrationNames().convert(value, param, ctx)
        if len(names) != 1:
            self.fail("give one integration", param, ctx)
        return names[0]


integration_option = click.option(
    "--integration",
    "-i",
    required=True,
    type=OneIntegration(),
    help=f"One of {', '.join(integrations())}.",
)


@click.command("train-head")
@integration_option
@click.option(
    "--labels",
    required=True,
    multiple=True,
    metavar="FILE",
    help=".csv, .jsonl or .parquet with a column `text` and the integration's label columns; may be repeated.",
)
@click.option(
    "--output", metavar="FILE", help="The head to write. [default heads/NAME.safetensors]"
)
@click.option(
    "--test", metavar="FILE", help="Labels to judge the head on that it is not trained on."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of folds and intervals.",
)
@options.workspace_options
def train_head(
    workspace: Workspace,
    integration: str,
    labels: tuple[str, ...],
    output: str | None,
    test: str | None,
    seed: int,
) -> None:
    """Train a head on the sentence encoder from hand labels, cross-validated, with a model card beside it.

    Use it by heads = "FILE" in the integration's table of backfill.toml.
    """
    from backfill.heads.train import train_head as train

    chosen = resolve(integration)
    output = output or f"heads/{chosen.name}.safetensors"
    report = train(chosen, labels, output, _trainable(workspace, chosen), test, seed)
    click.echo(table(["output", "measure", "value (95 % interval)"], report.rows))
    _show_notes(report)
    click.echo(f"\nWritten, with a card beside it: {output}\nTo use it, set in backfill.toml:\n")
    click.echo(f'[integrations.{chosen.name}]\nheads = "{output}"')


def _show_notes(report: Report) -> None:
    for note in report.notes:
        click.echo(note, err=True)


def _trainable(workspace: Workspace, integration: Any) -> Any:
    """The settings with the processors of this machine, for integrations that have a model."""
    import os

    settings = workspace.config.settings(integration)
    return (
        replace(settings, threads=os.cpu_count() or 1) if hasattr(settings, "threads") else settings
    )


@click.command()
@integration_option
@click.option("--labels", required=True, metavar="FILE", help="Hand labels, as for train-head.")
@click.option(
    "--against",
    metavar="FILE",
    help="A second config file: also print how far the two back ends agree.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the intervals."
)
@options.workspace_options
def evaluate(
    workspace: Workspace, integration: str, labels: str, against: str | None, seed: int
) -> None:
    """Run the configured back end over hand-labelled texts: accuracy, macro-F1, AUC, with 95 % intervals."""
    from backfill.config import load_config
    from backfill.heads.train import agreement, evaluate_file

    chosen = resolve(integration)
    settings = _trainable(workspace, chosen)
    report = evaluate_file(chosen, settings, labels, seed)
    click.echo(table(["output", "measure", "value (95 % interval)"], report.rows))
    _show_notes(report)
    if against:
        other = load_config(against).settings(chosen)
        rows = agreement(chosen, settings, other, labels).rows
        click.echo("\n" + table(["column", "agreement of the two", "value (95 % interval)"], rows))
