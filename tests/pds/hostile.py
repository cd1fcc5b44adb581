"""Repositories that are validly signed and made to take much time or memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import libipld

from tests.pds.repos import Made, cid


def hostile(made: Made) -> Iterable[tuple[str, bytes]]:
    """Names and CARs of signed repositories that must be rejected, quickly and in little memory."""
    record = next(link for link, block in made.blocks.items() if b"$type" in block)

    def tree(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
        return Made(
            made.did, made.key, {**made.commit, "data": root}, {**made.blocks, **blocks}
        ).car()

    def node(left: bytes | None, *entries: dict[str, Any]) -> tuple[bytes, bytes]:
        block = libipld.encode_dag_cbor({"l": left, "e": list(entries)})
        return cid(block), block

    def entry(key: bytes, right: bytes | None = None, prefix: int = 0) -> dict[str, Any]:
        return {"p": prefix, "k": key, "v": record, "t": right}

    chain: dict[bytes, bytes] = dict([node(None, entry(b"com.example.a/a"))])
    for _ in range(5000):
        link, block = node(list(chain)[-1])
        chain[link] = block
    yield "a chain of 5,000 nodes", tree(list(chain)[-1], chain)

    doubled: dict[bytes, bytes] = dict([node(None, entry(b"com.example.a/a"))])
    for n in range(100):
        below = list(doubled)[-1]
        link, block = node(below, entry(b"com.example.a/%03d" % n, below))
        doubled[link] = block
    yield "a tree that doubles at each of 100 levels", tree(list(doubled)[-1], doubled)

    empty = dict([node(None)])
    for _ in range(60):
        link, block = node(list(empty)[-1])
        empty[link] = block
    link, block = node(
        None, *(entry(b"com.example.a/%05d" % n, list(empty)[-1]) for n in range(10_000))
    )
    yield "10,000 ways to the same empty nodes", tree(link, {**empty, link: block})

    yield "a key that is none", tree(*_only(node(None, entry(b"com.example.a/" + b"k" * 900))))

    nodes: dict[bytes, bytes] = {}
    for letter in b"abcdefghij":
        key = b"com.example.a/" + bytes([letter]) * 490
        link, block = node(
            None, entry(key), *(entry(b"%06d" % n, prefix=len(key)) for n in range(30_000))
        )
        nodes[link] = block
    parents = [
        entry(b"com.example.a/" + bytes([letter]), link)
        for letter, link in zip(b"abcdefghij", nodes, strict=True)
    ]
    link, block = node(None, *parents)
    yield "300,000 keys of 500 bytes that share all but 6", tree(link, {**nodes, link: block})

    big = libipld.encode_dag_cbor({"$type": "app.bsky.feed.post", "text": "x" * 1_900_000})
    large = cid(big)
    shared = [
        {"p": 0, "k": b"app.bsky.feed.post/%07d" % n, "v": large, "t": None} for n in range(20_000)
    ]
    link, block = node(None, *shared)
    yield "one large record under 20,000 keys", tree(link, {link: block, large: big})

    cyclic = libipld.encode_dag_cbor({"l": cid(b"itself"), "e": []})
    yield "a node that links what is not there", tree(cid(cyclic), {cid(cyclic): cyclic})


def _only(one: tuple[bytes, bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    return one[0], dict([one])
