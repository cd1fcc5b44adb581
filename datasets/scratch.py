"""A folder of this user on this machine, outside of any lake: for what outlives a process, and not the machine."""

from __future__ import annotations

import os
import tempfile


def scratch_folder(name: str = "") -> str:
    """Made where it is not there; nobody else may look into it."""
    root = os.path.join(tempfile.gettempdir(), f"label-backfill-{os.getuid()}")
    folder = os.path.join(root, name) if name else root
    os.makedirs(root, mode=0o700, exist_ok=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder
