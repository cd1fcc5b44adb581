"""Hashes of weight files: the revision of models that have no commit of a hub."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(source: str) -> str | None:
    """The hash of a model folder's weights, or None if it has no weight files.

    For weights in several files, it is the hash of their concatenated
    hashes.
    """
    folder = Path(source)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        files = sorted(folder.glob("pytorch_model*.bin"))

    hashes = [file_sha256(file) for file in files]
    if len(hashes) > 1:
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    return hashes[0] if hashes else None
