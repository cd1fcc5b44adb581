from __future__ import annotations

import base64
import json
import mmap
import random
from collections.abc import Callable
from typing import Any

import libipld
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pds.errors import BadSignature, RejectedRepo
from pds.repo.car import MAX_BLOCK, read_repo
from pds.repo.records import _JSON
from tests.pds.fuzz import (
    attempt,
    block_places,
    hostile,
    read,
    small_repo,
    subject_of,
    try_bytes,
    try_signed,
)
from tests.pds.repos import (
    Key,
    Made,
    cid,
    common_prefix,
    height,
    make_did,
    make_repo,
    make_tree,
    post,
    posts,
    tid,
    varint,
    write_car,
)
from tests.pds.support import (
    INDEX,
    WITH_CAR,
    car,
    expected,
    identity,
    json_vectors,
    needs_fixtures,
    needs_interop,
    vectors,
)

DID = make_did(1)


def refusal(data: bytes, did: str = DID, key: Key | None = None) -> str:
    """Why the CAR is refused."""
    with pytest.raises(RejectedRepo) as caught:
        read(data, did, (key or Key.make()).did_key)
    assert caught.value.status == "corrupt"
    return caught.value.reason


@needs_fixtures
@pytest.mark.parametrize("name", WITH_CAR)
def test_every_record_of_the_fixtures(name: str) -> None:
    who = identity(name)
    found = read(car(name), who.did, who.key)
    assert [{"uri": f"at://{who.did}/{k}", "cid": c, "value": v} for k, c, v in found] == expected(
        name
    )
    repo = read_repo(car(name), who.did, who.key)
    commit = INDEX[name]["latest_commit"]
    assert (repo.rev, repo.cid) == (commit["rev"], commit["cid"])
    assert {n: len(r) for n, r in repo.collections().items()} == INDEX[name]["collections"]


def test_every_record_of_a_made_repository() -> None:
    records = {
        **posts(300),
        **posts(2, day="2024-10-05", seed=7),
        "app.bsky.graph.follow/a": {"createdAt": "2024-10-01T00:00:00Z", "subject": "did:plc:x"},
        "com.example.thing/self": {"nested": {"list": [1, None, True, "text", b"bytes"]}},
    }
    made = make_repo(DID, records)
    root = made.root()
    data = made.car(root)
    found = read(data, DID, made.key.did_key)
    repo = read_repo(data, DID, made.key.did_key)

    assert [(key, value) for key, _, value in found] == sorted(records.items())
    assert [link for _, link, _ in found] == [
        libipld.encode_multibase("b", cid(libipld.encode_dag_cbor(records[key])))
        for key in sorted(records)
    ]
    assert (repo.rev, repo.cid) == (
        made.commit["rev"],
        libipld.encode_multibase("b", root),
    )
    assert {name: len(found) for name, found in repo.collections().items()} == {
        "app.bsky.feed.post": 302,
        "app.bsky.graph.follow": 1,
        "com.example.thing": 1,
    }


def test_two_posts_with_equal_content_are_both_there() -> None:
    made = make_repo(
        DID, {"app.bsky.feed.post/a": post("twice"), "app.bsky.feed.post/b": post("twice")}
    )
    twice = [
        (key, link)
        for key, link, value in read(made.car(), DID, made.key.did_key)
        if value.get("text") == "twice"
    ]
    assert len(twice) == 2
    assert len({link for _, link in twice}) == 1
    assert len({key for key, _ in twice}) == 2


def test_a_mapped_file_reads_as_bytes_do(tmp_path: Any) -> None:
    made = make_repo(DID, posts(1000))
    data, key = made.car(), made.key.did_key
    path = tmp_path / "made.car"
    path.write_bytes(data)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        repo = read_repo(mapped, DID, key)
    assert repo == read_repo(data, DID, key)


def test_records_decode_in_chunks_of_a_size() -> None:
    made = make_repo(DID, posts(3500))
    repo = read_repo(made.car(), DID, made.key.did_key)
    everything = range(len(repo.keys))
    chunks = list(repo.chunks(everything, 20_000))
    assert [i for chunk in chunks for i in chunk] == list(everything)
    sizes = [sum(len(repo.blocks[i]) for i in chunk) for chunk in chunks]
    assert all(20_000 <= size < 22_000 for size in sizes[:-1])
    assert [value for chunk in chunks for value in repo.decode(chunk)] == repo.decode(everything)


@pytest.mark.parametrize("curve", [ec.SECP256K1, ec.SECP256R1])
def test_both_curves(curve: type[ec.EllipticCurve]) -> None:
    key = Key.make(3, curve)
    made = make_repo(DID, posts(5), key)
    assert len(read(made.car(), DID, key.did_key)) == 5
    with pytest.raises(BadSignature):
        read(made.car(made.root(low=False)), DID, key.did_key)
    with pytest.raises(BadSignature):
        read(made.car(made.root(signed_by=Key.make(4, curve))), DID, key.did_key)


@needs_interop
@pytest.mark.parametrize("vector", json_vectors("crypto/signature-fixtures.json"))
def test_the_protocols_signatures(vector: dict[str, Any]) -> None:
    """The vector's message is the commit's stand-in: what is verified is that signature over those bytes."""
    from pds.repo.car import _verify

    def decoded(name: str) -> bytes:
        text = str(vector[name])
        return base64.b64decode(text + "=" * (-len(text) % 4))

    commit = {
        **libipld.decode_dag_cbor(decoded("messageBase64")),
        "sig": decoded("signatureBase64"),
    }
    if vector["validSignature"]:
        _verify(commit, vector["publicKeyDid"])
    else:
        with pytest.raises(RejectedRepo):
            _verify(commit, vector["publicKeyDid"])


@needs_interop
def test_the_tree_of_these_tests_is_the_protocols() -> None:
    """Roots from the interop vectors: what the other tests change is a real tree."""
    for vector in json_vectors("firehose/commit-proof-fixtures.json"):
        leaf = libipld.decode_multibase(vector["leafValue"])[1]
        before = {*vector["keys"]}
        after = (before | {*vector["adds"]}) - {*vector["dels"]}
        for keys, root in (
            (before, vector["rootBeforeCommit"]),
            (after, vector["rootAfterCommit"]),
        ):
            assert libipld.encode_multibase("b", make_tree(dict.fromkeys(keys, leaf), {})) == root
    for vector in json_vectors("mst/key_heights.json"):
        assert height(vector["key"].encode()) == vector["height"]
    for vector in json_vectors("mst/common_prefix.json"):
        assert common_prefix(vector["left"].encode(), vector["right"].encode()) == vector["len"]


@needs_interop
def test_keys_of_many_heights() -> None:
    keys = [f"com.example.key/{line.replace('/', '-')}" for line in vectors("mst/example_keys.txt")]
    made = make_repo(DID, {key: post(key) for key in keys})
    assert [key for key, _, _ in read(made.car(), DID, made.key.did_key)] == sorted(keys)


@needs_interop
@pytest.mark.parametrize("vector", json_vectors("data-model/data-model-fixtures.json"))
def test_the_protocols_values(vector: dict[str, Any]) -> None:
    text = vector["cbor_base64"]
    block = base64.b64decode(text + "=" * (-len(text) % 4))
    made = make_repo(DID, {"com.example.thing/self": block})
    [(_, link, value)] = read(made.car(), DID, made.key.did_key)
    assert link == vector["cid"]
    assert json.loads(_JSON.encode(value)) == vector["json"]


@pytest.mark.parametrize(
    "key",
    [f"com.example.thing/{key}" for key in vectors("syntax/recordkey_syntax_valid.txt")]
    + ["com.example.thing/self", "com.example.thing/a:b~c_d-e.f"],
)
def test_valid_record_keys(key: str) -> None:
    made = make_repo(DID, {key: post("x")})
    assert [found for found, _, _ in read(made.car(), DID, made.key.did_key)] == [key]


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


def test_unlinked_blocks_repetition_and_any_order_are_allowed() -> None:
    made = make_repo(DID, posts(40))
    subject = subject_of(made)
    root = made.root()
    raw = b"an image, say"
    extra = [(cid(raw, 0x55), raw), (cid(b"\xa0"), b"\xa0"), (cid(b"no dag-cbor"), b"no dag-cbor")]
    blocks = [*made.blocks.items(), *extra, *list(made.blocks.items())[:5]]
    for seed in range(5):
        shuffled = random.Random(seed).sample(blocks, len(blocks))
        assert read(write_car(root, shuffled), DID, made.key.did_key) == subject.records


def _made_or_recorded(name: str, records: int) -> tuple[bytes, str, str]:
    """CAR, DID and key of a repository of ours with `records` posts, or of a recorded one."""
    if name != "made":
        return car(name), identity(name).did, identity(name).key
    made = make_repo(DID, posts(records))
    return made.car(), DID, made.key.did_key


@pytest.mark.parametrize("name", ["made", pytest.param("bob", marks=needs_fixtures)])
def test_a_cut_at_any_block_is_noticed(name: str) -> None:
    data, did, key = _made_or_recorded(name, 40)
    for start, _, _ in block_places(data):
        assert attempt(data[:start], did, key) is None
    assert attempt(data, did, key) is not None


@pytest.mark.parametrize("name", ["made", pytest.param("blankpage", marks=needs_fixtures)])
def test_any_flipped_byte_is_noticed(name: str) -> None:
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
        (_spoiled_commit(did="did:plc:somebodyelse"), "it is the repository of 'did:plc:somebodyelse'"),
        (_spoiled_commit(rev="now"), "no valid revision"),
        (_spoiled_commit(rev=None), "no valid revision"),
        (_spoiled_commit(data=None), "links no tree"),
        (_spoiled_commit(data=cid(b"x")), "a block that is not in the CAR"),
        (_spoiled_commit(sig=b"short"), "no signature of 64 bytes"),
        (_spoiled_commit(sig=b"\x01" * 64), "is not of the key"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


def test_a_key_that_is_none_is_the_documents_fault() -> None:
    with pytest.raises(RejectedRepo, match="signing key in its DID document"):
        read(SMALL, DID, "did:key:zQ3sh")


def _tree_of(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A repository whose one node was changed before it was hashed and signed."""
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
def test_a_record_that_is_no_dag_cbor(block: bytes) -> None:
    made = make_repo(DID, {"com.example.a/a": block})
    assert "the record com.example.a/a is not DAG-CBOR" in refusal(made.car())


def test_repositories_that_are_made_to_hurt() -> None:
    made = small_repo(random.Random(1), DID)
    for name, data in hostile(made):
        assert attempt(data, DID, made.key.did_key) is None, name


def test_mutations() -> None:
    """A few of those that tests/benchmarks/pds_fuzz.py tries by the hundred thousand."""
    rng = random.Random(20241001)
    made = small_repo(rng, DID)
    subject = subject_of(made)
    refused = sum(try_bytes(rng, subject) for _ in range(2000)) + sum(
        try_signed(rng, made) for _ in range(150)
    )
    assert 1000 < refused < 2150


def test_revisions_of_these_tests_sort() -> None:
    assert tid(5) < tid(6) < tid(1 << 60)
