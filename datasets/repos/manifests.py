"""Manifests: which repositories a batch of the lake holds, and in which files.

    raw_sync/_batches/<batch>.json

A repository is in exactly one manifest, however many flushes it has been through. So the state of
repositories in a lost database can be restored from the manifests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from datasets.lake import Lake
from datasets.repos.record_schemas import RAW, record_schema
from datasets.repos.staging import read_record, stem
from datasets.repos.state import RepoState

MANIFESTS = "raw_sync/_batches"

# Every file of the lake is synced on its own, and a disk can sync several at a time.
WRITER_THREADS = 8
_AUTHOR = pa.schema([("author", pa.string())])


@dataclass(frozen=True)
class Manifest:
    files: Sequence[str]
    repos: Sequence[RepoState]


def manifest_names(lake: Lake) -> set[str]:
    return {stem(path) for path in lake.files(MANIFESTS, ".json")}


def read_manifest(lake: Lake, batch: str) -> Manifest:
    """An empty manifest if there is none."""
    path = f"{MANIFESTS}/{batch}.json"
    if not lake.exists(path):
        return Manifest([], [])

    # Without the manifest, its files belong to no batch, and its repositories are fetched again.
    files = f" and all pds-{batch}-*.parquet of {RAW}"
    content = read_record(lake, path, "files", "repos", along_with=files)
    repos = [RepoState.from_json(repo) for repo in content["repos"]]
    return Manifest(content["files"], repos)


def write_manifest(lake: Lake, batch: str, manifest: Manifest) -> None:
    """Deletes the manifest if it has no repositories left."""
    path = f"{MANIFESTS}/{batch}.json"
    if not manifest.repos:
        lake.delete(path)
        return

    content = {
        "files": list(manifest.files),
        "repos": [repo.as_json() for repo in manifest.repos],
    }
    lake.write_bytes(path, json.dumps(content).encode())


def remove_repos(lake: Lake, batch: str, dids: set[str]) -> None:
    """Removes the rows of some repositories from a batch's files, then from its manifest."""
    manifest = read_manifest(lake, batch)
    authors = pa.array(dids, pa.string())

    def rewrite(path: str) -> str | None:
        return path if _remove_authors(lake, path, authors) else None

    with ThreadPoolExecutor(WRITER_THREADS) as threads:
        files = [path for path in threads.map(rewrite, manifest.files) if path]

    repos = [repo for repo in manifest.repos if repo.did not in dids]
    write_manifest(lake, batch, Manifest(files, repos))


def _remove_authors(lake: Lake, path: str, authors: pa.Array) -> bool:
    """Whether the file still exists without the rows of `authors`."""
    if not lake.exists(path):
        return False

    found = pa.Table.from_batches(lake.read(path, _AUTHOR), _AUTHOR)
    removed = pc.is_in(found["author"], value_set=authors)

    if not pc.any(removed).as_py():
        return True

    if pc.all(removed).as_py():
        lake.delete(path)
        return False

    schema = record_schema(path.removeprefix(f"{RAW}/").partition("/")[0])
    rows = pa.Table.from_batches(lake.read(path, schema), schema)
    lake.write_parquet(path, rows.filter(pc.invert(removed)))
    return True
