"""`pds sync`, `pds resolve`, `pds status`: users' repositories, from their hosts to the lake."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.tables import number, table
from datasets.repos.coverage import RECORD_TYPES
from pds.settings import MIB, PLC_DIRECTORY, PdsSettings

if TYPE_CHECKING:
    from backfill.repos.resolve import Unresolved
    from backfill.repos.sync import SyncOptions, SyncResult
    from backfill.workspace import Workspace
    from datasets.repos.state import Identity

EXIT_UNFINISHED = 3
_SHOWN = 10
_REASON_CHARS = 60


class RecordTypes(click.ParamType[tuple[str, ...]]):
    """One record type, or several separated by commas."""

    name = "TYPE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value

        names = tuple(name.strip() for name in value.split(","))
        for name in names:
            if name not in RECORD_TYPES:
                self.fail(f"{name!r} is not one of {', '.join(RECORD_TYPES)}", param, ctx)
        return names


_USERS = (
    click.option(
        "--did", "dids", metavar="DID", multiple=True, help="A user; repeat it for several."
    ),
    click.option("--dids-file", metavar="FILE", help="A file with a DID on each line."),
)
_NETWORK = (
    click.option(
        "--plc-url",
        metavar="URL",
        default=PLC_DIRECTORY,
        show_default=True,
        help="The PLC directory.",
    ),
    click.option(
        "--host-qps",
        type=options.Number(),
        help=f"Most requests per second to each host. [default: {PdsSettings.host_qps:g}]",
    ),
    click.option(
        "--allow-insecure-hosts",
        is_flag=True,
        help="Allow hosts without https and on private addresses, for tests and your own network.",
    ),
)


def with_options(*groups: tuple[Any, ...]) -> Callable[[options.Command], options.Command]:
    def decorate(command: options.Command) -> options.Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


@click.group()
def pds() -> None:
    """Fetch users' repositories from their Personal Data Servers, verified, into the lake."""


@pds.command()
@with_options(_USERS)
@click.option("--host", metavar="URL", help="Fetch every repository that this host lists.")
@click.option(
    "--record-types",
    type=RecordTypes(),
    multiple=True,
    help="Records to fetch; repeat it or separate them by commas. "
    f"[default: {','.join(RECORD_TYPES)}]",
)
@click.option(
    "--start-date", type=options.Day(), help="First day of `createdAt` in UTC, inclusive."
)
@click.option("--end-date", type=options.Day(), help="Last day of `createdAt` in UTC, inclusive.")
@with_options(_NETWORK)
@click.option(
    "--max-repo-mib",
    type=click.IntRange(min=1),
    help=f"Largest repository to fetch, in MiB. [default: {PdsSettings.max_repo_bytes // MIB}]",
)
@options.json_option
@options.workspace_options
def sync(
    workspace: Workspace, as_json: bool, record_types: tuple[tuple[str, ...], ...], **given: Any
) -> None:
    """Fetch users' repositories and write their records to the lake.

    Safe to run again at any time: unchanged repositories are not fetched, changed ones replaced.
    """
    options.check_order(given["start_date"], given["end_date"])
    users = bool(given["dids"] or given["dids_file"])
    if users == bool(given["host"]):
        raise click.UsageError("give either users, with --did or --dids-file, or a --host")

    from backfill.repos.sync import sync as run_sync

    wanted = dict.fromkeys(name for group in record_types for name in group) or RECORD_TYPES
    sync_options = _options(workspace, given, record_types=tuple(wanted))
    result = run_sync(workspace, sync_options, sys.stderr)

    click.echo(_summary(result), err=as_json)
    _show_unfinished(result)
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    sys.exit(result.exit_code)


@pds.command()
@with_options(_USERS, _NETWORK)
@options.json_option
@options.workspace_options
def resolve(workspace: Workspace, as_json: bool, **given: Any) -> None:
    """Show where users' repositories are: DID, host, handle and signing key."""
    if not given["dids"] and not given["dids_file"]:
        raise click.UsageError("--did or --dids-file is required")

    from backfill.repos.resolve import Unresolved
    from backfill.repos.resolve import resolve as run_resolve

    identities: dict[str, Any] = {}
    unresolved: dict[str, Any] = {}

    def show(found: Identity | Unresolved) -> None:
        if isinstance(found, Unresolved):
            unresolved[found.did] = {"status": found.status, "error": found.error}
            click.echo(f"{found.did}: {found.status}: {found.error}", err=True)
        elif as_json:
            identities[found.did] = {
                "host": found.host,
                "handle": found.handle,
                "key": found.key,
            }
        else:
            click.echo("\t".join((found.did, found.host, found.handle or "-", found.key)))

    unfinished = run_resolve(workspace, _options(workspace, given), show)
    if as_json:
        result = {"identities": identities, "unresolved": unresolved, "left": unfinished}
        click.echo(json.dumps(result))
    sys.exit(EXIT_UNFINISHED if unfinished else 0)


@pds.command()
@options.json_option
@options.workspace_options
def status(workspace: Workspace, as_json: bool) -> None:
    """Show users by status and host, their records, and what is left for the next run."""
    from backfill.repos.status import pds_status

    found = pds_status(workspace)
    if as_json:
        click.echo(json.dumps(found.as_dict()))
        return

    records = [[name, number(found.records[name])] for name in RECORD_TYPES]
    parts = [
        _counts_table(["status", "users"], found.statuses),
        table(["records", "in the lake"], records),
        _counts_table(["host", "users"], found.hosts, _SHOWN),
    ]
    if found.errors:
        rows = [
            [status, error[:_REASON_CHARS], number(users)]
            for (status, error), users in found.errors.most_common(_SHOWN)
        ]
        parts.append(table(["status", "reason", "users"], rows))

    click.echo("\n\n".join(parts))


def _counts_table(head: list[str], counts: Counter[str], shown: int | None = None) -> str:
    """The most common first, at most `shown`."""
    return table(head, [[name, number(count)] for name, count in counts.most_common(shown)])


def _options(workspace: Workspace, given: dict[str, Any], **more: Any) -> SyncOptions:
    """The options of a command. A flag overrides the table `[pds]` of the configuration file."""
    from backfill.repos.sync import SyncOptions

    settings = workspace.config.pds
    if given["host_qps"]:
        settings = options.changed_settings(settings, "--host-qps", host_qps=given["host_qps"])

    if given.get("max_repo_mib"):
        settings = options.changed_settings(
            settings, "--max-repo-mib", max_repo_bytes=given["max_repo_mib"] * MIB
        )

    return SyncOptions(
        dids=given["dids"],
        dids_file=given["dids_file"],
        host=given.get("host"),
        start=given.get("start_date"),
        end=given.get("end_date"),
        plc_url=given["plc_url"],
        allow_insecure_hosts=given["allow_insecure_hosts"],
        settings=settings,
        **more,
    )


def _summary(result: SyncResult) -> str:
    counts = result.counts
    lines = [
        f"run {result.run_id}, {result.seconds:.0f} s",
        _counts_table(["users", ""], counts.statuses),
    ]

    if counts.records:
        records = ", ".join(
            f"{number(counts.records[name])} {name}"
            for name in RECORD_TYPES
            if counts.records[name]
        )
        lines.append(f"records: {records}")
        lines.append(f"skipped, of other lexicons: {number(counts.skipped)}")

        if counts.unreadable_dates:
            unreadable = number(counts.unreadable_dates)
            lines.append(f"without a readable date, under the date of this sync: {unreadable}")

    return "\n".join(lines)


def _show_unfinished(result: SyncResult) -> None:
    """Prints to standard error: it is for people, also with --json."""
    counts = result.counts
    for line in counts.invalid[:_SHOWN]:
        click.echo(f"line {line.line}: {line.did[:80]!r}: {line.reason}", err=True)
    if len(counts.invalid) > _SHOWN:
        others = number(counts.statuses["invalid_did"] - _SHOWN)
        click.echo(f"and {others} more lines that are not DIDs", err=True)

    if counts.not_listed:
        click.echo(f"not all users are listed: {counts.not_listed}", err=True)
    if counts.unfinished:
        unfinished = number(counts.unfinished)
        click.echo(f"{unfinished} users are left for the next run; see `pds status`", err=True)
