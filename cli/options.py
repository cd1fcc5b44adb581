"""The command line's options, each declared once: name, meaning, default, environment variable."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from actors.integrations import integrations, resolve
from datasets.errors import ConfigError

if TYPE_CHECKING:
    from backfill.labels.post_filter import PostFilter
    from backfill.workspace import Workspace

DEFAULT_DATA_DIR = "./data"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")

Command = Callable[..., Any]


class Day(click.ParamType[str]):
    name = "YYYY-MM-DD"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            if not _DATE.fullmatch(value):
                raise ValueError
            return date.fromisoformat(value).isoformat()
        except ValueError:
            self.fail(f"{value!r} is not a date of the form YYYY-MM-DD", param, ctx)


class Number(click.FloatRange):
    """Above 0, and a number: NaN is in every range, as click sees it."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(0, most, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        return (
            number
            if math.isfinite(number)
            else self.fail(f"{value!r} is not a number above 0", param, ctx)
        )


class IntegrationNames(click.ParamType[tuple[str, ...]]):
    """One name or alias, or several with commas."""

    name = "NAME|ALIAS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(resolve(name.strip()).name for name in value.split(","))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def _known_integrations() -> str:
    return ", ".join(f"{i.name} ({i.alias})" for i in integrations().values())


def integrations_option(command: Command) -> Command:
    return click.option(
        "-i",
        "--integrations",
        "integration_names",
        type=IntegrationNames(),
        multiple=True,
        help=f"Integration to use; repeat it or separate names by commas. One of {_known_integrations()}.",
    )(command)


record_type_option = click.option(
    "-r",
    "--record-type",
    type=click.Choice(["posts", "posts_used_in_feeds"]),
    help="All posts of the dates, or the posts that feeds of the dates have shown.",
)
start_date_option = click.option(
    "--start-date", type=Day(), help="First partition date, inclusive."
)
end_date_option = click.option("--end-date", type=Day(), help="Last partition date, inclusive.")
max_records_option = click.option(
    "--max-records-per-run",
    type=click.IntRange(min=0),
    help="At most so many posts of each integration, earliest dates first.",
)
sample_proportion_option = click.option(
    "--sample-proportion",
    type=Number(most=1),
    help="A part of all posts, chosen by their URIs: the same ones for every integration and every run.",
)
sample_seed_option = click.option(
    "--sample-seed", type=click.IntRange(0, 999_999_999), default=0, help="Another sample."
)
feed_lookback_option = click.option(
    "--feed-lookback-days",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="How many days before a feed's date its posts may be from.",
)
retry_rejected_option = click.option(
    "--retry-rejected", is_flag=True, help="Also try posts again that were rejected before."
)
qps_option = click.option(
    "--qps",
    type=Number(),
    help="The Perspective API's quota in queries a second. [env PERSPECTIVE_QPS; default 1]",
)
skip_bad_files_option = click.option(
    "--skip-bad-files",
    is_flag=True,
    help="Go on without files that cannot be used, and report them.",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object on standard output, everything else on standard error.",
)

_WORKSPACE = {
    "data_dir": click.option(
        "--data-dir",
        metavar="PATH|s3://…",
        help=f"The lake. [env BACKFILL_DATA_DIR; default {DEFAULT_DATA_DIR}]",
    ),
    "database_url": click.option(
        "--database-url",
        metavar="URL",
        help="sqlite:///PATH or postgresql://… [env BACKFILL_DATABASE_URL; default backfill.db in the data folder; "
        "a lake on S3 needs one]",
    ),
    "ray_address": click.option(
        "--ray-address",
        metavar="ADDRESS",
        help="A running Ray. [env RAY_ADDRESS; default: start Ray here]",
    ),
    "config": click.option(
        "--config", metavar="FILE", help="Settings. [default backfill.toml, if there is one]"
    ),
    "debug": click.option(
        "--debug", is_flag=True, default=None, help="Show Ray's output, and tracebacks of errors."
    ),
}


def workspace_options(command: Command) -> Command:
    """The options that may stand before or after a command's name; after it wins. Gives `place`, a Workspace."""

    @functools.wraps(command)
    def with_place(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _WORKSPACE}
        return command(*args, workspace=_workspace(given), **kwargs)

    return _with_all(with_place)


def group_options(group: Command) -> Command:
    """The same options before the command's name, kept for the command."""

    @functools.wraps(group)
    def keeping(*args: Any, **kwargs: Any) -> Any:
        click.get_current_context().obj = {name: kwargs.pop(name) for name in _WORKSPACE}
        return group(*args, **kwargs)

    return _with_all(keeping)


def _with_all(command: Command) -> Command:
    for option in reversed(_WORKSPACE.values()):
        command = option(command)
    return command


def _workspace(given: dict[str, Any]) -> Workspace:
    from backfill.workspace import open_workspace

    before = click.get_current_context().find_root().obj or {}

    def value(name: str, variable: str | None = None) -> Any:
        for source in (given, before):
            if source.get(name) is not None:
                return source[name]
        return os.environ.get(variable) or None if variable else None

    return open_workspace(
        value("data_dir", "BACKFILL_DATA_DIR") or DEFAULT_DATA_DIR,
        value("database_url", "BACKFILL_DATABASE_URL"),
        value("ray_address", "RAY_ADDRESS"),
        value("config"),
        debug=bool(value("debug")),
    )


def selection_options(command: Command) -> Command:
    """What `run` and `plan` select by. Gives `scope` and `integration_names`."""

    @functools.wraps(command)
    def with_scope(*args: Any, **kwargs: Any) -> Any:
        names = (
            "record_type",
            "start_date",
            "end_date",
            "max_records_per_run",
            "sample_proportion",
            "sample_seed",
        )
        given = {
            name: kwargs.pop(name) for name in (*names, "feed_lookback_days", "retry_rejected")
        }
        return command(*args, scope=make_post_filter(**given), **kwargs)

    decorated: Command = with_scope
    for option in (
        retry_rejected_option,
        feed_lookback_option,
        sample_seed_option,
        sample_proportion_option,
        max_records_option,
        end_date_option,
        start_date_option,
        record_type_option,
        integrations_option,
    ):
        decorated = option(decorated)
    return decorated


def make_post_filter(
    record_type: Any,
    start_date: Any,
    end_date: Any,
    max_records_per_run: int | None = None,
    sample_proportion: float | None = None,
    sample_seed: int = 0,
    feed_lookback_days: int = 4,
    *,
    retry_rejected: bool = False,
) -> PostFilter:
    """Raises UsageError where a part is missing or the dates are in the wrong order."""
    require(record_type=record_type, start_date=start_date, end_date=end_date)
    check_order(start_date, end_date)
    from backfill.labels.post_filter import PostFilter
    from datasets.posts import Sample

    sample = None if sample_proportion is None else Sample(sample_proportion, sample_seed)
    lookback = min(feed_lookback_days, date.max.toordinal())
    return PostFilter(
        record_type, start_date, end_date, max_records_per_run, sample, lookback, retry_rejected
    )


def with_qps(workspace: Workspace, qps: float | None) -> Workspace:
    """The flag wins over the config file and the environment."""
    if qps is None:
        return workspace
    perspective = resolve("p")
    settings = changed_settings(workspace.config.settings(perspective), "--qps", qps=qps)
    changed = {**workspace.config.integrations, perspective.name: settings}
    return dataclasses.replace(
        workspace, config=dataclasses.replace(workspace.config, integrations=changed)
    )


def changed_settings(settings: Any, flag: str, **values: Any) -> Any:
    """The dataclass with values of a flag. Raises UsageError, which names the flag, where they don't fit."""
    try:
        return dataclasses.replace(settings, **values)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from error


def require(**values: Any) -> None:
    """Each value must have been given; its name is the flag's."""
    missing = [
        f"--{name.replace('_', '-')}"
        for name, value in values.items()
        if value is None or value == ()
    ]
    if missing:
        raise click.UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required"
        )


def check_order(start_date: str | None, end_date: str | None) -> None:
    if start_date and end_date and start_date > end_date:
        raise click.UsageError(f"--start-date {start_date} is after --end-date {end_date}")


def chosen_integrations(names: tuple[tuple[str, ...], ...]) -> list[Any]:
    """The integrations named, each once, in the order of the registry."""
    wanted = {name for group in names for name in group}
    return [integration for name, integration in integrations().items() if name in wanted]
