"""`copy`: labels from one lake into another."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from actors.integrations import integrations
from cli import options
from cli.run import show_skipped
from cli.tables import number, short, table


@click.command()
@click.option(
    "--from", "source", metavar="PATH|s3://…", required=True, help="The lake to copy labels from."
)
@click.option(
    "--to", "target", metavar="PATH|s3://…", required=True, help="The lake to copy them to."
)
@options.integrations_option
@options.start_date_option
@options.end_date_option
@options.skip_bad_files_option
@options.json_option
def copy(
    source: str,
    target: str,
    integration_names: tuple[tuple[str, ...], ...],
    start_date: str | None,
    end_date: str | None,
    skip_bad_files: bool,
    as_json: bool,
) -> None:
    """Copy labels between lakes, folders or S3: each file is read back, each post has one row afterwards.

    All integrations, unless some are named. Posts that the target has labelled keep its labels. Run
    it again after anything: it goes on where it was.
    """
    options.check_order(start_date, end_date)
    from backfill.addresses import lake_at
    from backfill.labels.copy import copy as copy_labels
    from backfill.labels.post_filter import BadFiles

    there, here = lake_at(source, "--from"), lake_at(target, "--to")
    if there == here:
        raise click.UsageError("--from and --to are the same lake")
    chosen = options.chosen_integrations(integration_names or (tuple(integrations()),))
    bad_files = BadFiles(skip_bad_files)
    copied = copy_labels(there, here, chosen, start_date, end_date, bad_files, sys.stderr)
    show_skipped([str(error) for error in bad_files.skipped])
    head = ["integration", "files", "labels", "bytes", "there already"]
    rows = [
        [short(name), *map(number, (c.files, c.rows, c.bytes, c.already))]
        for name, c in copied.items()
    ]
    click.echo(table(head, rows), err=as_json)
    for name, counts in copied.items():
        if counts.staged:
            click.echo(
                f"{short(name)}: {number(counts.staged)} staged labels of {source} are not in its lake yet; run or "
                "write that integration there, then copy again",
                err=True,
            )
    if as_json:
        click.echo(
            json.dumps({"integrations": {name: asdict(counts) for name, counts in copied.items()}})
        )
