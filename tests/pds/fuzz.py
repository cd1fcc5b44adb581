"""Mutations of CARs: of the bytes, and of repositories whose fetcher signs whatever he likes.

What is accepted must be right. After a mutation of the bytes that is the same records as before:
nothing but order, repetition and what is not linked can differ. Of a repository that was signed
after the mutation it is what another, slow and simple reader finds in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import dag_cbor
import libipld
from multiformats import CID

from pds.errors import RejectedRepo
from pds.repo.car import read_repo
from tests.pds.repos import Made, cid, make_repo, post, tid, varint

Record = tuple[str, str, Any]


@dataclass(frozen=True)
class Subject:
    """A CAR and what is in it."""

    did: str
    key: str
    car: bytes
    records: list[Record]

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Where each block begins, where its CID begins, and where it ends."""
        return block_places(self.car)


def subject_of(made: Made) -> Subject:
    car = made.car()
    return Subject(made.did, made.key.did_key, car, read(car, made.did, made.key.did_key))


def read(car: bytes, did: str, key: str) -> list[Record]:
    """All records by the reader that is tested. Raises RejectedRepo."""
    repo = read_repo(car, did, key)
    values = repo.decode(range(len(repo.keys)))
    links = [libipld.encode_multibase("b", link) for link in repo.cids]
    return list(zip((key.decode() for key in repo.keys), links, values, strict=True))


def block_places(car: bytes) -> list[tuple[int, int, int]]:
    places, at = [], 0
    while at < len(car):
        length, start = number_at(car, at)
        places.append((at, start, start + length))
        at = start + length
    return places[1:]


def number_at(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def attempt(car: bytes, did: str, key: str) -> list[Record] | None:
    """The records, None where they are refused as corrupt with a reason. Anything else that is raised is a bug."""
    try:
        return read(car, did, key)
    except RejectedRepo as error:
        if error.status != "corrupt" or not error.reason:
            raise AssertionError(
                f"refused as {error.status!r} because of {error.reason!r}"
            ) from error
        return None


# --- Mutations of the bytes -----------------------------------------------------------------------


def flip_bits(rng: random.Random, subject: Subject) -> bytes:
    car = bytearray(subject.car)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        car[rng.randrange(len(car))] ^= 1 << rng.randrange(8)
    return bytes(car)


def set_bytes(rng: random.Random, subject: Subject) -> bytes:
    car = bytearray(subject.car)
    at, count = rng.randrange(len(car)), rng.choice([1, 2, 4, 40])
    car[at : at + count] = bytes(
        rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)]) for _ in range(count)
    )
    return bytes(car)


def truncate(rng: random.Random, subject: Subject) -> bytes:
    return subject.car[: rng.randrange(len(subject.car))]


def truncate_at_block(rng: random.Random, subject: Subject) -> bytes:
    return subject.car[: rng.choice(subject.blocks)[0]]


def delete_range(rng: random.Random, subject: Subject) -> bytes:
    start = rng.randrange(len(subject.car))
    return subject.car[:start] + subject.car[start + rng.choice([1, 2, 36, 100]) :]


def insert_bytes(rng: random.Random, subject: Subject) -> bytes:
    start = rng.randrange(len(subject.car) + 1)
    return subject.car[:start] + rng.randbytes(rng.choice([1, 2, 36, 100])) + subject.car[start:]


def drop_block(rng: random.Random, subject: Subject) -> bytes:
    start, _, end = rng.choice(subject.blocks)
    return subject.car[:start] + subject.car[end:]


def reorder_blocks(rng: random.Random, subject: Subject) -> bytes:
    places = subject.blocks
    shuffled = rng.sample(places, len(places)) + rng.choices(places, k=rng.randrange(3))
    return subject.car[: places[0][0]] + b"".join(
        subject.car[start:end] for start, _, end in shuffled
    )


def swap_contents(rng: random.Random, subject: Subject) -> bytes:
    """Two blocks change places, their CIDs do not."""
    (_, a, a_end), (_, b, b_end) = sorted(rng.sample(subject.blocks, 2))
    car = subject.car
    first = varint(36 + b_end - b - 36) + car[a : a + 36] + car[b + 36 : b_end]
    second = varint(36 + a_end - a - 36) + car[b : b + 36] + car[a + 36 : a_end]
    starts = {start: at for at, start, _ in subject.blocks}
    return car[: starts[a]] + first + car[a_end : starts[b]] + second + car[b_end:]


def change_length(rng: random.Random, subject: Subject) -> bytes:
    at, start, end = rng.choice(subject.blocks)
    length = end - start
    wrong = rng.choice(
        [
            0,
            1,
            35,
            36,
            length - 1,
            length + 1,
            length * 2,
            1 << 21,
            1 << 32,
            1 << 63,
            rng.randrange(1 << 20),
        ]
    )
    number = rng.choice(
        [varint(wrong), b"\xff" * 9 + b"\x01", b"\x80" * 12, varint(length) + b"\x00"]
    )
    return subject.car[:at] + number + subject.car[start:]


def pad_length(rng: random.Random, subject: Subject) -> bytes:
    """The same number, in more bytes than it needs."""
    at, start, end = rng.choice(subject.blocks)
    number = bytearray(varint(end - start))
    number[-1] |= 128
    return (
        subject.car[:at]
        + bytes(number)
        + b"\x80" * rng.randrange(4)
        + b"\x00"
        + subject.car[start:]
    )


def add_block(rng: random.Random, subject: Subject) -> bytes:
    """One that nothing links: honest, or not what its CID says."""
    content = rng.randbytes(rng.randrange(60))
    link = cid(content, rng.choice([0x71, 0x55, 0x70])) if rng.random() < 0.5 else rng.randbytes(36)
    return subject.car + varint(36 + len(content)) + link + content


BYTES: list[Callable[[random.Random, Subject], bytes]] = [
    flip_bits, set_bytes, truncate, truncate_at_block, delete_range, insert_bytes, drop_block, reorder_blocks,
    swap_contents, change_length, pad_length, add_block,
]  # fmt: skip


def try_bytes(rng: random.Random, subject: Subject) -> bool:
    """Whether the mutation was refused. Raises AssertionError for a wrong record."""
    mutation = rng.choice(BYTES)
    records = attempt(mutation(rng, subject), subject.did, subject.key)
    assert records is None or records == subject.records, (
        f"{mutation.__name__} was accepted with other records"
    )
    return records is None


# --- Mutations before the signature ---------------------------------------------------------------

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
        [None, 0, -1, 1 << 62, True, "", "text", b"", b"bytes", rng.choice(list(made.blocks)), cid(b"nowhere"),
         [], [1], {}, {"l": None, "e": []}, 0.5]
    )  # fmt: skip


def slow_records(car: bytes) -> list[tuple[str, str]]:
    """Key and CID of each record, by a reader that shares no code with ours."""
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


# --- Shapes that are made to hurt -----------------------------------------------------------------


def hostile(made: Made) -> Iterable[tuple[str, bytes]]:
    """Name and CAR of repositories that are signed and still to be refused, quickly and in little memory."""
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


def small_repo(rng: random.Random, did: str, count: int = 30) -> Made:
    """Records of several collections, two of them with equal content."""
    records: dict[str, Any] = {}
    for n in range(count):
        name = rng.choice(["app.bsky.feed.post", "app.bsky.feed.like", "com.example.thing"])
        records[f"{name}/{tid((1 << 60) + n)}"] = post(f"text {n // 2}")
    return make_repo(did, records)
