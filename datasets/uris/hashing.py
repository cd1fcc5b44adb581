"""Comparing URIs in bulk: by hashes of 8 bytes, which only raise suspicion, and by the strings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bits = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

# 16 bytes. Part of the contract of sampling: another key would give another sample.
_IDENTITY_KEY = "label-backfill-0"


def hash_uris(uris: pa.Array | pa.ChunkedArray, key: str = _IDENTITY_KEY) -> Hashes:
    """SipHash-2-4, as pandas computes it. `uris` must not have nulls."""
    from pandas.util import hash_array  # half a second to import, needed here only

    if len(uris) == 0:
        return np.zeros(0, np.uint64)

    strings = uris.to_numpy(zero_copy_only=False) if isinstance(uris, pa.Array) else uris.to_numpy()
    return np.asarray(hash_array(strings, hash_key=key, categorize=False), np.uint64)


def repeated(hashes: Hashes) -> Hashes:
    """The values that occur more than once, sorted."""
    return repeated_in_place(hashes.copy())


def repeated_in_place(hashes: Hashes) -> Hashes:
    """`repeated`, which sorts `hashes` itself: 8 bytes a value less."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def is_among(hashes: Hashes, ordered: Hashes) -> Bits:
    """`np.isin` for values that are sorted: without a copy of them for each call."""
    if not len(ordered):
        return np.zeros(len(hashes), bool)

    nearest = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return np.asarray(ordered[nearest] == hashes, bool)


def is_in(uris: pa.Array | pa.ChunkedArray, these: pa.ChunkedArray) -> Bits:
    """Whether each URI is one of these, by the strings."""
    if len(these) == 0 or len(uris) == 0:
        return np.zeros(len(uris), bool)

    found = pc.is_in(uris, value_set=these)
    bits = found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()
    return np.asarray(bits, bool)


def first_of_each(uris: pa.Array | pa.ChunkedArray) -> Bits:
    """True for each row whose URI no earlier row has. Nulls count as one URI."""
    whole = uris.combine_chunks() if isinstance(uris, pa.ChunkedArray) else uris
    codes = whole.dictionary_encode().indices.fill_null(-1).to_numpy()
    return first_of_each_code(codes)


def first_of_each_code(codes: npt.NDArray[np.integer]) -> Bits:
    """`first_of_each` of URIs that are numbered already."""
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first
