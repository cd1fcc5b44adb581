"""A CAR file → the verified records of a repository. Pure: bytes in, records out, no network, no clock.

Nothing in a CAR is believed. Each block is hashed against its CID; the commit names the user and is
signed with the user's key; records are those that the tree under the commit reaches, in strictly
rising order of their keys. Blocks that nothing links, repeated blocks and any order of blocks are
allowed. Whatever else is wrong raises RejectedRepo("corrupt", why).

Memory: the file once more, about 250 bytes a block, and the records of one `decode`. What a few bytes may
unfold to (prefix-compressed keys, one block under many keys) is bounded by the size of the file.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import libipld
from atproto_core.exceptions import AtProtocolError
from atproto_crypto.verify import verify_signature

from pds.errors import BadSignature, RejectedRepo
from pds.syntax import is_nsid, is_tid

Data = bytes | mmap.mmap

MAX_HEADER = 1 << 16
# The protocol's largest record is 1 MiB; a node of the tree has no limit of its own.
MAX_BLOCK = 1 << 21
MAX_BLOCKS = 10_000_000
# A key's layer is half the number of leading zero bits of its SHA-256, so no tree is deeper.
MAX_DEPTH = 128
# Keys and records may unfold to this many times the file, and this many bytes more.
_UNFOLD_TIMES, _UNFOLD_BYTES = 4, 1 << 26
# CIDv1, SHA-256 of 32 bytes, of DAG-CBOR and of raw bytes: the two that the protocol knows.
_DAG_CBOR, _RAW = b"\x01\x71\x12\x20", b"\x01\x55\x12\x20"
_CID = 36
# Many keys in one match are checked three times as fast as one by one. A key holds no newline.
# https://atproto.com/specs/record-key
_KEYS = re.compile(rb"(?:[A-Za-z0-9.-]{1,317}+/(?!\.{1,2}\n)[A-Za-z0-9._:~-]{1,512}+\n)*+")
_KEYS_AT_ONCE = 10_000

_decode = libipld.decode_dag_cbor


@dataclass(frozen=True)
class Repo:
    """A repository whose blocks, commit, signature and tree are verified.

    Record `i` has the key `keys[i]` (`collection/rkey`, rising), the binary CID `cids[i]`, and is
    encoded in `blocks[i]`. `cid` is that of the commit.
    """

    did: str
    rev: str
    cid: str
    keys: Sequence[bytes]
    cids: Sequence[bytes]
    blocks: Sequence[bytes]

    def collections(self) -> dict[str, range]:
        """Collection → its records. Keys are sorted, so a collection's stand together."""
        found = {}
        start = 0
        while start < len(self.keys):
            name = self.keys[start].partition(b"/")[0]
            end = bisect_left(self.keys, name + b"0", start)  # "0" comes after "/"
            found[name.decode()] = range(start, end)
            start = end
        return found

    def chunks(self, records: range, size: int) -> Iterator[range]:
        """`records` in runs whose blocks have about `size` bytes together."""
        start, total = records.start, 0
        for i in records:
            total += len(self.blocks[i])
            if total >= size:
                yield range(start, i + 1)
                start, total = i + 1, 0
        if start < records.stop:
            yield range(start, records.stop)

    def decode(self, records: range) -> list[Any]:
        """The values, in which a link is its 36 bytes. Raises RejectedRepo."""
        with _without_gc():
            try:
                return [_decode(block) for block in self.blocks[records.start : records.stop]]
            except (ValueError, RecursionError):
                pass
        for i in records:
            _decoded(self.blocks[i], f"the record {self.keys[i].decode()}")
        raise AssertionError("a record that did not decode decodes now")


def read_repo(data: Data, did: str, key: str) -> Repo:
    """`key` is the user's signing key as a did:key. Raises RejectedRepo, BadSignature for another key's signature."""
    with _without_gc():
        root, start = _header(data)
        index = _index(data, start)
        commit, tree = _commit(index, root, did)
        _verify(commit, key)
        keys, cids, blocks = _records(index, tree, _UNFOLD_TIMES * len(data) + _UNFOLD_BYTES)
    return _checked(
        Repo(did, commit["rev"], libipld.encode_multibase("b", root), keys, cids, blocks)
    )


def _corrupt(reason: str) -> RejectedRepo:
    return RejectedRepo("corrupt", reason)


def _header(data: Data) -> tuple[bytes, int]:
    """The first root, and where the blocks begin."""
    length, start = _varint(data, 0)
    end = start + length
    if length > MAX_HEADER or end > len(data):
        raise _corrupt(
            f"the CAR's header says that it has {length:,} bytes, the file has {len(data):,}"
        )
    header = _decoded(data[start:end], "the CAR's header")
    roots = header.get("roots")
    if header.get("version") != 1 or not isinstance(roots, list) or not roots:
        raise _corrupt("the CAR's header is not of version 1 with a root")
    root = roots[0]
    if type(root) is not bytes or len(root) != _CID or not root.startswith(_DAG_CBOR):
        raise _corrupt("the CAR's root is not a commit's CID")
    return root, end


def _varint(data: Data, start: int) -> tuple[int, int]:
    """An unsigned LEB128 number of at most nine bytes, and where it ends."""
    value = 0
    for i, byte in enumerate(data[start : start + 9]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, start + i + 1
    raise _corrupt(f"the CAR is cut off, or has a number that is too long, at byte {start:,}")


def _index(data: Data, start: int) -> dict[bytes, bytes]:
    """CID → block of DAG-CBOR. Each block is hashed here, whether anything links it or not."""
    index: dict[bytes, bytes] = {}
    size, sha256, dag_cbor = len(data), hashlib.sha256, _DAG_CBOR
    while start < size:
        length, at = data[start], start + 1
        # Nearly every length has two bytes; the other forms take the slower way.
        if length >= 128 and at < size and 0 < data[at] < 128:
            length, at = length + (data[at] - 1 << 7), start + 2
        else:
            length, at = _length(data, start)
            if (
                len(index) > MAX_BLOCKS
            ):  # of longer blocks, a file of a bounded size cannot hold too many
                raise _corrupt(f"it has more than {MAX_BLOCKS:,} blocks")
        end = at + length
        # Of a block that is cut off, this is what there is.
        cid, block = data[at : at + _CID], data[at + _CID : end]
        digest = sha256(block).digest()
        if cid == dag_cbor + digest:
            index[cid] = block
        elif cid != _RAW + digest:
            raise _corrupt(
                f"the block at byte {start:,} is cut off, or does not have the hash in its CID"
            )
        start = end
    if start != size:
        raise _corrupt("its last block is cut off")
    return index


def _length(data: Data, start: int) -> tuple[int, int]:
    """The length of the block at `start`, CID included, and where its CID begins."""
    length, at = _varint(data, start)
    if not _CID <= length <= MAX_BLOCK:
        raise _corrupt(f"the block at byte {start:,} has a length of {length:,}")
    return length, at


def _commit(index: Mapping[bytes, bytes], root: bytes, did: str) -> tuple[dict[str, Any], bytes]:
    """The commit, and the root of the tree."""
    if root not in index:
        raise _corrupt("its commit is not in the CAR")
    commit = _decoded(index[root], "its commit")
    if commit.get("version") != 3:
        raise _corrupt(f"its commit has the version {str(commit.get('version'))[:20]}, not 3")
    if commit.get("did") != did:
        raise _corrupt(f"it is the repository of {str(commit.get('did'))[:80]!r}")
    if not isinstance(commit.get("rev"), str) or not is_tid(commit["rev"]):
        raise _corrupt("its commit has no valid revision")
    tree = commit.get("data")
    if type(tree) is not bytes:
        raise _corrupt("its commit links no tree")
    return commit, tree


def _verify(commit: dict[str, Any], key: str) -> None:
    signature = commit.get("sig")
    if type(signature) is not bytes or len(signature) != 64:
        raise _corrupt("its commit has no signature of 64 bytes")
    signed = libipld.encode_dag_cbor(
        {name: value for name, value in commit.items() if name != "sig"}
    )
    try:
        valid = verify_signature(key, signed, signature)
    except (AtProtocolError, ValueError) as error:
        raise _corrupt(f"the signing key in its DID document cannot be used ({error})") from error
    if not valid:
        raise BadSignature("corrupt", "its signature is not of the key in the DID document")


class _Tree:
    """The walk over a Merkle Search Tree, which collects the keys and CIDs of all records in order."""

    def __init__(self, index: Mapping[bytes, bytes], limit: int) -> None:
        self.keys: list[bytes] = []
        self.cids: list[bytes] = []
        self._index = index
        self._left = limit

    def visit(self, link: bytes, depth: int = 0) -> None:
        """Raises RejectedRepo, or whatever a node that is no node makes Python raise."""
        if depth > MAX_DEPTH:
            raise _corrupt(f"its tree is more than {MAX_DEPTH} levels deep")
        node = _decode(self._index[link])
        left, entries = node["l"], node["e"]
        if left is not None:
            self.visit(left, depth + 1)
        elif not entries and depth:
            # Without this rule, a small file could lead to the same empty nodes any number of times.
            raise _corrupt("its tree has an empty node below its root")
        keys, cids = self.keys, self.cids
        key, last, size = b"", keys[-1] if keys else b"", 0
        for entry in entries:
            prefix, rest = entry["p"], entry["k"]
            key = key[:prefix] + rest
            if key <= last or len(key) != prefix + len(rest):
                raise _corrupt(
                    f"the key {key[:80]!r} of its tree is malformed, repeated or out of order"
                )
            last = key
            size += len(key)
            keys.append(key)
            cids.append(entry["v"])
            right = entry["t"]
            if right is not None:
                self.visit(right, depth + 1)
                last = keys[-1]
        self._left -= size
        if self._left < 0:
            raise _corrupt("its keys unfold to far more bytes than the file has")


def _records(
    index: Mapping[bytes, bytes], root: bytes, limit: int
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The keys, CIDs and blocks of all records."""
    tree = _Tree(index, limit)
    try:
        tree.visit(root)
        blocks = list(map(index.__getitem__, tree.cids))
    except KeyError as error:
        lacks = error.args[0]
        what = (
            f"a node without {lacks!r}"
            if lacks in list("lepkvt")
            else "a block that is not in the CAR"
        )
        raise _corrupt(f"its tree has {what}{_near(tree.keys)}") from error
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise _corrupt(
            f"its tree has a malformed node{_near(tree.keys)} ({str(error)[:120]})"
        ) from error
    if sum(map(len, blocks)) > limit:
        raise _corrupt("its records unfold to far more bytes than the file has")
    return tree.keys, tree.cids, blocks


def _near(keys: Sequence[bytes]) -> str:
    return f", near the key {keys[-1][:80]!r}" if keys else ""


def _checked(repo: Repo) -> Repo:
    """The same. Raises RejectedRepo unless each key is `collection/rkey` by the protocol's rules."""
    for start in range(0, len(repo.keys), _KEYS_AT_ONCE):
        keys = repo.keys[start : start + _KEYS_AT_ONCE]
        if not _KEYS.fullmatch(b"\n".join([*keys, b""])):
            bad = next(key for key in keys if not _KEYS.fullmatch(key + b"\n"))
            raise _corrupt(f"{bad[:80]!r} is not the key of a record")
    for name in repo.collections():
        if not is_nsid(name):
            raise _corrupt(f"{name[:80]!r} is not the name of a collection")
    return repo


def _decoded(block: bytes, what: str) -> dict[str, Any]:
    try:
        value = _decode(block)
    except (ValueError, RecursionError) as error:
        raise _corrupt(f"{what} is not DAG-CBOR ({str(error)[:120]})") from error
    if not isinstance(value, dict):
        raise _corrupt(f"{what} is not a map")
    return value


@contextmanager
def _without_gc() -> Iterator[None]:
    """DecodeQueue makes many containers and no cycles: the collector would only look at them, for half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
