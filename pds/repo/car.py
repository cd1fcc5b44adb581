"""From a CAR file to the verified records of a repository. Pure: no network, no clock.

Nothing in a CAR is taken on trust. Every block is hashed and compared with its CID. The commit must
name the user and be signed with the user's key. Records are those that the tree under the commit
reaches, in strictly increasing order of their keys. Blocks that nothing links, repeated blocks and
any order of blocks are allowed. Anything else that is wrong raises RejectedRepo("corrupt", reason).

Memory: the size of the file once more, about 250 bytes per block, and the records of one `decode`.
A few bytes can unfold to many (prefix-compressed keys, one block under many keys); a multiple of
the file's size bounds them.
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

from pds.errors import BadSignature
from pds.repo.blocks import CID_BYTES, DAG_CBOR, RAW, corrupt, decode_block, decode_map
from pds.repo.tree import read_tree
from pds.syntax import is_nsid, is_tid

Data = bytes | mmap.mmap

MAX_HEADER = 1 << 16
# The protocol's largest record is 1 MiB; a node of the tree has no limit of its own.
MAX_BLOCK = 1 << 21
MAX_BLOCKS = 10_000_000
_SIGNATURE_BYTES = 64

# Keys and records may unfold to this many times the size of the file, and this many bytes more.
_UNFOLD_TIMES = 4
_UNFOLD_BYTES = 1 << 26

# One match over many keys is three times as fast as one match per key. A key has no newline.
# https://atproto.com/specs/record-key
_KEYS = re.compile(rb"(?:[A-Za-z0-9.-]{1,317}+/(?!\.{1,2}\n)[A-Za-z0-9._:~-]{1,512}+\n)*+")
_KEYS_PER_MATCH = 10_000


@dataclass(frozen=True)
class Repo:
    """A repository whose blocks, commit, signature and tree are verified.

    Record `i` has the key `keys[i]` (`collection/rkey`, increasing), the binary CID `cids[i]`, and
    is encoded in `blocks[i]`. `cid` is the commit's.
    """

    did: str
    rev: str
    cid: str
    keys: Sequence[bytes]
    cids: Sequence[bytes]
    blocks: Sequence[bytes]

    def collections(self) -> dict[str, range]:
        """Collection → indexes of its records, which are adjacent because keys are sorted."""
        found = {}
        start = 0
        while start < len(self.keys):
            name = self.keys[start].partition(b"/")[0]
            end = bisect_left(self.keys, name + b"0", start)  # "0" is the character after "/"
            found[name.decode()] = range(start, end)
            start = end
        return found

    def chunks(self, records: range, size: int) -> Iterator[range]:
        """`records` in consecutive ranges, the blocks of each having about `size` bytes."""
        start = records.start
        total = 0
        for i in records:
            total += len(self.blocks[i])
            if total >= size:
                yield range(start, i + 1)
                start = i + 1
                total = 0

        if start < records.stop:
            yield range(start, records.stop)

    def decode(self, records: range) -> list[Any]:
        """The values of records. A link is decoded to its 36 bytes. Raises RejectedRepo."""
        with _without_gc():
            try:
                return [decode_block(block) for block in self.blocks[records.start : records.stop]]
            except (ValueError, RecursionError):
                pass

        for i in records:
            decode_map(self.blocks[i], f"the record {self.keys[i].decode()}")
        raise AssertionError("a record that did not decode decodes now")


def read_repo(data: Data, did: str, key: str) -> Repo:
    """Reads and verifies the repository of `did`, whose signing key is the did:key `key`.

    Raises RejectedRepo, and BadSignature if another key made the signature.
    """
    with _without_gc():
        root, start = _read_header(data)
        index = _read_blocks(data, start)
        commit, tree = _read_commit(index, root, did)
        _verify(commit, key)
        keys, cids, blocks = read_tree(index, tree, _UNFOLD_TIMES * len(data) + _UNFOLD_BYTES)

    commit_cid = libipld.encode_multibase("b", root)
    repo = Repo(did, commit["rev"], commit_cid, keys, cids, blocks)
    _check_keys(repo)
    return repo


def _read_header(data: Data) -> tuple[bytes, int]:
    """The first root, and the position of the first block."""
    length, start = _varint(data, 0)
    end = start + length
    if length > MAX_HEADER or end > len(data):
        raise corrupt(
            f"the CAR's header says that it has {length:,} bytes, the file has {len(data):,}"
        )

    header = decode_map(data[start:end], "the CAR's header")
    roots = header.get("roots")
    if header.get("version") != 1 or not isinstance(roots, list) or not roots:
        raise corrupt("the CAR's header is not of version 1 with a root")

    root = roots[0]
    if type(root) is not bytes or len(root) != CID_BYTES or not root.startswith(DAG_CBOR):
        raise corrupt("the CAR's root is not a commit's CID")
    return root, end


def _varint(data: Data, start: int) -> tuple[int, int]:
    """An unsigned LEB128 number of at most nine bytes, and the position after it."""
    value = 0
    for i, byte in enumerate(data[start : start + 9]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, start + i + 1

    raise corrupt(f"the CAR is cut off, or has a number that is too long, at byte {start:,}")


def _read_blocks(data: Data, start: int) -> dict[bytes, bytes]:
    """CID → block, for DAG-CBOR. Every block is hashed here, whether anything links it or not."""
    index: dict[bytes, bytes] = {}
    size = len(data)
    sha256 = hashlib.sha256
    dag_cbor = DAG_CBOR

    while start < size:
        length = data[start]
        at = start + 1
        # Nearly all lengths have two bytes; others take the slower path.
        if length >= 128 and at < size and 0 < data[at] < 128:
            length += data[at] - 1 << 7
            at += 1
        else:
            length, at = _block_length(data, start)
            # Checked here only: a file of limited size cannot have too many longer blocks.
            if len(index) > MAX_BLOCKS:
                raise corrupt(f"it has more than {MAX_BLOCKS:,} blocks")

        end = at + length
        # If the block is cut off, these slices are shorter, and the hash differs.
        cid = data[at : at + CID_BYTES]
        block = data[at + CID_BYTES : end]
        digest = sha256(block).digest()

        if cid == dag_cbor + digest:
            index[cid] = block
        elif cid != RAW + digest:
            raise corrupt(
                f"the block at byte {start:,} is cut off, or does not have the hash in its CID"
            )
        start = end

    if start != size:
        raise corrupt("its last block is cut off")
    return index


def _block_length(data: Data, start: int) -> tuple[int, int]:
    """The length of the block at `start`, CID included, and the position of its CID."""
    length, at = _varint(data, start)
    if not CID_BYTES <= length <= MAX_BLOCK:
        raise corrupt(f"the block at byte {start:,} has a length of {length:,}")
    return length, at


def _read_commit(
    index: Mapping[bytes, bytes], root: bytes, did: str
) -> tuple[dict[str, Any], bytes]:
    """The commit, and the CID of the tree's root."""
    if root not in index:
        raise corrupt("its commit is not in the CAR")

    commit = decode_map(index[root], "its commit")
    if commit.get("version") != 3:
        raise corrupt(f"its commit has the version {str(commit.get('version'))[:20]}, not 3")
    if commit.get("did") != did:
        raise corrupt(f"it is the repository of {str(commit.get('did'))[:80]!r}")
    if not isinstance(commit.get("rev"), str) or not is_tid(commit["rev"]):
        raise corrupt("its commit has no valid revision")

    tree = commit.get("data")
    if type(tree) is not bytes:
        raise corrupt("its commit links no tree")
    return commit, tree


def _verify(commit: dict[str, Any], key: str) -> None:
    """Raises RejectedRepo, and BadSignature if another key made the signature."""
    signature = commit.get("sig")
    if type(signature) is not bytes or len(signature) != _SIGNATURE_BYTES:
        raise corrupt("its commit has no signature of 64 bytes")

    unsigned = {name: value for name, value in commit.items() if name != "sig"}
    try:
        valid = verify_signature(key, libipld.encode_dag_cbor(unsigned), signature)
    except (AtProtocolError, ValueError) as error:
        raise corrupt(f"the signing key in its DID document cannot be used ({error})") from error

    if not valid:
        raise BadSignature("corrupt", "its signature is not of the key in the DID document")


def _check_keys(repo: Repo) -> None:
    """Raises RejectedRepo unless each key is `collection/rkey` by the protocol's rules."""
    for start in range(0, len(repo.keys), _KEYS_PER_MATCH):
        keys = repo.keys[start : start + _KEYS_PER_MATCH]
        if not _KEYS.fullmatch(b"\n".join([*keys, b""])):
            bad = next(key for key in keys if not _KEYS.fullmatch(key + b"\n"))
            raise corrupt(f"{bad[:80]!r} is not the key of a record")

    for name in repo.collections():
        if not is_nsid(name):
            raise corrupt(f"{name[:80]!r} is not the name of a collection")


@contextmanager
def _without_gc() -> Iterator[None]:
    """Decoding creates many containers and no cycles; the collector would take half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
