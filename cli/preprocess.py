"""`preprocess`: from raw posts to those that runs select from."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from cli import options
from cli.run import show_skipped
from cli.tables import number

if TYPE_CHECKING:
    from backfill.workspace import Workspace


@click.command()
@click.option(
    "--start-date",
    type=options.Day(),
    help="First raw partition date, inclusive. [default: the first]",
)
@click.option(
    "--end-date", type=options.Day(), help="Last raw partition date, inclusive. [default: the last]"
)
@options.skip_bad_files_option
@options.json_option
@options.workspace_options
def preprocess(
    workspace: Workspace,
    start_date: str | None,
    end_date: str | None,
    skip_bad_files: bool,
    as_json: bool,
) -> None:
    """Turn new raw posts and replies into preprocessed posts, by the date of their creation.

    Leaves out posts with a blank text, and those that exist already. Safe to run again at any time.
    """
    options.check_order(start_date, end_date)

    from backfill.labels.post_filter import BadFiles
    from backfill.repos.preprocess import preprocess as run_preprocess

    bad_files = BadFiles(skip_bad_files)
    result = run_preprocess(workspace, start_date, end_date, bad_files, sys.stderr)

    show_skipped([str(error) for error in bad_files.skipped])
    written = number(result.written.total())
    dates = number(len(result.written))
    click.echo(
        f"{written} new posts on {dates} dates; of {number(result.read)} raw posts, "
        f"{number(result.repeated)} were there already and {number(result.blank)} are blank",
        err=as_json,
    )

    if as_json:
        counts = {
            "read": result.read,
            "blank": result.blank,
            "repeated": result.repeated,
            "written": dict(sorted(result.written.items())),
        }
        click.echo(json.dumps(counts))
