"""`python -m cli`: one click command a verb; each parses, calls `backfill`, prints."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# Verb → the module and the attribute that implement it. Imported when it is called for.
COMMANDS = {
    "backfill": ("cli.backfill", "backfill"),
    "run": ("cli.run", "run"),
    "plan": ("cli.run", "plan"),
    "status": ("cli.status", "status"),
    "copy": ("cli.copy", "copy"),
    "preprocess": ("cli.preprocess", "preprocess"),
    "pds": ("cli.pds", "pds"),
    "train-head": ("cli.heads", "train_head"),
    "evaluate": ("cli.heads", "evaluate"),
    "demo": ("cli.demo", "demo"),
}


def _check_packages() -> None:
    """Hugging Face's `datasets` in front of ours would fail later, and less clearly."""
    import datasets

    found = Path(datasets.__file__ or "")
    if found.parent != ROOT / "datasets":
        sys.exit(
            f"error: the package `datasets` in {found.parent} hides this project's own; run `python -m cli` from "
            f"{ROOT}, in an environment without Hugging Face's datasets"
        )


def _own_streams() -> None:
    """Standard output and error without secrets, tracebacks included. Standard error is kept for us.

    What Ray's C++ parts write to the file descriptor goes nowhere; see --debug.
    """
    from datasets.boundary.secrets import redacting, remember_environment

    remember_environment(os.environ)
    sys.stdout = redacting(sys.stdout)
    if "--debug" in sys.argv:
        sys.stderr = redacting(sys.stderr)
        return
    ours = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = redacting(
        os.fdopen(ours, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    )


def make_cli() -> Any:
    import click

    from cli import options

    class Verbs(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            module, attribute = COMMANDS[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command

    @click.group(
        cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
    )
    @options.group_options
    def cli() -> None:
        """Label Bluesky posts with several classifiers on Ray, each post once, and go on after anything."""

    return cli


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 an error, 2 wrong usage, 3 posts are left for a passing reason."""
    import click

    from datasets.errors import BackfillError

    cli = make_cli()
    try:
        cli.main(args=arguments, prog_name="python -m cli", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "python -m cli"
        return _fail(f"{error.format_message().rstrip('.')} (see {where} --help)", EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except BackfillError as error:
        if "--debug" in (arguments or sys.argv):
            raise
        return _fail(str(error), EXIT_ERROR)
    except SystemExit as done:
        return int(done.code or 0)
    except Exception as error:
        if "--debug" in (arguments or sys.argv):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        return _fail(
            f"unexpected {type(error).__name__}: {reason}; run it with --debug for the traceback",
            EXIT_ERROR,
        )
    return 0


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return code


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    _check_packages()
    _own_streams()
    # `ray job stop` and systemd end a process with SIGTERM: save what is labelled, as on Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
