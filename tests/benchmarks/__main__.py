"""`make bench` or `python -m tests.benchmarks [NAME …]`: every benchmark, or those named, one after another."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """Name → its first line."""
    sources = {
        path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("[!_]*.py"))
    }
    return {
        name: text.splitlines()[0].strip('"')
        for name, text in sources.items()
        if "\ndef main() -> None:" in text
    }


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    here = f"{os.cpu_count()} processors, {memory:.0f} GiB, Python {platform.python_version()}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {here}, load {os.getloadavg()[0]:.1f}"


def _stolen(before: Any, after: Any) -> float:
    """What the host gave to others while something here wanted to run, of all time that was not idle."""
    steal = float(getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0))
    busy = sum(after) - after.idle - sum(before) + before.idle
    return steal / busy if busy else 0.0


def main() -> None:
    known = benchmarks()
    chosen = sys.argv[1:] or list(known)
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    failed = []
    for name in chosen:
        print(f"== {name}: {known[name]}\n   {machine()}", flush=True)
        before = psutil.cpu_times()
        # In a process of its own: one may not warm up another, or leave it less memory.
        module = [sys.executable, "-m", f"tests.benchmarks.{name}"]
        if subprocess.run(module, cwd=FOLDER.parent.parent, check=False).returncode:
            failed.append(name)
        print(
            f"   {_stolen(before, psutil.cpu_times()):.0%} of the processors' time went to other virtual machines"
        )
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
