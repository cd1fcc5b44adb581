"""Writes docs/data-dictionary.md from the schemas, the registry and the database's own tables.

    python -m tests.data_dictionary

Types come from the code; meanings come from tests/data_dictionary.toml.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from actors.integrations import Integration, integrations
from datasets.database import create_label_table, open_database
from datasets.repos.coverage import RECORD_TYPES
from datasets.repos.record_schemas import RAW, record_schema
from datasets.repos.state import create_tables
from datasets.schemas import OUTCOME_COLUMNS, POST_COLUMNS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/data-dictionary.md"
MEANINGS = Path(__file__).with_suffix(".toml")

# Columns that `preprocess` adds to those that runs read.
_PREPROCESSED = ("author", "created_at")
_ARROW_NAMES = {pa.float64(): "float64", pa.int64(): "int64", pa.bool_(): "bool"}


@dataclass(frozen=True)
class Section:
    """A heading with a table: `types` maps each column to its type as the reader sees it.

    `table` names the table of data_dictionary.toml that explains the columns.
    """

    level: int
    title: str
    table: str
    text: str
    types: Mapping[str, str]


def sections() -> list[Section]:
    """Every dataset of the lake, then every table of the database."""
    found = [_posts(), _feeds(), _every_label()]
    found += [_own_labels(integration) for integration in integrations().values()]
    found += [_raw_records(), *_database()]
    return found


def _posts() -> Section:
    columns = dict.fromkeys([*POST_COLUMNS, *_PREPROCESSED], "string")
    text = (
        "`preprocessed_posts/{cache,active}/partition_date=…/*.parquet`. "
        "Other columns are allowed and ignored."
    )
    return Section(2, "Posts", "posts", text, columns)


def _feeds() -> Section:
    text = (
        "`fetch_posts_used_in_feeds/{cache,active}/partition_date=…/*.parquet`. "
        "Other columns are allowed and ignored."
    )
    return Section(2, "Posts used in feeds", "feeds", text, {"uri": "string"})


def _every_label() -> Section:
    names = [*POST_COLUMNS, *OUTCOME_COLUMNS]
    schema = next(iter(integrations().values())).labels.schema
    text = (
        "`ml_inference_<name>/{cache,active}/partition_date=…/*.parquet`, and a database table of "
        "the same name. Every label row has these columns; the columns of each integration follow "
        "the first three. A label file of the history needs only `uri`."
    )
    return Section(2, "Labels", "labels", text, {name: _arrow_type(schema, name) for name in names})


def _own_labels(integration: Integration) -> Section:
    text = f"Alias `{integration.alias}`."
    return Section(3, integration.name, integration.name, text, integration.columns)


def _raw_records() -> Section:
    types: dict[str, str] = {}
    for record_type in RECORD_TYPES:
        schema = record_schema(record_type)
        types.update({name: _arrow_type(schema, name) for name in schema.names})

    lines = [f"`{RAW}/<type>/cache/partition_date=…/*.parquet`. The columns of each type:", ""]
    for record_type in RECORD_TYPES:
        names = ", ".join(f"`{name}`" for name in record_schema(record_type).names)
        lines.append(f"- `{record_type}`: {names}")
    return Section(2, "Raw records", "raw", "\n".join(lines), types)


def _database() -> list[Section]:
    """Creates a database as a run and a sync do, and asks SQLite what is in it.

    Raises KeyError for a table that has no sentence here.
    """
    texts = {
        "runs": "One row per run.",
        "label_files": "The ledger: which label files are loaded.",
        "pds_repos": "One row per user that `pds sync` was asked for.",
        "pds_identities": "A cache of resolved DIDs.",
    }
    found: list[Section] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_database(f"sqlite:///{folder}/backfill.db")) as database,
    ):
        create_tables(database)
        for integration in integrations().values():
            create_label_table(database, integration.name, integration.labels.schema)

        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {name for (name,) in rows} - integrations().keys()
        for table in [*texts, *sorted(tables - texts.keys())]:
            columns = database.execute(f"PRAGMA table_info({table})")
            types = {name: kind for _, name, kind, *_ in columns}
            found.append(Section(3, table, table, texts[table], types))
    return found


def _arrow_type(schema: pa.Schema, name: str) -> str:
    return _ARROW_NAMES.get(schema.field(name).type, str(schema.field(name).type))


def load_meanings() -> dict[str, dict[str, tuple[str, str]]]:
    """Table → column → what it means, and when it is null."""
    document = tomllib.loads(MEANINGS.read_text(encoding="utf-8"))
    return {
        table: {name: (meaning, null) for name, (meaning, null) in columns.items()}
        for table, columns in document.items()
    }


def render() -> str:
    """The page. Raises KeyError for a column without a meaning."""
    meanings = load_meanings()
    parts = [
        "# Data dictionary",
        "",
        "<!-- Written by `python -m tests.data_dictionary`. Change tests/data_dictionary.toml. -->",
        "",
        "Every column of the lake and of the database. The types of the lake are Arrow's,",
        "those of the database are SQL's.",
    ]
    for section in sections():
        if section.table == "runs":
            parts += ["", "## Database", "", _DATABASE]
        parts += ["", f"{'#' * section.level} {section.title}", "", section.text, ""]
        parts += ["| column | type | meaning | null |", "| --- | --- | --- | --- |"]
        for name, kind in section.types.items():
            meaning, null = meanings[section.table][name]
            parts.append(f"| `{name}` | {kind} | {meaning} | {null} |")
    return "\n".join(parts) + "\n"


_DATABASE = (
    "One table per integration, with the columns above and the primary key `uri`, and these tables."
)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
