"""`run` and `plan`: label eligible posts, and say beforehand what that would be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.tables import number, short, table

if TYPE_CHECKING:
    from backfill.labels.post_filter import PostFilter
    from backfill.labels.result import RunResult
    from backfill.workspace import Workspace


@click.command()
@options.selection_options
@options.qps_option
@options.skip_bad_files_option
@options.json_option
@options.workspace_options
def run(
    workspace: Workspace,
    scope: PostFilter,
    integration_names: tuple[tuple[str, ...], ...],
    qps: float | None,
    skip_bad_files: bool,
    as_json: bool,
) -> None:
    """Label the eligible posts: from the lake through the classifiers to the lake and the database.

    Run it again after anything: it goes on where it was.
    """
    options.require(integrations=integration_names)
    from backfill.labels.post_filter import BadFiles
    from backfill.labels.run import run as run_backfill

    chosen = options.chosen_integrations(integration_names)
    workspace = options.with_qps(workspace, qps)
    result = run_backfill(workspace, scope, chosen, BadFiles(skip_bad_files), sys.stderr)
    finish(result, as_json=as_json)


@click.command()
@options.selection_options
@options.skip_bad_files_option
@options.json_option
@options.workspace_options
def plan(
    workspace: Workspace,
    scope: PostFilter,
    integration_names: tuple[tuple[str, ...], ...],
    skip_bad_files: bool,
    as_json: bool,
) -> None:
    """Say what a run with these options would label, by date and integration. Changes nothing."""
    options.require(integrations=integration_names)
    from backfill.labels.plan import plan as make_plan
    from backfill.labels.post_filter import BadFiles

    bad_files = BadFiles(skip_bad_files)
    pending = make_plan(workspace, scope, options.chosen_integrations(integration_names), bad_files)
    show_skipped([str(error) for error in bad_files.skipped])
    if as_json:
        plans = {
            name: {"pending": dates, "total": sum(dates.values())}
            for name, dates in pending.items()
        }
        click.echo(json.dumps({"integrations": plans}))
        return
    days = sorted({day for dates in pending.values() for day in dates})
    rows: list[list[object]] = [
        [day, *(number(dates.get(day, 0)) for dates in pending.values())] for day in days
    ]
    rows.append(["total", *(number(sum(dates.values())) for dates in pending.values())])
    click.echo(table(["posts to label", *map(short, pending)], rows))


def finish(result: RunResult, *, as_json: bool) -> None:
    """Prints the summary and leaves with the run's exit code."""
    click.echo(summary(result), err=as_json)
    show_skipped(result.skipped)
    for name, tally in result.integrations.items():
        if tally.error:
            click.echo(f"error: {name}: {tally.error}", err=True)
        elif tally.behind:
            click.echo(
                f"error: {name}: the labels are safe in the lake, but {tally.behind}", err=True
            )
        elif tally.failed and not result.interrupted:
            reasons = ", ".join(
                f"{reason} {number(count)}" for reason, count in tally.retryable.most_common(5)
            )
            click.echo(
                f"{name}: {number(tally.failed)} posts are left for the next run ({reasons})",
                err=True,
            )
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    sys.exit(result.exit_code)


def summary(result: RunResult) -> str:
    rows: list[list[Any]] = []
    for name, tally in result.integrations.items():
        rate = number(round(tally.done / tally.seconds)) if tally.seconds else "-"
        counts = (tally.eligible, tally.labelled, tally.rejected.total(), tally.failed)
        rows.append([short(name), *map(number, counts), f"{tally.seconds:.0f}", rate])
    head = ["integration", "eligible", "labelled", "rejected", "left", "seconds", "posts/s"]
    lines = [f"run {result.run_id}", table(head, rows)]
    for name, tally in result.integrations.items():
        lines += [f"  {short(name)}: {api_line(tally.api)}"] if tally.api else []
        lines += [
            f"  {short(name)} rejected {number(n)}: {reason}"
            for reason, n in tally.rejected.most_common(5)
        ]
    return "\n".join(lines)


def api_line(api: dict[str, float]) -> str:
    """What an API was asked: calls, why some were repeated, how much of the quota is in use, tokens and their price."""
    retries = {
        key.removeprefix("retry_"): int(n) for key, n in api.items() if key.startswith("retry_")
    }
    parts = [
        f"{number(int(api.get('calls', 0)))} calls, {number(int(api.get('repeated_calls', 0)))} repeated"
    ]
    if retries:
        parts[0] += f" ({', '.join(f'{kind} {number(n)}' for kind, n in sorted(retries.items()))})"
    if "tokens_in" in api:
        parts.append(
            f"{number(int(api['tokens_in']))} tokens in, {number(int(api.get('tokens_out', 0)))} out"
        )
    if "price" in api:
        parts.append(f"price {api['price']:.4f}")
    if api.get("rate", 1) < 1:
        parts.append(f"at {api['rate']:.0%} of the quota at the end")
    return "; ".join(parts)


def show_skipped(skipped: list[str]) -> None:
    for reason in skipped:
        click.echo(f"skipped {reason.split('; replace or remove')[0]}", err=True)


def show_nameless(nameless: Mapping[str, int]) -> None:
    """Rows of label files without a URI, by file."""
    if nameless:
        files = "1 file" if len(nameless) == 1 else f"{number(len(nameless))} files"
        click.echo(
            f"{number(sum(nameless.values()))} rows of {files} have no uri, so the database leaves them out, "
            f"as selections do; the first are in {next(iter(nameless))}",
            err=True,
        )
