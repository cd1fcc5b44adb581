"""Big lakes for benchmarks, and commands measured from outside."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from actors.integrations import resolve
from datasets.schemas import conform
from tests.support import ROOT, cli_command, cli_environment

FIRST = date(2024, 9, 1)
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", dtype="S1")
_SAMPLE_SECONDS = 0.5


def texts() -> list[str]:
    """Those of the lake that BENCH_LAKE names, else the posts of the demo."""
    if folder := os.environ.get("BENCH_LAKE"):
        found = pads.dataset(f"{folder}/preprocessed_posts", format="parquet", partitioning=None)
        posts = found.to_table(columns=["text"])["text"].to_pylist()
        return [text for text in posts if text and text.strip() and len(text) < 1000]
    lines = (ROOT / "backfill" / "demo_posts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _uris(rng: np.random.Generator, count: int) -> pa.Array:
    def letters(length: int) -> list[str]:
        drawn = _LETTERS[rng.integers(0, 32, (count, length))]
        return list(drawn.view(f"S{length}").ravel().astype(str))

    posts = zip(letters(24), letters(11), strict=True)
    return pa.array([f"at://did:plc:{did}/app.bsky.feed.post/3k{rkey}" for did, rkey in posts])


def make_posts(
    root: Path, count: int, *, days: int = 10, labelled: str | None = None
) -> tuple[str, str]:
    """`count` posts over `days` partitions; every second has a label of the integration `labelled`. The dates."""
    rng = np.random.default_rng(1)
    pool = pa.array(texts())
    dates = [(FIRST + timedelta(day)).isoformat() for day in range(days)]
    for number, day in enumerate(dates):
        size = count * (number + 1) // days - count * number // days
        uris, drawn = _uris(rng, size), pool.take(pa.array(rng.integers(0, len(pool), size)))
        stamps = pa.array([f"{day}-12:00:00"] * size)
        table = pa.table({"uri": uris, "text": drawn, "preprocessing_timestamp": stamps})
        _write(
            root / "preprocessed_posts" / "cache" / f"partition_date={day}" / "part-0.parquet",
            table,
        )
        if labelled:
            path = root / labelled / "cache" / f"partition_date={day}" / "part-0.parquet"
            _write(path, _labels(table.take(pa.array(np.arange(0, size, 2))), labelled))
    return dates[0], dates[-1]


def options(folder: str, dates: tuple[str, str]) -> tuple[str, ...]:
    """Of `run` and `plan`: valence over all that `make_posts` has made in `folder`."""
    return (
        "-i",
        "v",
        "-r",
        "posts",
        "--start-date",
        dates[0],
        "--end-date",
        dates[1],
        "--data-dir",
        folder,
    )


def _labels(posts: pa.Table, integration: str) -> pa.Table:
    schema = resolve(integration).labels.schema
    return conform(
        posts.append_column("was_successfully_labeled", pa.array([True] * len(posts))), schema
    )


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@dataclass(frozen=True)
class Measured:
    """`peak` is in bytes, of the command and its children, what they share counted once; 0 unless asked for."""

    seconds: float
    peak: int
    code: int
    stdout: str
    stderr: str


def command(
    *arguments: str, env: Mapping[str, str] | None = None, memory: bool = False
) -> Measured:
    """`python -m cli` with these arguments, in a process of its own. To watch its memory costs it some time."""
    started = time.monotonic()
    process = subprocess.Popen(
        cli_command(*arguments),
        cwd=ROOT,
        env=cli_environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], sum(map(_memory, family(process.pid))))

    if memory:
        threading.Thread(target=watch, daemon=True).start()
    stdout, stderr = process.communicate()
    seconds = time.monotonic() - started
    done.set()
    if process.returncode:
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}: {stderr}")
    return Measured(seconds, peak[0], process.returncode, stdout, stderr)


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                after_name = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += parents.get(parent, [])
    return found


def _memory(pid: int) -> int:
    """Proportional set size in bytes."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
