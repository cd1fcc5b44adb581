"""`status`: what is queued, covered, rejected, and how the last runs went."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import click

from actors.integrations import integrations
from cli import options
from cli.run import api_line, show_nameless, show_skipped
from cli.tables import number, percent, short, table

if TYPE_CHECKING:
    from backfill.labels.status import Status
    from backfill.workspace import Workspace

_LAST_DATES = 31
_REASON_CHARS = 46


@click.command()
@options.start_date_option
@options.end_date_option
@click.option(
    "--rebuild-database", is_flag=True, help="Fill the database's label tables from the lake anew."
)
@options.skip_bad_files_option
@options.json_option
@options.workspace_options
def status(
    workspace: Workspace,
    start_date: str | None,
    end_date: str | None,
    rebuild_database: bool,
    skip_bad_files: bool,
    as_json: bool,
) -> None:
    """Show queues, coverage by date, the last runs, and rejected posts by reason."""
    options.check_order(start_date, end_date)
    from backfill.labels import status as backfill_status
    from backfill.labels.post_filter import BadFiles

    bad_files, nameless = BadFiles(skip_bad_files), dict[str, int]()
    if rebuild_database:
        say = functools.partial(click.echo, err=True)
        backfill_status.rebuild_database(workspace, say, bad_files, nameless.__setitem__)
        show_nameless(nameless)
    found = backfill_status.status(workspace, start_date, end_date, bad_files)
    show_skipped([str(error) for error in bad_files.skipped])
    if as_json:
        click.echo(json.dumps(found.as_dict()))
        return
    click.echo(
        "\n\n".join(
            filter(None, (coverage_table(found), _queues(found), _rejected(found), _runs(found)))
        )
    )
    if found.database_error:
        click.echo(f"\nThe database could not be read: {found.database_error}")


def coverage_table(found: Status) -> str:
    names = {name: integration.alias for name, integration in integrations().items()}
    days = sorted({day for dates in found.coverage.values() for day in dates})
    rows = []
    for day in days[-_LAST_DATES:]:
        counts = [
            found.coverage[name].get(day, {"posts": 0, "labelled": 0, "rejected": 0})
            for name in names
        ]
        posts = max(count["posts"] for count in counts)
        rows.append(
            [day, number(posts), *(percent(c["labelled"] + c["rejected"], posts) for c in counts)]
        )
    if len(days) > _LAST_DATES:
        rows.insert(0, [f"({len(days) - _LAST_DATES} earlier)", *[""] * (len(names) + 1)])
    legend = ", ".join(f"{alias} {short(name)}" for name, alias in names.items())
    return f"{table(['date', 'posts', *names.values()], rows)}\n{legend}"


def _queues(found: Status) -> str:
    rows = []
    for name, counts in found.queues.items():
        total = {
            key: sum(day[key] for day in found.coverage[name].values())
            for key in ("labelled", "rejected")
        }
        behind = number(found.behind[name]) if name in found.behind else "-"
        rows.append(
            [
                short(name),
                *map(number, (*total.values(), counts["input"], counts["output"])),
                behind,
            ]
        )
    return table(
        ["integration", "labelled", "rejected", "queued", "staged", "not in database"], rows
    )


def _rejected(found: Status) -> str:
    rows = [
        [reason[:_REASON_CHARS], short(name), number(count)]
        for name, reasons in found.rejected.items()
        for reason, count in reasons.most_common(5)
    ]
    return table(["rejected because", "integration", "posts"], rows) if rows else ""


def _runs(found: Status) -> str:
    rows = []
    for run in found.runs[:5]:
        counts = run["counts"].values()
        done = sum(count["labelled"] for count in counts)
        ended = "running or killed" if run["exit_code"] is None else f"exit {run['exit_code']}"
        rows.append([run["run_id"], run["command"], run["started_at"], number(done), ended])
    if not rows:
        return ""
    lines = [table(["last runs", "command", "started", "labelled", "ended"], rows)]
    for run in found.runs[:5]:
        asked = {name: count["api"] for name, count in run["counts"].items() if count.get("api")}
        lines += [
            f"  {run['run_id']} {short(name)}: {api_line(api)}" for name, api in asked.items()
        ]
    return "\n".join(lines)
