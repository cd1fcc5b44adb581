"""Mutations of the bytes of CARs.

A mutated CAR that is accepted must have the same records as before: only the order of blocks,
repetitions and unlinked blocks can differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libipld

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
    """All records, by the reader under test. Raises RejectedRepo."""
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
    """The records; None if they are rejected as corrupt, with a reason. Other errors are bugs."""
    try:
        return read(car, did, key)
    except RejectedRepo as error:
        if error.status != "corrupt" or not error.reason:
            raise AssertionError(
                f"refused as {error.status!r} because of {error.reason!r}"
            ) from error
        return None


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
    """Exchanges the contents of two blocks, but not their CIDs."""
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
    """Encodes a length in more bytes than it needs."""
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
    """Adds a block that nothing links, with the right CID or a wrong one."""
    content = rng.randbytes(rng.randrange(60))
    link = cid(content, rng.choice([0x71, 0x55, 0x70])) if rng.random() < 0.5 else rng.randbytes(36)
    return subject.car + varint(36 + len(content)) + link + content


BYTES: list[Callable[[random.Random, Subject], bytes]] = [
    flip_bits,
    set_bytes,
    truncate,
    truncate_at_block,
    delete_range,
    insert_bytes,
    drop_block,
    reorder_blocks,
    swap_contents,
    change_length,
    pad_length,
    add_block,
]


def try_bytes(rng: random.Random, subject: Subject) -> bool:
    """Whether the mutation was rejected. Raises AssertionError for a wrong record."""
    mutation = rng.choice(BYTES)
    records = attempt(mutation(rng, subject), subject.did, subject.key)
    assert records is None or records == subject.records, (
        f"{mutation.__name__} was accepted with other records"
    )
    return records is None


def small_repo(rng: random.Random, did: str, count: int = 30) -> Made:
    """Records of several collections, two of them with equal content."""
    records: dict[str, Any] = {}
    for n in range(count):
        name = rng.choice(["app.bsky.feed.post", "app.bsky.feed.like", "com.example.thing"])
        records[f"{name}/{tid((1 << 60) + n)}"] = post(f"text {n // 2}")
    return make_repo(did, records)
