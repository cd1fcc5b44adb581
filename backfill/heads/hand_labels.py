"""Files of hand labels: texts, and what each teaches an integration's outputs."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.integrations import Integration
from datasets.errors import ConfigError

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
Floats = npt.NDArray[np.float64]
# Told in one sentence what of a file is not used.
Say = Callable[[str], None]

_DELIMITERS = ",;\t"
# Reasons why labels are not used that are told one by one.
_REASONS = 5
_QUOTED_CHARS = 40


def read_rows(path: str, say: Say = lambda _: None) -> Rows:
    """Rows of a .csv, .jsonl or .parquet file with a column `text`, without those that have no text.

    Raises ConfigError for any other file, and for one that says something twice or not at all.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} is neither .csv nor .jsonl nor .parquet")
    try:
        rows = reader(path, say)
    except OSError as error:
        raise ConfigError(
            f"the labels {path} cannot be read ({error.strerror or error}); check --labels"
        ) from error

    found = [row for row in rows if _is_text(row.get("text"))]
    if not found:
        columns = ", ".join(map(str, rows[0])) if rows else "no rows at all"
        raise ConfigError(
            f"the labels {path} have no rows with a text; they need a column `text`, and have {columns}"
        )
    if len(found) < len(rows):
        say(
            f"{path}: {len(rows) - len(found):,} of {len(rows):,} rows have no text, and are left out"
        )
    return found


def _is_text(value: Any) -> bool:
    """Not so blank texts, and those with half of a character that was cut in two, which no encoder takes."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(path: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    data = Path(path).read_bytes()
    advice = 'save it as "CSV UTF-8", or convert it with iconv -t UTF-8'
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:1000]:
        raise ConfigError(f"the labels {path} are in UTF-16, or no text at all; {advice}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte {data[error.start : error.start + 1].hex()} in line {line}"
        raise ConfigError(f"the labels {path} are not in UTF-8 ({found}); {advice}") from error


def _read_csv(path: str, say: Say) -> Rows:
    text = _decoded(path)
    names, records = _csv_records(path, text)
    rows: Rows = []
    short = 0
    for line, cells in records:
        if any(cells[len(names) :]):
            raise ConfigError(
                f"line {line} of {path} has {len(cells)} cells and the header {len(names)}; put texts with a comma, "
                "semicolon or tab in double quotes"
            )
        short += len(cells) < len(names)
        row = dict.fromkeys(names) | dict(zip(names, cells, strict=False))
        rows.append(
            {name: value if name == "text" else _cell(value) for name, value in row.items() if name}
        )
    if short:
        say(
            f"{path}: {short:,} rows have fewer cells than the header; those that are missing count as empty"
        )
    return rows


def _csv_records(path: str, text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with the lines that they end in. Blank lines are none."""
    headers = {}
    for delimiter in _DELIMITERS:
        header = [
            name.strip() for name in next(_parse(path, text, delimiter, strict=False), (0, [""]))[1]
        ]
        if "text" in header:
            headers[delimiter] = header
    if not headers:
        first = next(iter(text.splitlines()), "")[:200]
        raise ConfigError(
            f"the labels {path} begin with {first!r}; they need a column `text`, and commas, semicolons or tabs "
            "between the columns"
        )
    delimiter = max(headers, key=lambda found: len(headers[found]))
    names = headers[delimiter]
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise ConfigError(f"the labels {path} have two columns `{twice[0]}`; rename or remove one")

    records = _parse(path, text, delimiter, strict=True)
    next(records)
    return names, records


def _parse(
    path: str, text: str, delimiter: str, *, strict: bool
) -> Iterator[tuple[int, list[str]]]:
    """Where it is not `strict`, a quote that is never closed takes the rest of the file for one cell."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ConfigError(
            f"the labels {path} are not CSV around line {reader.line_num} ({error}); check the quotes there: a text "
            'with quotes is written "so ""quoted"" once"'
        ) from error


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


def _read_jsonl(path: str, say: Say) -> Rows:
    rows = []
    # Not by `splitlines`: JSON may hold other characters that end a line for Python.
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"the labels {path} cannot be read (line {number} is not JSON: {error}); mend or remove that line"
            ) from error
        if not isinstance(row, dict):
            raise ConfigError(
                f'line {number} of {path} is not a JSON object; it needs to be like {{"text": …}}'
            )
        rows.append(row)
    return rows


def _read_parquet(path: str, say: Say) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
            raise ConfigError(
                f"the labels {path} have two columns `{twice[0]}`; rename or remove one"
            )
        return list(table.to_pylist())
    except (pa.ArrowException, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the labels {path} cannot be read ({reason}); check --labels") from error


def unused_labels(integration: Integration, rows: Sequence[Row], where: str) -> list[str]:
    """A sentence for each reason why labels of some rows teach nothing, with their number."""
    if integration.unused is None:
        return []
    reasons = Counter(reason for row in rows if (reason := integration.unused(row)))
    told = [
        f"{where}: {count:,} rows are not used: {reason}"
        for reason, count in reasons.most_common(_REASONS)
    ]
    if others := sum(count for _, count in reasons.most_common()[_REASONS:]):
        told.append(
            f"{where}: {others:,} more rows are not used, for {len(reasons) - _REASONS:,} other reasons"
        )
    return told


def targets_of(
    integration: Integration, rows: Sequence[Row], labels: Sequence[str], *, kinds: int = 2
) -> dict[str, Floats]:
    """Output → a target from 0 to 1 for each row, NaN where the row says nothing of it. `labels` names the files.

    Raises ConfigError where no output has `kinds` different targets: two to learn from, one to judge by.
    """
    where = ", ".join(labels)
    found = [_targets(integration, row, where) for row in rows]
    columns = {
        name: np.array([np.nan if f[name] is None else f[name] for f in found], float)
        for name in integration.outputs
    }
    if all(len(np.unique(column[~np.isnan(column)])) < kinds for column in columns.values()):
        why = "".join(
            f"; {told.removeprefix(f'{where}: ')}"
            for told in unused_labels(integration, rows, where)
        )
        raise ConfigError(
            f"{where}: no label column has both kinds of labels for any of {', '.join(integration.outputs)}{why}; "
            "check the columns' names and values"
        )
    bad = [
        name
        for name, column in columns.items()
        if np.nanmin(np.append(column, 0)) < 0 or np.nanmax(np.append(column, 0)) > 1
    ]
    if bad:
        raise ConfigError(f"{where}: labels of {bad[0]} must lie between 0 and 1")
    return columns


def _targets(integration: Integration, row: Row, where: str) -> Mapping[str, float | None]:
    assert integration.targets
    try:
        return integration.targets(row)
    except (TypeError, ValueError) as error:
        text = str(row.get("text", ""))[:_QUOTED_CHARS]
        raise ConfigError(
            f"{where}: a label is not a number ({error}); mend the row of {text!r}"
        ) from error


def weights_of(rows: Sequence[Row], where: str) -> Floats:
    """How much each row counts: its `weight`, 1 where it has none."""
    values = [1 if row.get("weight") is None else row["weight"] for row in rows]
    try:
        weights = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: a weight is not a number ({error}); mend that row") from error
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ConfigError(f"{where}: a weight is negative or no number; mend that row")
    return weights
