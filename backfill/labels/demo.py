"""A small lake to try everything on: posts written for it, none of a real person."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.integrations import Integration, integrations
from backfill.workspace import Workspace
from datasets.errors import ConfigError
from datasets.labels.reading import read_labels
from datasets.lake import FEEDS, POSTS, Lake

START, END = "2024-10-01", "2024-10-03"
_DAYS = ("2024-10-01", "2024-10-02", "2024-10-03")
_POSTS = Path(__file__).with_name("demo_posts.jsonl")
# Its existence says that the folder is a demo's, and may be made anew.
_MARKER = "THIS-IS-A-DEMO"
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def make_lake(root: str) -> Lake:
    """A fresh lake in `root`. Refuses to replace a folder that is not a demo's."""
    folder = Path(root)
    if not Lake(root).is_local:
        raise ConfigError(
            f"the demo makes its lake in a folder, and {root} is none; give it another --data-dir"
        )
    if folder.exists() and not (folder / _MARKER).exists():
        raise ConfigError(f"{root} exists and is not a demo's; give the demo another --data-dir")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()
    lake = Lake(root)
    texts = [json.loads(line)["text"] for line in _POSTS.read_text(encoding="utf-8").splitlines()]
    for index, day in enumerate(_DAYS):
        posts = [_post(text, day) for text in texts[index :: len(_DAYS)]]
        table = pa.Table.from_pylist(posts)
        lake.write_parquet(f"{POSTS}/cache/partition_date={day}/demo.parquet", table)
        lake.write_parquet(
            f"{FEEDS}/cache/partition_date={day}/demo.parquet", table.select(["uri"]).slice(0, 20)
        )
    return lake


def _post(text: str, day: str) -> dict[str, str]:
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=24).digest())
    letters = [_BASE32[number >> 5 * place & 31] for place in range(36)]
    uri = f"at://did:plc:{''.join(letters[:24])}/app.bsky.feed.post/3{''.join(letters[24:])}"
    return {"uri": uri, "text": text, "preprocessing_timestamp": f"{day}-12:00:00"}


@dataclass(frozen=True)
class Keyless:
    """What can run here: `local` are integrations whose API cannot be asked, so a local model stands in, and why."""

    workspace: Workspace
    chosen: list[Integration]
    local: dict[str, str]
    unable: dict[str, str]


def without_keys(workspace: Workspace) -> Keyless:
    found = Keyless(workspace, [], {}, {})
    settings = dict(workspace.config.integrations)
    for integration in integrations().values():
        wanted = workspace.config.settings(integration)
        try:
            integration.check_settings(wanted)
        except ConfigError as error:
            if integration.placement(wanted) != "api" or not integration.outputs:
                found.unable[integration.name] = str(error)
                continue
            settings[integration.name] = dataclasses.replace(wanted, backend="embedding-head")
            found.local[integration.name] = str(error)
        found.chosen.append(integration)
    config = dataclasses.replace(workspace.config, integrations=settings)
    return dataclasses.replace(found, workspace=dataclasses.replace(workspace, config=config))


@dataclass(frozen=True)
class LabelledPost:
    """`labels`: integration → label column → value, without the columns that have none."""

    text: str
    labels: dict[str, dict[str, Any]]


def some_labels(lake: Lake, chosen: Sequence[Integration], count: int) -> Iterator[LabelledPost]:
    """`count` posts of the lake with the labels that each integration gave them."""
    tables = {integration.name: _all_labels(lake, integration) for integration in chosen}
    first = next(iter(tables.values()))
    for uri in sorted(first, key=lambda uri: (abs(len(first[uri]["text"]) - 70), uri))[:count]:
        own = {
            integration.name: {
                name: row[name] for name in integration.columns if row[name] is not None
            }
            for integration in chosen
            for row in [tables[integration.name][uri]]
        }
        yield LabelledPost(first[uri]["text"], own)


def _all_labels(lake: Lake, integration: Integration) -> dict[str, dict[str, Any]]:
    labels = integration.labels
    files = [path for paths in lake.partitions(labels.integration).values() for path in paths]
    return {
        row["uri"]: row for path in files for row in read_labels(lake, labels, path).to_pylist()
    }
