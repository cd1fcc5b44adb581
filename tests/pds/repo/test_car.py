"""CARs of valid repositories: every record is read, and only these."""

from __future__ import annotations

import base64
import json
import mmap
import random
from typing import Any

import libipld
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pds.errors import BadSignature, RejectedRepo
from pds.repo.car import read_repo
from pds.repo.records import _JSON
from tests.pds.fuzz import (
    read,
    subject_of,
)
from tests.pds.repos import (
    Key,
    cid,
    common_prefix,
    height,
    make_did,
    make_repo,
    make_tree,
    post,
    posts,
    tid,
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
    """The vector's message takes the place of a commit."""
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
    """Compares with roots from the test vectors: the trees of other tests are valid ones."""
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


def test_revisions_of_these_tests_sort() -> None:
    assert tid(5) < tid(6) < tid(1 << 60)
