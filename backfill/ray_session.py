"""Ray: starting one here or connecting to a running one, quietly."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from actors.ray_private import idle_worker_options, without_unneeded_services
from backfill.addresses import ROOT, is_submitted_job
from datasets.errors import ConfigError, summary

# Blocks in flight are a few MiB each, and the object store takes memory that a laptop lacks.
_OBJECT_STORE_BYTES = 512 * 1024**2
# Ray ends an idle worker after one second. Read tasks come further apart than that, and a new
# worker spends two CPU seconds on imports.
_IDLE_WORKER_SECONDS = 600.0
_ENDED = (
    "error: this process was killed, or Ray is gone that it worked on; "
    "run the same command again to go on"
)


def start_ray(address: str | None, *, debug: bool) -> bool:
    """Connects to the Ray at `address`, or starts one on this machine if there is none given.

    Returns False if this process was connected already: then its owner shuts Ray down. Raises
    ConfigError if Ray cannot be reached or started.
    """
    _prepare_environment(debug)
    import ray

    if ray.is_initialized():
        return False

    options: dict[str, Any] = {
        "log_to_driver": debug,
        "logging_level": logging.INFO if debug else logging.FATAL,
        "configure_logging": True,
    }
    options |= _connect_options(address) if address else _local_options()

    # Importing ray.data takes two seconds, in which Ray's processes start.
    importing = threading.Thread(target=importlib.import_module, args=("ray.data",), daemon=True)
    importing.start()
    _init(address, options, follow_logs=debug)
    importing.join()

    _quieten_data(debug)
    return True


@contextlib.contextmanager
def ray_running(address: str | None, *, debug: bool) -> Iterator[None]:
    """`start_ray` for the block. Shuts Ray down afterwards, unless it was running before.

    Ray's driver prints warnings to standard output, which is for results: inside the block they go
    to standard error with `debug`, and nowhere without.
    """
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(sys.stderr if debug else nowhere),
        _message_if_killed(),
    ):
        started = start_ray(address, debug=debug)
        try:
            yield
        finally:
            if started:
                import ray

                ray.shutdown()


def _connect_options(address: str) -> dict[str, Any]:
    options: dict[str, Any] = {"address": address}
    # A submitted job already has the working directory of the submission.
    if not is_submitted_job():
        options["runtime_env"] = {"working_dir": str(ROOT), "excludes": _excludes()}
    return options


def _local_options() -> dict[str, Any]:
    """Options to start Ray here. Puts the project on the import path of Ray's processes."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    return {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        **idle_worker_options(_IDLE_WORKER_SECONDS),
    }


def _init(address: str | None, options: dict[str, Any], *, follow_logs: bool) -> None:
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with without_unneeded_services(follow_logs=follow_logs):
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise _start_error(address, summary(error)) from error

    if threading.current_thread() is threading.main_thread():
        # Ray's handler would end the process at once. Ours saves what is labelled.
        signal.signal(signal.SIGTERM, on_sigterm)


def _start_error(address: str | None, reason: str) -> ConfigError:
    if not address:
        return ConfigError(f"Ray cannot be started here ({reason}); run it with --debug for more")
    return ConfigError(
        f"Ray at {address} cannot be reached ({reason}); check --ray-address, and that "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token are as on the head, "
        "or leave --ray-address out to start Ray here"
    )


@contextlib.contextmanager
def _message_if_killed() -> Iterator[None]:
    """Reports on standard error if this process dies inside the block.

    Ray ends a process without a message when its node or its head is gone. A shell that waits for
    this process to close a pipe then prints one.
    """
    try:
        stream = sys.stderr.fileno()
    except (AttributeError, OSError):  # a test has replaced the stream
        stream = subprocess.DEVNULL

    guard = subprocess.Popen(  # noqa: S603 - no part of the command comes from outside
        ["sh", "-c", 'read -r done || echo "$0" >&2', _ENDED],  # noqa: S607 - any shell will do
        stdin=subprocess.PIPE,
        stderr=stream,
        start_new_session=True,  # Ctrl-C is not for the guard
    )
    try:
        yield
    finally:
        # `ray job stop` may have ended the guard too.
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(b"done\n")
        guard.wait()


def _excludes() -> list[str]:
    """The patterns of .rayignore: `ray.init` uploads the project without them."""
    lines = (ROOT / ".rayignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _prepare_environment(debug: bool) -> None:
    """Sets variables that Ray reads when it is imported first."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 announces this as the coming default: a worker with num_gpus=0 keeps
    # CUDA_VISIBLE_DEVICES as it is.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A thread that calls Ray after its shutdown would otherwise start another Ray.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if not debug:
        os.environ.setdefault("RAY_LOG_TO_DRIVER_EVENT_LEVEL", "FATAL")
        warnings.filterwarnings("ignore", module=r"ray\..*")


def _quieten_data(debug: bool) -> None:
    import ray.data

    if debug:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
