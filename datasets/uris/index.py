"""Which URIs are held where, for more of them than fit into memory as strings.

Equal hashes make suspects only: the URIs of the places that have a suspect's hash are read again,
and strings decide.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from datasets.errors import FileGone
from datasets.lake import Lake
from datasets.posts import OnBadFile, raise_bad_file, read_uris
from datasets.uris.hashing import Bits, Hashes, hash_uris, is_among, is_in, repeated

# Places read at a time: each holds its URIs in memory for a moment.
_THREADS = min(4, os.cpu_count() or 1)


class UriIndex:
    """Of some places, each a few files of a lake. Held: 8 bytes a row, and `suspects` of all rows.

    With `may_go`, files that are gone when they are read first are left out: what was in them is
    elsewhere by then. One that has gone when its strings must decide raises FileGone.
    """

    def __init__(
        self,
        lake: Lake,
        places: Mapping[str, Sequence[str]],
        suspects: Callable[[Hashes], Hashes],
        on_bad: OnBadFile = raise_bad_file,
        *,
        may_go: bool = False,
    ) -> None:
        # Here, because threads that import it first, some of them from within pyarrow, can block each other for ever.
        import pandas as pd  # noqa: F401 - `hash_uris` needs it, and pyarrow does for `to_numpy`

        self._lake, self._places, self._on_bad, self._may_go = lake, places, on_bad, may_go
        with ThreadPoolExecutor(_THREADS) as threads:
            self._hashes = dict(zip(places, threads.map(self._read, places), strict=True))
        self._suspects = suspects(np.concatenate([np.zeros(0, np.uint64), *self._hashes.values()]))

    @property
    def nbytes(self) -> int:
        return sum(hashes.nbytes for hashes in self._hashes.values()) + self._suspects.nbytes

    def holds(self, uris: pa.ChunkedArray, places: Iterable[str]) -> Bits:
        """Whether one of these places has it, for each of some URIs, none of them null. Likely places first."""
        hashes = hash_uris(uris)
        held = np.zeros(len(uris), bool)
        left = np.flatnonzero(is_among(hashes, self._suspects))
        for place in places:
            if not len(left):
                break
            suspects = left[is_among(hashes[left], self._hashes.get(place, self._suspects[:0]))]
            if len(suspects):
                held[suspects] = is_in(
                    uris.take(pa.array(suspects)), self._strings(self._places[place])
                )
                left = left[~held[left]]
        return held

    def _read(self, place: str) -> Hashes:
        found = [np.zeros(0, np.uint64)]
        for path in self._places[place]:
            try:
                found.append(hash_uris(self._strings([path])))
            except FileGone:
                if not self._may_go:
                    raise
        return np.unique(np.concatenate(found))

    def _strings(self, paths: Sequence[str]) -> pa.ChunkedArray:
        return read_uris(self._lake, paths, self._on_bad).drop_null()


def every_hash(hashes: Hashes) -> Hashes:
    """Suspects where any place may hold a URI that is asked for."""
    hashes.sort()
    return hashes


def repeated_hashes(hashes: Hashes) -> Hashes:
    """Suspects where only URIs of the places are asked for: those that several places may hold."""
    return repeated(hashes)
