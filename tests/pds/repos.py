"""Repositories made for tests: signed, with a valid tree. Every part of the CAR can be changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import libipld
from atproto_crypto.consts import P256_JWT_ALG, SECP256K1_JWT_ALG
from atproto_crypto.did import format_did_key
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_ORDERS = {
    "secp256k1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141,
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
}
# The field of a commit, up to its 64 bytes.
_SIGNATURE = b"\x63sig\x58\x40"
_LETTERS = "234567abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Key:
    """A signing key, made from a number."""

    private: ec.EllipticCurvePrivateKey

    @staticmethod
    def make(number: int = 1, curve: type[ec.EllipticCurve] = ec.SECP256K1) -> Key:
        return Key(ec.derive_private_key(number * 7919 + 1, curve()))

    @property
    def did_key(self) -> str:
        algorithm = SECP256K1_JWT_ALG if self.private.curve.name == "secp256k1" else P256_JWT_ALG
        point = self.private.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        return format_did_key(algorithm, point)

    def sign(self, data: bytes, *, low: bool = True) -> bytes:
        r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(SHA256())))
        order = _ORDERS[self.private.curve.name]
        if (s > order // 2) == low:
            s = order - s
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def tid(number: int) -> str:
    """A TID; greater numbers sort later."""
    text = ""
    for _ in range(13):
        number, digit = divmod(number, 32)
        text = _LETTERS[digit] + text
    return text


def make_did(number: int) -> str:
    digest = int.from_bytes(hashlib.sha256(str(number).encode()).digest(), "big")
    return "did:plc:" + "".join(_LETTERS[digest >> (5 * i) & 31] for i in range(24)).replace(
        "1", "a"
    )


def cid(block: bytes, codec: int = 0x71) -> bytes:
    return bytes([1, codec, 0x12, 32]) + hashlib.sha256(block).digest()


def varint(number: int) -> bytes:
    out = b""
    while True:
        number, low = number >> 7, number & 127
        out += bytes([low | (128 if number else 0)])
        if not number:
            return out


def height(key: bytes) -> int:
    """The layer of a key: half the leading zero bits of its hash."""
    digest = int.from_bytes(hashlib.sha256(key).digest(), "big")
    return (256 - digest.bit_length()) // 2


def make_tree(records: Mapping[str, bytes], blocks: dict[bytes, bytes]) -> bytes:
    """The CID of the root of the tree over key → CID; its nodes are added to `blocks`."""
    keys = sorted(key.encode() for key in records)
    top = max(map(height, keys), default=0)
    return _node(keys, {key.encode(): link for key, link in records.items()}, top, blocks)


def _node(
    keys: list[bytes], links: Mapping[bytes, bytes], layer: int, blocks: dict[bytes, bytes]
) -> bytes:
    runs: list[list[bytes]] = [[]]
    own: list[bytes] = []
    for key in keys:
        if height(key) == layer:
            own.append(key)
            runs.append([])
        else:
            runs[-1].append(key)
    below = [_node(run, links, layer - 1, blocks) if run else None for run in runs]
    entries = []
    before = b""
    for key, right in zip(own, below[1:], strict=True):
        prefix = common_prefix(before, key)
        entries.append({"p": prefix, "k": key[prefix:], "v": links[key], "t": right})
        before = key
    block = libipld.encode_dag_cbor({"l": below[0], "e": entries})
    blocks[cid(block)] = block
    return cid(block)


def common_prefix(one: bytes, other: bytes) -> int:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


@dataclass
class Made:
    """A repository before it is encoded. Change what shall be wrong, then call `car`."""

    did: str
    key: Key
    commit: dict[str, Any]
    blocks: dict[bytes, bytes] = field(default_factory=dict)

    def root(self, *, signed_by: Key | None = None, low: bool = True) -> bytes:
        """Signs the commit; its CID."""
        unsigned = {name: value for name, value in self.commit.items() if name != "sig"}
        signature = (signed_by or self.key).sign(libipld.encode_dag_cbor(unsigned), low=low)
        block = libipld.encode_dag_cbor({**unsigned, "sig": bytes(64)} | self.commit)
        # The encoder takes bytes for a link where they look like one, and a signature may.
        block = block.replace(_SIGNATURE + bytes(64), _SIGNATURE + signature)
        self.blocks[cid(block)] = block
        return cid(block)

    def car(self, root: bytes | None = None) -> bytes:
        return write_car(root or self.root(), self.blocks.items())


def make_repo(
    did: str, records: Mapping[str, Any], key: Key | None = None, rev: str | None = None
) -> Made:
    """`records` maps `collection/rkey` to a value, or to the bytes of an encoded block."""
    blocks: dict[bytes, bytes] = {}
    links = {}
    for path, value in records.items():
        block = value if isinstance(value, bytes) else libipld.encode_dag_cbor(value)
        links[path] = cid(block)
        blocks[cid(block)] = block
    tree = make_tree(links, blocks)
    commit = {"did": did, "version": 3, "data": tree, "rev": rev or tid(1 << 60), "prev": None}
    return Made(did, key or Key.make(), commit, blocks)


def write_car(root: bytes, blocks: Iterable[tuple[bytes, bytes]]) -> bytes:
    header = libipld.encode_dag_cbor({"roots": [root], "version": 1})
    return (
        varint(len(header)) + header + b"".join(varint(len(c) + len(b)) + c + b for c, b in blocks)
    )


def post(text: str, day: str = "2024-10-01", **changes: Any) -> dict[str, Any]:
    return {
        "$type": "app.bsky.feed.post",
        "text": text,
        "createdAt": f"{day}T12:00:00.000Z",
        **changes,
    }


def posts(count: int, day: str = "2024-10-01", seed: int = 0) -> dict[str, dict[str, Any]]:
    return {
        f"app.bsky.feed.post/{tid((1 << 60) + seed * 10**6 + n)}": post(f"post {n} of {seed}", day)
        for n in range(count)
    }
