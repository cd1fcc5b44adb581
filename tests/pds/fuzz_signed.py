"""Mutations of repositories before they are signed, as a malicious user could make them.

If a mutated repository is accepted, its records must be those that a second, simple reader finds.
"""

from __future__ import annotations

import random
from typing import Any

import dag_cbor
import libipld
from multiformats import CID

from tests.pds.fuzz import attempt, block_places, number_at
from tests.pds.repos import Made, cid

Nodes = dict[bytes, Any]


def try_signed(rng: random.Random, made: Made) -> bool:
    """Changes a few fields of nodes, commit or records, hashes and signs everything again."""
    changed = Made(made.did, made.key, dict(made.commit), dict(made.blocks))
    for _ in range(rng.choice([1, 1, 2, 3])):
        _change(rng, changed)
    car = changed.car()
    records = attempt(car, made.did, made.key.did_key)
    if records is not None:
        assert [(key, link) for key, link, _ in records] == slow_records(car), (
            "other records than another reader's"
        )
    return records is None


def _change(rng: random.Random, made: Made) -> None:
    """Replaces one node on the way to the root, and the root."""
    if rng.random() < 0.1:
        made.commit[rng.choice(["rev", "version", "data", "did", "prev"])] = _junk(rng, made)
        return
    if not isinstance(made.commit["data"], bytes):
        return
    made.commit["data"] = _changed_node(rng, made, made.commit["data"], 0)


def _changed_node(rng: random.Random, made: Made, link: bytes, depth: int) -> bytes:
    node = libipld.decode_dag_cbor(made.blocks.get(link, b"\xa0"))
    if not isinstance(node, dict) or not isinstance(node.get("e"), list):
        return link
    places = [(node, "l")] + [(entry, "t") for entry in node["e"] if isinstance(entry, dict)]
    below = [(holder, name) for holder, name in places if isinstance(holder.get(name), bytes)]
    if below and rng.random() < 0.6 and depth < 20:
        holder, name = rng.choice(below)
        holder[name] = _changed_node(rng, made, holder[name], depth + 1)
    else:
        _spoil(rng, made, node, places)
    try:
        block = libipld.encode_dag_cbor(node)
    except ValueError:
        return link
    made.blocks[cid(block)] = block
    return cid(block)


def _spoil(
    rng: random.Random, made: Made, node: dict[str, Any], places: list[tuple[dict[str, Any], str]]
) -> None:
    entries = [entry for entry in node["e"] if isinstance(entry, dict)]
    kind = rng.randrange(9)
    if kind == 0:
        holder, name = rng.choice(places)
        holder[name] = rng.choice(
            [None, made.commit["data"], rng.choice(list(made.blocks)), _junk(rng, made)]
        )
    elif kind == 1 and entries:
        rng.choice(entries)[rng.choice("kpvt")] = _junk(rng, made)
    elif kind == 2 and entries:
        entry = rng.choice(entries)
        entry["k"] = rng.choice(
            [
                b"",
                b"a",
                b"a/b",
                bytes(reversed(bytes(str(entry["k"]), "utf-8"))),
                b"com.example.x/" + rng.randbytes(3),
                b"x" * 2000,
            ]
        )
    elif kind == 3 and entries:
        rng.choice(entries)["p"] = rng.choice([-1, 0, 1, 5, 19, 100, 1 << 40, True, 1.5])
    elif kind == 4 and len(entries) > 1:
        rng.shuffle(node["e"])
    elif kind == 5 and entries:
        node["e"].insert(rng.randrange(len(entries) + 1), dict(rng.choice(entries)))
    elif kind == 6 and entries:
        node["e"].pop(rng.randrange(len(entries)))
    elif kind == 7:
        node[rng.choice(["l", "e", "x"])] = _junk(rng, made)
    elif kind == 8 and entries:
        content = rng.choice(
            [rng.randbytes(30), b"\x81" * 3000 + b"\x01", libipld.encode_dag_cbor(_junk(rng, made))]
        )
        made.blocks[cid(content)] = content
        rng.choice(entries)["v"] = cid(content)


def _junk(rng: random.Random, made: Made) -> Any:
    return rng.choice(
        [
            None,
            0,
            -1,
            1 << 62,
            True,
            "",
            "text",
            b"",
            b"bytes",
            rng.choice(list(made.blocks)),
            cid(b"nowhere"),
            [],
            [1],
            {},
            {"l": None, "e": []},
            0.5,
        ]
    )


def slow_records(car: bytes) -> list[tuple[str, str]]:
    """Key and CID of each record, by a reader that shares no code with the one under test."""
    blocks = {car[start : start + 36]: car[start + 36 : end] for _, start, end in block_places(car)}
    length, start = number_at(car, 0)
    root = bytes(_plain(dag_cbor.decode(car[start : start + length]))["roots"][0])
    found: list[tuple[str, str]] = []

    def visit(link: CID) -> None:
        node = _plain(dag_cbor.decode(blocks[bytes(link)]))
        if node["l"] is not None:
            visit(node["l"])
        before = b""
        for entry in node["e"]:
            before = before[: entry["p"]] + entry["k"]
            found.append((before.decode(), entry["v"].encode("base32")))
            if entry["t"] is not None:
                visit(entry["t"])

    visit(_plain(dag_cbor.decode(blocks[root]))["data"])
    return found


def _plain(value: Any) -> Any:
    assert isinstance(value, dict)
    return value
