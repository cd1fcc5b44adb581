"""Schemas of raw records: of the lake's files, one per record type, and of staged segments.

They are never inferred from the rows, because a batch may have no value at all in a column.
"""

from __future__ import annotations

import pyarrow as pa

from datasets.schemas import PARTITION_DATE

RAW = "raw_sync/create"

_COMMON = ("uri", "cid", "author", "created_at", "record_type", "synctimestamp")
_POST = ("text", "langs", "tags", "facets", "embed", "entities", "labels")
_REPLY = (*_POST, "reply")
_PROVENANCE = [("rev", pa.string()), ("verified", pa.bool_())]


def _strings(names: tuple[str, ...]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in names]


# Staged rows of all record types have the same columns, and their partition date.
STAGED_SCHEMA = pa.schema(
    _strings((*_COMMON, *_REPLY, "subject")) + _PROVENANCE + _strings((PARTITION_DATE,))
)


def record_schema(record_type: str) -> pa.Schema:
    """The columns of the lake's files of this record type."""
    own = {"post": _POST, "reply": _REPLY}.get(record_type, ("subject",))
    return pa.schema(_strings((*_COMMON, *own)) + _PROVENANCE)
