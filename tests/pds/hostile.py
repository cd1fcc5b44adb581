"""Repositories that are validly signed and made to take much time or memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import libipld

from tests.pds.repos import Made, cid

Blocks = dict[bytes, bytes]


def hostile(made: Made) -> Iterator[tuple[str, bytes]]:
    """Names and CARs of signed repositories that must be rejected, quickly and in little memory."""
    record = next(link for link, block in made.blocks.items() if b"$type" in block)
    trees = {
        "a chain of 5,000 nodes": _chain(record),
        "a tree that doubles at each of 100 levels": _doubling(record),
        "10,000 ways to the same empty nodes": _empty_nodes(record),
        "an invalid key": _invalid_key(record),
        "300,000 keys of 500 bytes that share all but 6": _long_prefixes(record),
        "one large record under 20,000 keys": _shared_record(),
        "a node that links a missing block": _missing_block(),
    }

    for name, (root, blocks) in trees.items():
        commit = {**made.commit, "data": root}
        yield name, Made(made.did, made.key, commit, {**made.blocks, **blocks}).car()


def _node(left: bytes | None, *entries: dict[str, Any]) -> tuple[bytes, bytes]:
    """CID and block."""
    block = libipld.encode_dag_cbor({"l": left, "e": list(entries)})
    return cid(block), block


def _entry(
    key: bytes, record: bytes, right: bytes | None = None, prefix: int = 0
) -> dict[str, Any]:
    return {"p": prefix, "k": key, "v": record, "t": right}


def _chain(record: bytes) -> tuple[bytes, Blocks]:
    root, block = _node(None, _entry(b"com.example.a/a", record))
    blocks = {root: block}
    for _ in range(5000):
        root, block = _node(root)
        blocks[root] = block
    return root, blocks


def _doubling(record: bytes) -> tuple[bytes, Blocks]:
    root, block = _node(None, _entry(b"com.example.a/a", record))
    blocks = {root: block}
    for n in range(100):
        root, block = _node(root, _entry(b"com.example.a/%03d" % n, record, root))
        blocks[root] = block
    return root, blocks


def _empty_nodes(record: bytes) -> tuple[bytes, Blocks]:
    empty, block = _node(None)
    blocks = {empty: block}
    for _ in range(60):
        empty, block = _node(empty)
        blocks[empty] = block

    keys = [b"com.example.a/%05d" % n for n in range(10_000)]
    root, block = _node(None, *(_entry(key, record, empty) for key in keys))
    return root, {**blocks, root: block}


def _invalid_key(record: bytes) -> tuple[bytes, Blocks]:
    root, block = _node(None, _entry(b"com.example.a/" + b"k" * 900, record))
    return root, {root: block}


def _long_prefixes(record: bytes) -> tuple[bytes, Blocks]:
    blocks: Blocks = {}
    parents = []
    for letter in b"abcdefghij":
        start = b"com.example.a/" + bytes([letter])
        key = start + bytes([letter]) * 489
        others = [_entry(b"%06d" % n, record, prefix=len(key)) for n in range(30_000)]
        link, block = _node(None, _entry(key, record), *others)
        blocks[link] = block
        parents.append(_entry(start, record, link))

    root, block = _node(None, *parents)
    return root, {**blocks, root: block}


def _shared_record() -> tuple[bytes, Blocks]:
    value = {"$type": "app.bsky.feed.post", "text": "x" * 1_900_000}
    large = libipld.encode_dag_cbor(value)
    entries = [_entry(b"app.bsky.feed.post/%07d" % n, cid(large)) for n in range(20_000)]
    root, block = _node(None, *entries)
    return root, {root: block, cid(large): large}


def _missing_block() -> tuple[bytes, Blocks]:
    root, block = _node(cid(b"itself"))
    return root, {root: block}
