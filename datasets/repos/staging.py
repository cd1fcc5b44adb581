"""Staged repositories: rows on durable storage that a flush will move into the lake.

    queues/pds/<receipt>.<n>.parquet    a segment: rows of one or more repositories
    queues/pds/<receipt>.json           the receipt: which segments, which repositories

A decoder writes the segments first and the receipt last. A repository counts as staged from the
moment its receipt exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from datasets.errors import ConfigError
from datasets.lake import Lake
from datasets.repos.state import RepoState

STAGED = "queues/pds"
# Intents of flushes (datasets/repos/flush.py) lie in the same folder.
INTENT_PREFIX = "flush-"


@dataclass(frozen=True)
class StagingReceipt:
    """Staged repositories, and the segments that hold their rows.

    `replaces` maps a DID to the batch that held the repository when its fetch was decided on, or to
    None if no batch did.
    """

    name: str
    segments: tuple[str, ...]
    repos: tuple[RepoState, ...]
    replaces: Mapping[str, str | None] = field(default_factory=dict)


def segment_path(segment: str) -> str:
    return f"{STAGED}/{segment}.parquet"


def receipt_path(name: str) -> str:
    return f"{STAGED}/{name}.json"


def stage_rows(lake: Lake, segment: str, rows: pa.Table) -> None:
    """Writes rows of STAGED_SCHEMA. They are not acknowledged until the receipt exists."""
    lake.write_parquet(segment_path(segment), rows, compress=False)


def acknowledge(lake: Lake, receipt: StagingReceipt) -> None:
    """Writes the receipt. Written last, so its existence means that all segments exist."""
    content = {
        "segments": receipt.segments,
        "repos": [repo.as_json() for repo in receipt.repos],
        "replaces": dict(receipt.replaces),
    }
    lake.write_bytes(receipt_path(receipt.name), json.dumps(content).encode())


def discard(lake: Lake, segments: Iterable[str]) -> None:
    for segment in segments:
        lake.delete(segment_path(segment))


def staged(lake: Lake) -> list[StagingReceipt]:
    """The receipts to flush. Deletes segments without a receipt, and receipts without segments.

    Only the one process that flushes may call this, after `recover`.
    """
    receipts = [
        read_receipt(lake, path) for path in lake.files(STAGED, ".json") if not is_intent(path)
    ]
    complete = [receipt for receipt in receipts if has_all_segments(lake, receipt)]
    named = {segment for receipt in complete for segment in receipt.segments}

    for path in lake.files(STAGED):
        if stem(path) not in named:
            lake.delete(path)

    for receipt in receipts:
        if receipt not in complete:
            lake.delete(receipt_path(receipt.name))

    return complete


def read_record(lake: Lake, path: str, *entries: str, along_with: str = "") -> dict[str, Any]:
    """A JSON record that has these entries. Raises ConfigError for any other file.

    `along_with` names what else has to be moved out of the way.
    """
    try:
        record = json.loads(lake.read_bytes(path))
        if not isinstance(record, dict) or not set(entries) <= record.keys():
            raise ValueError("entries are missing")
    except ValueError as error:
        raise ConfigError(
            f"{lake.show(path)} is not a record of `pds sync` ({error}); "
            f"move it{along_with} elsewhere and run the same command again"
        ) from error
    return record


def read_receipt(lake: Lake, path: str) -> StagingReceipt:
    content = read_record(lake, path, "segments", "repos")
    return StagingReceipt(
        name=stem(path),
        segments=tuple(content["segments"]),
        repos=tuple(RepoState.from_json(repo) for repo in content["repos"]),
        replaces=content.get("replaces", {}),
    )


def has_all_segments(lake: Lake, receipt: StagingReceipt) -> bool:
    return all(lake.exists(segment_path(segment)) for segment in receipt.segments)


def is_intent(path: str) -> bool:
    return stem(path).startswith(INTENT_PREFIX)


def stem(path: str) -> str:
    """The file name without its folder and its last extension."""
    return path.rpartition("/")[2].rpartition(".")[0]
