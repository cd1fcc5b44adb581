"""CARs that must be rejected, each with its reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import libipld
import pytest

from pds.errors import RejectedRepo
from pds.repo.car import MAX_BLOCK
from tests.pds.fuzz import (
    attempt,
    block_places,
    read,
    small_repo,
    subject_of,
    try_bytes,
)
from tests.pds.fuzz_signed import try_signed
from tests.pds.hostile import hostile
from tests.pds.repos import (
    Key,
    Made,
    cid,
    make_did,
    make_repo,
    post,
    posts,
    varint,
    write_car,
)
from tests.pds.support import (
    car,
    identity,
    needs_fixtures,
    vectors,
)

DID = make_did(1)


def refusal(data: bytes, did: str = DID, key: Key | None = None) -> str:
    """Why the CAR is rejected."""
    with pytest.raises(RejectedRepo) as caught:
        read(data, did, (key or Key.make()).did_key)
    assert caught.value.status == "corrupt"
    return caught.value.reason


@pytest.mark.parametrize(
    "key",
    [f"com.example.thing/{key}" for key in vectors("syntax/recordkey_syntax_invalid.txt")]
    + [
        "com.example.thing/",
        "thing/self",
        "com.example.thing",
        "/self",
        "com.example.thing/a\n",
        "com.example.thing/ü",
    ],
    ids=lambda key: key[:40],
)
def test_invalid_record_keys(key: str) -> None:
    made = make_repo(
        DID, {"com.example.a/a": post("x"), key: post("x"), "zom.example.z/z": post("x")}
    )
    assert "key of a record" in refusal(made.car()) or "name of a collection" in refusal(made.car())


def _made_or_recorded(name: str, records: int) -> tuple[bytes, str, str]:
    """CAR, DID and key of a repository of ours with `records` posts, or of a recorded one."""
    if name != "made":
        return car(name), identity(name).did, identity(name).key
    made = make_repo(DID, posts(records))
    return made.car(), DID, made.key.did_key


@pytest.mark.parametrize("name", ["made", pytest.param("bob", marks=needs_fixtures)])
def test_a_cut_at_any_block_is_detected(name: str) -> None:
    data, did, key = _made_or_recorded(name, 40)
    for start, _, _ in block_places(data):
        assert attempt(data[:start], did, key) is None
    assert attempt(data, did, key) is not None


@pytest.mark.parametrize("name", ["made", pytest.param("blankpage", marks=needs_fixtures)])
def test_any_flipped_byte_is_detected(name: str) -> None:
    data, did, key = _made_or_recorded(name, 0)
    same = attempt(data, did, key)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x01
        assert attempt(bytes(changed), did, key) is None, at
    assert same == []


def _without(made: Made, part: bytes) -> bytes:
    root = made.root()
    return write_car(
        root, [(link, block) for link, block in made.blocks.items() if part not in block]
    )


def _spoiled_commit(**changes: Any) -> bytes:
    made = make_repo(DID, posts(3))
    made.commit |= changes
    return made.car()


MADE = make_repo(DID, posts(3))

SMALL = MADE.car()

ROOT = MADE.root()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut off, or has a number that is too long, at byte 0"),
        (b"\x80" * 20, "number that is too long"),
        (b"\xff\xff\xff\xff\x0f" + SMALL, "header says"),
        (varint(5) + b"hello", "header is not DAG-CBOR"),
        (varint(1) + b"\xa0", "not of version 1"),
        (write_car(b"", []), "root is not a commit's CID"),
        (write_car(cid(b"raw", 0x55), []), "root is not a commit's CID"),
        (write_car(cid(b"nowhere"), MADE.blocks.items()), "commit is not in the CAR"),
        (write_car(cid(b"\x80"), [(cid(b"\x80"), b"\x80")]), "its commit is not a map"),
        (SMALL + b"\x05hello", "has a length of 5"),
        (SMALL + varint(MAX_BLOCK + 1), "has a length of"),
        (SMALL + varint(1 << 62), "has a length of"),
        (SMALL + varint(100) + b"cut", "is cut off, or does not have the hash"),
        (SMALL + varint(40) + b"\x01\x70\x12\x20" + b"\x00" * 36, "does not have the hash"),
        (_without(MADE, b"post 1"), "a block that is not in the CAR"),
        (_spoiled_commit(version=2), "version 2, not 3"),
        (
            _spoiled_commit(did="did:plc:somebodyelse"),
            "it is the repository of 'did:plc:somebodyelse'",
        ),
        (_spoiled_commit(rev="now"), "no valid revision"),
        (_spoiled_commit(rev=None), "no valid revision"),
        (_spoiled_commit(data=None), "links no tree"),
        (_spoiled_commit(data=cid(b"x")), "a block that is not in the CAR"),
        (_spoiled_commit(sig=b"short"), "no signature of 64 bytes"),
        (_spoiled_commit(sig=b"\x01" * 64), "is not of the key"),
    ],
)
def test_rejections_and_their_reasons(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


def test_an_invalid_key_is_an_error_of_the_document() -> None:
    with pytest.raises(RejectedRepo, match="signing key in its DID document"):
        read(SMALL, DID, "did:key:zQ3sh")


def _tree_of(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A repository with one node, which was changed before it was hashed and signed."""
    made = make_repo(DID, {f"com.example.a/{letter}": post(letter) for letter in "ab"})
    node = libipld.decode_dag_cbor(made.blocks[made.commit["data"]])
    change(node)
    block = libipld.encode_dag_cbor(node)
    made.commit["data"] = cid(block)
    made.blocks[cid(block)] = block
    return made.car()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda node: node["e"].reverse(), "malformed, repeated or out of order"),
        (lambda node: node["e"].append(node["e"][0]), "malformed, repeated or out of order"),
        (lambda node: node["e"][0].update(p=3), "malformed, repeated or out of order"),
        (lambda node: node["e"][1].update(p=-1), "malformed, repeated or out of order"),
        (lambda node: node["e"][1].update(p="x"), "malformed node"),
        (lambda node: node["e"][0].update(k="text"), "malformed node"),
        (lambda node: node["e"][0].update(v=None), "a block that is not in the CAR"),
        (lambda node: node["e"][0].update(v=[1]), "malformed node"),
        (lambda node: node["e"][0].pop("v"), "a node without 'v'"),
        (lambda node: node.pop("l"), "a node without 'l'"),
        (lambda node: node.update(e=None), "malformed node"),
        (lambda node: node.update(e=5), "malformed node"),
        (lambda node: node.update(l=[1]), "malformed node"),
    ],
)
def test_malformed_trees(change: Callable[[dict[str, Any]], None], reason: str) -> None:
    assert reason in refusal(_tree_of(change))


@pytest.mark.parametrize(
    "block",
    [
        b"\x81" * 3000 + b"\x01",
        b"\xff",
        b"\xa1\x61a",
        b"\xfb\x7f\xf8" + b"\x00" * 6,
        b"\x5b" + b"\xff" * 8,
    ],
)
def test_a_record_that_is_not_dag_cbor(block: bytes) -> None:
    made = make_repo(DID, {"com.example.a/a": block})
    assert "the record com.example.a/a is not DAG-CBOR" in refusal(made.car())


def test_hostile_repositories() -> None:
    made = small_repo(random.Random(1), DID)
    for name, data in hostile(made):
        assert attempt(data, DID, made.key.did_key) is None, name


def test_mutations() -> None:
    """A small part of tests/benchmarks/pds_fuzz.py, which tries 100,000."""
    rng = random.Random(20241001)
    made = small_repo(rng, DID)
    subject = subject_of(made)
    refused = sum(try_bytes(rng, subject) for _ in range(2000)) + sum(
        try_signed(rng, made) for _ in range(150)
    )
    assert 1000 < refused < 2150
