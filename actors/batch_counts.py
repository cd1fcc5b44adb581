"""Counting what a batch of label rows contains."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from datasets.labels.reading import Labels, labelled_uris
from datasets.lake import Lake
from datasets.schemas import PARTITION_DATE

# Why a post of a repeated batch is left for the next run although it has an
# answer now.
_ANSWERED_LATE = "answered_late"


@dataclass(frozen=True)
class BatchCounts:
    """Posts of a batch: `rejected` and `failed` (transiently) by reason."""

    labelled: int
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def count_batch(rows: pa.Table) -> BatchCounts:
    """Counts label rows by `was_successfully_labeled`, which is null for transient failures."""
    succeeded = rows["was_successfully_labeled"]
    rejected = pc.fill_null(pc.invert(succeeded), False)
    return BatchCounts(
        pc.sum(succeeded).as_py() or 0,
        _count_reasons(rows, rejected),
        _count_reasons(rows, pc.is_null(succeeded)),
    )


def _count_reasons(rows: pa.Table, mask: pa.ChunkedArray) -> Counter[str]:
    counts = pc.value_counts(rows["reason"].filter(mask)).to_pylist()
    return Counter({entry["values"]: entry["counts"] for entry in counts})


def count_stored(lake: Lake, labels: Labels, rows: pa.Table) -> BatchCounts:
    """Counts a repeated batch whose first version is stored, in the queue or in the lake.

    Posts that failed the first time and have an answer now are not stored;
    they count as failed.
    """
    uris_of = labelled_uris(lake, labels)
    days = pc.unique(rows[PARTITION_DATE]).to_pylist()
    chunks = [chunk for day in days for chunk in uris_of(day).chunks]
    stored = pa.chunked_array(chunks, pa.string())

    succeeded = rows["was_successfully_labeled"]
    is_stored = pc.is_in(rows["uri"], value_set=stored)
    late = pc.and_(pc.is_valid(succeeded), pc.invert(is_stored))
    outcomes = {
        "was_successfully_labeled": pc.if_else(late, None, succeeded),
        "reason": pc.if_else(late, _ANSWERED_LATE, rows["reason"]),
    }
    return count_batch(pa.table(outcomes))
