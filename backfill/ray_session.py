"""Ray: starting it here or joining a running one, quietly."""

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

from backfill.addresses import ROOT, is_submitted_job
from datasets.errors import ConfigError

# Blocks in flight are a few MiB each; what lies in the object store is memory that a laptop lacks.
_OBJECT_STORE_BYTES = 512 * 1024**2
# Read tasks come further apart than the second for which Ray keeps a worker that has nothing to do, and a new one
# imports for two seconds of a processor.
_IDLE_WORKER_MS = 600_000
_ENDED = "error: this process was killed, or Ray is gone that it worked on; run the same command again to go on"


def start_ray(address: str | None, *, debug: bool) -> bool:
    """Joins the Ray at `address`, or starts one on this machine where there is none given.

    False where this process has joined one before: then it is not ours to shut down.

    Raises ConfigError where it cannot be reached.
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
    if address:
        options["address"] = address
        # A submitted job has its working directory from the submission already.
        if not is_submitted_job():
            options["runtime_env"] = {"working_dir": str(ROOT), "excludes": _excludes()}
    else:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
        options["_system_config"] = {"idle_worker_killing_time_threshold_ms": _IDLE_WORKER_MS}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    # Two seconds of imports fit into the wait for Ray's processes.
    data = threading.Thread(target=importlib.import_module, args=("ray.data",), daemon=True)
    data.start()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _fewer_services(follow_logs=debug):
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not address:
            raise ConfigError(
                f"Ray cannot be started here ({reason}); run it with --debug for more"
            ) from error
        raise ConfigError(
            f"Ray at {address} cannot be reached ({reason}); check --ray-address, and that RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token are as on the head, or leave --ray-address out to start Ray here"
        ) from error
    data.join()
    if threading.current_thread() is threading.main_thread():
        # Ray's own way would end the process on the spot; ours saves what is labelled.
        signal.signal(signal.SIGTERM, on_sigterm)
    _quieten_data(debug)
    return True


@contextlib.contextmanager
def ray_running(address: str | None, *, debug: bool) -> Iterator[None]:
    """Ray as of `start_ray` for as long as the block runs.

    Standard output is for results, and Ray's driver prints warnings there: with `debug` to standard error, else not.
    """
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(sys.stderr if debug else nowhere),
        _last_word(),
    ):
        started = start_ray(address, debug=debug)
        try:
            yield
        finally:
            if started:
                import ray

                ray.shutdown()


@contextlib.contextmanager
def _last_word() -> Iterator[None]:
    """Ray ends a process whose node or head is gone, on the spot and in silence. A shell beside it says so then."""
    try:
        stream = sys.stderr.fileno()
    except (AttributeError, OSError):  # a stream of a test
        stream = subprocess.DEVNULL
    guard = subprocess.Popen(  # noqa: S603 - all of it stands here
        ["sh", "-c", 'read -r done || echo "$0" >&2', _ENDED],  # noqa: S607 - any shell will do
        stdin=subprocess.PIPE,
        stderr=stream,
        start_new_session=True,  # an interrupt is not for it
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # `ray job stop` ends it, too
            guard.communicate(b"done\n")
        guard.wait()


@contextlib.contextmanager
def _fewer_services(*, follow_logs: bool) -> Iterator[None]:
    """A Ray that is started here gets no autoscaler, no server for the dashboard and for jobs, and no log reader.

    They are processes of their own that a run would wait for until its first label, and nobody asks them
    anything. `ray start` can leave out two of them; `ray.init` has no option for any.
    """
    from ray._private.node import Node

    unneeded = [
        "start_monitor",
        "start_api_server",
        *([] if follow_logs else ["start_log_monitor"]),
    ]
    starts = {name: vars(Node)[name] for name in unneeded if name in vars(Node)}
    for name in starts:
        setattr(Node, name, lambda self, **named: None)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)


def _excludes() -> list[str]:
    """What .rayignore keeps out of an upload, for a driver that is not a submitted job."""
    lines = (ROOT / ".rayignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _prepare_environment(debug: bool) -> None:
    """Has to come before the first import of ray, which reads these."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # From Ray 2.60's notice: workers with num_gpus=0 will keep CUDA_VISIBLE_DEVICES as it is.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A thread that still works when Ray is shut down would start another.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if not debug:
        os.environ.setdefault("RAY_LOG_TO_DRIVER_EVENT_LEVEL", "FATAL")
        warnings.filterwarnings("ignore", module=r"ray\..*")


def _quieten_data(debug: bool) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    if not debug:
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("ray", "ray.data", "ray.serve"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
