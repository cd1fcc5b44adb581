"""`backfill`: the phases one by one (enqueue, run, write, clear), with the replaced system's flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from actors.integrations import integrations
from cli import options
from cli.run import finish, show_nameless, show_skipped
from cli.tables import number, short, table

if TYPE_CHECKING:
    from backfill.workspace import Workspace
    from datasets.lake import Lake


class Services(options.IntegrationNames):
    """`all`, or what names integrations."""

    name = "all|NAME|ALIAS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return tuple(integrations()) if value == "all" else super().convert(value, param, ctx)


@click.command()
@options.record_type_option
@click.option("--add-to-queue", is_flag=True, help="Enqueue eligible posts into the input queues.")
@click.option(
    "--run-integrations",
    is_flag=True,
    help="Label what is in the input queues into the output queues.",
)
@options.integrations_option
@options.start_date_option
@options.end_date_option
@options.feed_lookback_option
@click.option(
    "--write-cache-buffer-to-storage",
    is_flag=True,
    help="Write the output queue to the lake, and to the database what it lacks of the lake.",
)
@click.option(
    "--service-source-buffer", type=Services(), help="Whose output queue to write or clear."
)
@click.option("--clear-queue", is_flag=True, help="Clear the output queue after it was written.")
@click.option(
    "--bypass-write",
    is_flag=True,
    help="With --clear-queue: clear the output queue without writing it.",
)
@click.option(
    "-p",
    "--backfill-period",
    type=click.Choice(["days", "hours"]),
    help="Unit of --backfill-duration. [default days]",
)
@click.option(
    "-d",
    "--backfill-duration",
    type=click.IntRange(min=1),
    help="Run only what was enqueued in the last N periods.",
)
@options.max_records_option
@options.qps_option
@click.option("--sample-records", is_flag=True, help="Enqueue a sample, of --sample-proportion.")
@options.sample_proportion_option
@options.sample_seed_option
@click.option(
    "--source-data-location",
    type=click.Choice(["local", "s3"]),
    default="local",
    show_default=True,
    help="Where to enqueue from: the data folder, or the lake at BACKFILL_S3_LAKE (s3://…).",
)
@click.option(
    "--clear-input-queues",
    is_flag=True,
    help="First clear the input queues of --integrations. Asks.",
)
@click.option(
    "--clear-output-queues",
    is_flag=True,
    help="First clear the output queues of --integrations. Asks.",
)
@click.option("--yes", is_flag=True, help="Answer yes when asked.")
@options.skip_bad_files_option
@options.workspace_options
def backfill(
    workspace: Workspace, integration_names: tuple[tuple[str, ...], ...], **given: Any
) -> None:
    """Enqueue, run, write and clear: each phase on its own, in any process, on any day.

    Several flags of one command are carried out in this order: clear, enqueue, run, write.
    """
    _check(integration_names, given)
    workspace = options.with_qps(workspace, given["qps"])
    chosen = options.chosen_integrations(integration_names)
    if given["clear_input_queues"] or given["clear_output_queues"]:
        _clear(workspace, chosen, given)
    if given["add_to_queue"]:
        _enqueue(workspace, chosen, given)
    result = None
    if given["run_integrations"]:
        from backfill.labels.phases import run_queued

        since = None
        if given["backfill_duration"]:
            period = timedelta(**{given["backfill_period"] or "days": 1})
            since = period * min(given["backfill_duration"], timedelta.max // period)
        result = run_queued(workspace, chosen, since, given["max_records_per_run"], sys.stderr)
    if given["write_cache_buffer_to_storage"]:
        _write(workspace, given)
    if result:
        finish(result, as_json=False)


def _check(names: tuple[tuple[str, ...], ...], given: dict[str, Any]) -> None:
    """All of the command line, before anything is touched."""
    queues = given["clear_input_queues"] or given["clear_output_queues"]
    actions = ("add_to_queue", "run_integrations", "write_cache_buffer_to_storage")
    if not queues and not any(given[name] for name in actions):
        raise click.UsageError(
            "nothing to do: give --add-to-queue, --run-integrations, --write-cache-buffer-to-storage, "
            "--clear-input-queues or --clear-output-queues"
        )
    if queues or given["add_to_queue"] or given["run_integrations"]:
        options.require(integrations=names)
    if given["add_to_queue"]:
        options.require(**{name: given[name] for name in ("record_type", "start_date", "end_date")})
    options.check_order(given["start_date"], given["end_date"])
    needs = {
        "service_source_buffer": "write_cache_buffer_to_storage",
        "clear_queue": "write_cache_buffer_to_storage",
        "bypass_write": "clear_queue",
        "sample_records": "add_to_queue",
        "sample_proportion": "sample_records",
        "backfill_duration": "run_integrations",
        "backfill_period": "backfill_duration",
        "max_records_per_run": "run_integrations",
    }
    for flag, needed in needs.items():
        if given[flag] not in (None, False) and not given[needed]:
            raise click.UsageError(f"--{flag.replace('_', '-')} needs --{needed.replace('_', '-')}")
    if given["write_cache_buffer_to_storage"]:
        options.require(service_source_buffer=given["service_source_buffer"])
    if given["sample_records"]:
        options.require(sample_proportion=given["sample_proportion"])
    if given["source_data_location"] == "s3":
        _source_lake()


def _source_lake() -> Lake:
    import os

    from backfill.addresses import lake_at

    root = os.environ.get("BACKFILL_S3_LAKE", "")
    if not root.startswith("s3://"):
        raise click.UsageError(
            "--source-data-location s3 needs the lake's address in BACKFILL_S3_LAKE (s3://bucket/prefix)"
        )
    return lake_at(root, "BACKFILL_S3_LAKE")


def _clear(workspace: Workspace, chosen: Sequence[Any], given: dict[str, Any]) -> None:
    from backfill.labels.phases import clear
    from backfill.labels.post_filter import BadFiles
    from datasets.queues import Kind, folder

    kinds: list[Kind] = [kind for kind in ("input", "output") if given[f"clear_{kind}_queues"]]
    names = [folder(kind, integration.name) for integration in chosen for kind in kinds]
    question = f"Delete everything in {', '.join(names)} of {workspace.lake.root}?"
    if not given["yes"] and not click.confirm(question, err=True):
        raise click.UsageError("nothing was cleared, because the answer was not yes")
    bad_files = BadFiles(given["skip_bad_files"])
    for name, count in clear(workspace, chosen, kinds, bad_files).items():
        click.echo(f"cleared {name}: {number(count)} segments")
    show_skipped([str(error) for error in bad_files.skipped])


def _enqueue(workspace: Workspace, chosen: Sequence[Any], given: dict[str, Any]) -> None:
    from backfill.labels.enqueue import enqueue
    from backfill.labels.post_filter import BadFiles

    scope = options.make_post_filter(
        given["record_type"],
        given["start_date"],
        given["end_date"],
        sample_proportion=given["sample_proportion"],
        sample_seed=given["sample_seed"],
        feed_lookback_days=given["feed_lookback_days"],
    )
    source = _source_lake() if given["source_data_location"] == "s3" else workspace.lake
    bad_files = BadFiles(given["skip_bad_files"])
    counts = enqueue(workspace, source, scope, chosen, bad_files)
    click.echo(
        table(
            ["integration", "enqueued"],
            [[short(name), number(count)] for name, count in counts.items()],
        )
    )
    show_skipped([str(error) for error in bad_files.skipped])


def _write(workspace: Workspace, given: dict[str, Any]) -> None:
    from backfill.labels.phases import clear, write
    from backfill.labels.post_filter import BadFiles

    chosen = options.chosen_integrations((given["service_source_buffer"],))
    bad_files = BadFiles(given["skip_bad_files"])
    if not given["bypass_write"]:
        done = write(workspace, chosen, bad_files)
        rows = [
            [short(name), number(each.moved), number(each.in_database)]
            for name, each in done.items()
        ]
        click.echo(table(["integration", "written", "in the database"], rows))
        show_nameless(
            {path: count for each in done.values() for path, count in each.nameless.items()}
        )
    if given["clear_queue"]:
        for name, count in clear(workspace, chosen, ["output"], bad_files).items():
            click.echo(f"cleared {name}: {number(count)} segments")
    show_skipped([str(error) for error in bad_files.skipped])
