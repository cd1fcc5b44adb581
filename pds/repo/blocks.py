"""Blocks of a repository: DAG-CBOR values, named by the hash of their bytes."""

from __future__ import annotations

from typing import Any

import libipld

from pds.errors import RejectedRepo

# The start of a binary CID: version 1, codec, SHA-256, 32 bytes. The protocol has two codecs.
DAG_CBOR = b"\x01\x71\x12\x20"
RAW = b"\x01\x55\x12\x20"
CID_BYTES = 36

# Raises ValueError or RecursionError for bytes that are not DAG-CBOR.
decode_block = libipld.decode_dag_cbor


def decode_map(block: bytes, what: str) -> dict[str, Any]:
    """The map in a block. Raises RejectedRepo, with `what` naming the block."""
    try:
        value = decode_block(block)
    except (ValueError, RecursionError) as error:
        raise corrupt(f"{what} is not DAG-CBOR ({str(error)[:120]})") from error

    if not isinstance(value, dict):
        raise corrupt(f"{what} is not a map")
    return value


def is_cid(value: bytes) -> bool:
    return len(value) == CID_BYTES and value.startswith((DAG_CBOR, RAW))


def corrupt(reason: str) -> RejectedRepo:
    return RejectedRepo("corrupt", reason)
