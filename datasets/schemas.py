"""What a post and a label are: column names and types, in the order in which they are stored."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

POST_COLUMNS = ("uri", "text", "preprocessing_timestamp")
PARTITION_DATE = "partition_date"

# Columns that every label row has, whichever integration made it. `was_successfully_labeled` is
# true or false in the lake; null, in flight only, means that a passing failure left the post for
# the next run: such a row is counted and never stored.
OUTCOME_COLUMNS = {
    "was_successfully_labeled": pa.bool_(),
    "reason": pa.string(),
    "label_timestamp": pa.string(),
    "label_model": pa.string(),
    "label_model_revision": pa.string(),
    "run_id": pa.string(),
}

TYPES = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}


def label_schema(columns: Mapping[str, str]) -> pa.Schema:
    """The schema of an integration's labels, from its own columns (name → one of `TYPES`)."""
    return pa.schema(
        [(name, pa.string()) for name in POST_COLUMNS]
        + [(name, TYPES[kind]) for name, kind in columns.items()]
        + list(OUTCOME_COLUMNS.items())
    )


def staged_schema(labels: pa.Schema) -> pa.Schema:
    """A label row on its way to the lake: with the partition that it belongs to."""
    return labels.append(pa.field(PARTITION_DATE, pa.string()))


POST_SCHEMA = pa.schema([(name, pa.string()) for name in (*POST_COLUMNS, PARTITION_DATE)])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`: absent ones null, others dropped, types cast.

    Raises pa.ArrowInvalid where a column's values do not fit its type.
    """
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
