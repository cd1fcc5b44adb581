"""Files of hand labels: texts, and what each teaches an integration's outputs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.integrations import Integration
from datasets.errors import ConfigError

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a .csv, .jsonl or .parquet file with a column `text`. Raises ConfigError for any other."""
    file = Path(path)
    try:
        if file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8") as stream:
                rows: list[dict[str, Any]] = [{k: _cell(v) for k, v in row.items()} for row in csv.DictReader(stream)]
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif file.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.ParquetFile(file).read().to_pylist()
        else:
            raise ConfigError(f"{path} is neither .csv nor .jsonl nor .parquet")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the labels {path} cannot be read ({error}); check --labels") from error
    rows = [row for row in rows if isinstance(row.get("text"), str) and row["text"].strip()]
    if not rows:
        raise ConfigError(f"the labels {path} have no rows with a text; they need a column `text`")
    return rows


def _cell(value: str | None) -> Any:
    """A cell of a CSV file: a number, a truth value, nothing, or text."""
    if value is None or value == "":
        return None
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        return value


def targets_of(
    integration: Integration, rows: Sequence[Row], labels: Sequence[str], *, kinds: int = 2
) -> dict[str, Floats]:
    """Output → a target from 0 to 1 for each row, NaN where the row says nothing of it. `labels` names the files.

    Raises ConfigError where no output has `kinds` different targets: two to learn from, one to judge by.
    """
    assert integration.targets
    where = ", ".join(labels)
    try:
        found = [integration.targets(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: a label is not a number ({error}); mend that row") from error
    columns = {
        name: np.array([np.nan if f[name] is None else f[name] for f in found], float) for name in integration.outputs
    }
    if all(len(np.unique(column[~np.isnan(column)])) < kinds for column in columns.values()):
        raise ConfigError(
            f"{where}: no label column has both kinds of labels for any of {', '.join(integration.outputs)}; check the "
            "columns' names and values"
        )
    bad = [
        name
        for name, column in columns.items()
        if np.nanmin(np.append(column, 0)) < 0 or np.nanmax(np.append(column, 0)) > 1
    ]
    if bad:
        raise ConfigError(f"{where}: labels of {bad[0]} must lie between 0 and 1")
    return columns
