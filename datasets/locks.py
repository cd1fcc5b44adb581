"""One writer per integration and lake, also across processes that know nothing of each other.

A lock is held by an open file and dies with its process, however that ends. A run takes two: `run`
in the driver, for as long as it selects and labels, and `buffer` in the process that writes, which
may outlive a killed driver by a moment.
"""

from __future__ import annotations

import fcntl
import os
import time
from types import TracebackType
from typing import Literal

from datasets.errors import ConfigError, from_os_error
from datasets.lake import Lake

Role = Literal["run", "buffer"]


class Lock:
    """Held from construction to `release`, or to the end of the process.

    Waits up to `wait` seconds; then raises ConfigError with what the holder said of itself.
    """

    def __init__(self, lake: Lake, integration: str, role: Role, run_id: str, wait: float = 0.0) -> None:
        path = os.path.join(_folder(lake), f"{integration}.{role}.lock")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._file = open(path, "a+")  # noqa: SIM115 - the open file is the lock
        except OSError as error:
            raise from_os_error("write", path, error) from error
        deadline = time.monotonic() + wait
        while not self._try():
            if time.monotonic() >= deadline:
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                raise ConfigError(f"{integration} is being written by {holder}; wait for it to end, or stop it")
            time.sleep(0.1)
        self._file.truncate(0)
        self._file.write(f"run {run_id} (process {os.getpid()} on {os.uname().nodename})")
        self._file.flush()

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _folder(lake: Lake) -> str:
    if lake.is_local:
        return os.path.join(os.path.abspath(lake.root), ".locks")
    raise ConfigError("locks need a local lake")
