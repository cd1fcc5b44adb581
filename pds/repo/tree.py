"""The Merkle Search Tree of a repository: from its root to the keys and CIDs of all records.

https://atproto.com/specs/repository#mst-structure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pds.repo.blocks import corrupt, decode_block

# The layer of a key is half the number of leading zero bits of its SHA-256, so no tree is deeper.
MAX_DEPTH = 128
_NODE_FIELDS = ("l", "e", "p", "k", "v", "t")


def read_tree(
    index: Mapping[bytes, bytes], root: bytes, limit: int
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The keys, CIDs and blocks of all records, in the order of their keys.

    `index` maps CIDs to blocks. Keys together, and blocks together, may have `limit` bytes. Raises
    RejectedRepo for a malformed tree.
    """
    tree = _Tree(index, limit)
    try:
        tree.visit(root)
        blocks = list(map(index.__getitem__, tree.cids))
    except KeyError as error:
        missing = error.args[0]
        what = "a block that is not in the CAR"
        if missing in _NODE_FIELDS:
            what = f"a node without {missing!r}"
        raise corrupt(f"its tree has {what}{_near(tree.keys)}") from error
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = str(error)[:120]
        raise corrupt(f"its tree has a malformed node{_near(tree.keys)} ({reason})") from error

    if sum(map(len, blocks)) > limit:
        raise corrupt("its records unfold to far more bytes than the file has")

    return tree.keys, tree.cids, blocks


class _Tree:
    """A walk over the tree that collects keys and CIDs in order."""

    def __init__(self, index: Mapping[bytes, bytes], limit: int) -> None:
        self.keys: list[bytes] = []
        self.cids: list[bytes] = []
        self._index = index
        self._bytes_left = limit

    def visit(self, link: bytes, depth: int = 0) -> None:
        """Adds a node and everything below it.

        A malformed node raises RejectedRepo, KeyError, TypeError, AttributeError, ValueError or
        RecursionError: to check each field first would take longer than the walk.
        """
        if depth > MAX_DEPTH:
            raise corrupt(f"its tree is more than {MAX_DEPTH} levels deep")

        node = decode_block(self._index[link])
        left = node["l"]
        entries = node["e"]

        if left is not None:
            self.visit(left, depth + 1)
        elif not entries and depth:
            # Without this rule, a small file could link the same empty nodes any number of times.
            raise corrupt("its tree has an empty node below its root")

        keys = self.keys
        cids = self.cids
        key = b""
        last = keys[-1] if keys else b""
        size = 0

        for entry in entries:
            prefix = entry["p"]
            rest = entry["k"]
            key = key[:prefix] + rest
            if key <= last or len(key) != prefix + len(rest):
                raise corrupt(
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

        self._bytes_left -= size
        if self._bytes_left < 0:
            raise corrupt("its keys unfold to far more bytes than the file has")


def _near(keys: Sequence[bytes]) -> str:
    return f", near the key {keys[-1][:80]!r}" if keys else ""
