"""Which posts are eligible: in the range, whole, the first of their URI, and not excluded yet.

A selection is made once, before anything runs: one bit for each row of the files that were there.
Reading by these bits gives the same posts however often it is repeated, whatever has been labelled
meanwhile, and that is what lets a lost block be read again without labelling a post twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import BadFile, ConfigError
from datasets.lake import FEEDS, POSTS, Lake
from datasets.schemas import POST_SCHEMA
from datasets.uris.hashing import (
    Bits,
    Hashes,
    first_of_each,
    first_of_each_code,
    hash_uris,
    is_among,
    is_in,
    repeated,
    repeated_in_place,
)

# Partition date → URIs, to keep to (members) or to leave out (excluded).
UrisOf = Callable[[str], pa.ChunkedArray]
# Given a file that cannot be used, raises it or notes it and returns.
OnBadFile = Callable[[BadFile], None]

# Rows that one Part holds at the most where row groups allow it, so that no read runs for long.
PART_ROWS = 50_000
# Partitions scanned at a time: each holds the URIs of its posts and of their labels in memory.
_SCAN_THREADS = min(4, os.cpu_count() or 1)
# Posts whose URIs repeat over partitions and whose strings are compared at a time: some 200 MB.
_BUCKET_POSTS = 1_000_000
_URI = pa.schema([("uri", pa.string())])
_READ = pa.schema([POST_SCHEMA.field(name) for name in ("uri", "text", "preprocessing_timestamp")])
# The key of the hashes (16 bytes). Part of the contract: another key is another sample.
_SAMPLE_KEY = "sample-{:09d}"


@dataclass(frozen=True)
class Part:
    """The chosen rows of some row groups of one file; `mask` holds one bit a row, packed.

    The bits are good for the version of the file that was selected from (`Lake.identity`) and no other.
    """

    path: str
    identity: str
    date: str
    row_groups: tuple[int, ...]
    num_rows: int
    chosen: int
    mask: bytes


@dataclass(frozen=True)
class Selection:
    """Parts in the order of their dates."""

    parts: tuple[Part, ...] = ()

    @property
    def total(self) -> int:
        return sum(part.chosen for part in self.parts)

    def by_date(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for part in self.parts:
            counts[part.date] = counts.get(part.date, 0) + part.chosen
        return counts


@dataclass(frozen=True)
class Sources:
    """Where posts are looked for: files by partition date, and the URIs to keep to, if not all."""

    files: Mapping[str, Sequence[str]]
    members: UrisOf | None = None


@dataclass(frozen=True)
class Sample:
    """A proportion of all posts, the same ones for every integration and every run with this seed."""

    proportion: float
    seed: int = 0


def no_uris(_: str) -> pa.ChunkedArray:
    """Leaves nothing out, where URIs to leave out are asked for."""
    return pa.chunked_array([], pa.string())


def raise_bad_file(error: BadFile) -> None:
    raise error


def post_sources(
    lake: Lake, record_type: str, start: str, end: str, lookback_days: int, on_bad: OnBadFile
) -> Sources:
    """The files that hold the posts of a record type for an inclusive range of dates.

    For `posts_used_in_feeds` the range is of feed dates; a feed of date D shows posts of the dates
    D − `lookback_days` to D.
    """
    if not lake.exists(POSTS):
        raise ConfigError(
            f"{lake.show(POSTS)} does not exist; --data-dir must be a lake with {POSTS} in it"
        )
    if record_type == "posts":
        return Sources(lake.partitions(POSTS, start, end))
    if not lake.exists(FEEDS):
        raise ConfigError(
            f"{lake.show(FEEDS)} does not exist; posts_used_in_feeds needs the feeds of these dates"
        )
    feeds = lake.partitions(FEEDS, start, end)

    @lru_cache(maxsize=lookback_days + 1 + _SCAN_THREADS)
    def shown(day: str) -> pa.ChunkedArray:
        return read_uris(lake, feeds.get(day, ()), on_bad)

    def members(day: str) -> pa.ChunkedArray:
        last = day_after(day, lookback_days)
        return pa.chunked_array(
            [chunk for d in feeds if day <= d <= last for chunk in shown(d).chunks], pa.string()
        )

    return Sources(lake.partitions(POSTS, day_after(start, -lookback_days), end), members)


def day_after(day: str, days: int) -> str:
    """The date `days` later, or the first or last one that a partition can have."""
    number = date.fromisoformat(day).toordinal() + days
    return date.fromordinal(min(max(number, 1), date.max.toordinal())).isoformat()


def read_uris(
    lake: Lake, paths: Iterable[str], on_bad: OnBadFile = raise_bad_file
) -> pa.ChunkedArray:
    """The `uri` column of some files. A bad file gives none, unless `on_bad` raises."""
    chunks: list[pa.Array] = []
    for path in paths:
        try:
            chunks.extend([batch["uri"] for batch in lake.read(path, _URI)])
        except BadFile as error:
            on_bad(error)
    return pa.chunked_array(chunks, pa.string())


def select(
    lake: Lake,
    sources: Sources,
    excluded: Mapping[str, UrisOf],
    sample: Sample | None = None,
    limit: int | None = None,
    on_bad: OnBadFile = raise_bad_file,
    on_found: Callable[[], None] = lambda: None,
) -> dict[str, Selection]:
    """For each name of `excluded`, the eligible posts that its URIs leave, at most `limit`, earliest dates first.

    `on_found` is called, once or more, as soon as it is clear that there are some.

    The posts are read once for all names. Held meanwhile: 8 bytes a post for its hash and a bit or
    two, and the URIs of the dates at work.
    """

    def scan(day: str) -> _Scan:
        found = _scan(lake, day, sources, excluded, sample, on_bad)
        if any(wanted.any() for wanted in found.wanted.values()):
            on_found()
        return found

    with ThreadPoolExecutor(_SCAN_THREADS) as threads:
        scans = list(threads.map(scan, sources.files))
    _keep_first_partition(lake, scans)
    return {name: _selection(scans, name, limit) for name in excluded}


@dataclass
class _File:
    path: str
    identity: str
    group_rows: list[int]


@dataclass
class _Scan:
    """One partition. `whole` has a bit a row of its files; the rest have an entry for each bit set in it."""

    date: str
    files: list[_File] = field(default_factory=list)
    whole: Bits = field(default_factory=lambda: np.zeros(0, bool))
    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    wanted: dict[str, Bits] = field(default_factory=dict)


def _scan(
    lake: Lake,
    day: str,
    sources: Sources,
    excluded: Mapping[str, UrisOf],
    sample: Sample | None,
    on_bad: OnBadFile,
) -> _Scan:
    members = sources.members(day) if sources.members else None
    files: list[_File] = []
    kept: list[Bits] = []
    uris: list[pa.Array] = []
    for path in sources.files[day]:
        try:
            file, file_kept, file_uris = _scan_file(lake, path, members, sample)
        except BadFile as error:
            on_bad(error)
            continue
        files.append(file)
        kept.extend(file_kept)
        uris.extend(file_uris)
    whole = np.concatenate(kept) if kept else np.zeros(0, bool)
    candidates = pa.chunked_array(uris, pa.string())
    hashes = hash_uris(candidates)
    first = _first_occurrences(candidates, hashes)
    if not first.all():
        whole[np.flatnonzero(whole)[~first]] = False
        candidates, hashes = candidates.filter(pa.array(first)), hashes[first]
    wanted = {name: ~is_in(candidates, uris_of(day)) for name, uris_of in excluded.items()}
    return _Scan(day, files, whole, hashes, wanted)


def _scan_file(
    lake: Lake, path: str, members: pa.ChunkedArray | None, sample: Sample | None
) -> tuple[_File, list[Bits], list[pa.Array]]:
    identity = lake.identity(path)
    with lake.open_parquet(path) as parquet:
        groups = [
            parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)
        ]
    kept: list[Bits] = []
    uris: list[pa.Array] = []
    for batch in lake.read(path, _READ):
        keep = pc.and_(pc.is_valid(batch["uri"]), pc.is_valid(batch["preprocessing_timestamp"]))
        keep = pc.and_(
            keep, pc.greater(pc.binary_length(pc.utf8_trim_whitespace(batch["text"])), 0)
        )
        mask = np.asarray(keep.fill_null(False).to_numpy(zero_copy_only=False), bool)
        if members is not None:
            mask &= is_in(batch["uri"], members)
        if sample is not None:
            mask &= _sampled(batch["uri"], sample)
        kept.append(mask)
        uris.append(batch["uri"].filter(pa.array(mask)))
    _check_unchanged(lake, path, identity)
    return _File(path, identity, groups), kept, uris


def _check_unchanged(lake: Lake, path: str, identity: str) -> None:
    """Raises ConfigError where another file has taken the place of the one that was selected from."""
    if lake.identity(path) != identity:
        raise ConfigError(f"{lake.show(path)} changed while it was read; run the command again")


def _sampled(uris: pa.Array, sample: Sample) -> Bits:
    hashes = hash_uris(uris.fill_null(""), _SAMPLE_KEY.format(sample.seed))
    return np.asarray(hashes < np.uint64(min(sample.proportion * 2.0**64, 2.0**64 - 2048)), bool)


def _first_occurrences(uris: pa.ChunkedArray, hashes: Hashes) -> Bits:
    """True for each row whose URI no earlier row has. Equal hashes are suspects only; strings decide."""
    first = np.ones(len(uris), bool)
    suspects = np.flatnonzero(is_among(hashes, repeated(hashes)))
    if len(suspects):
        first[suspects] = first_of_each(uris.take(pa.array(suspects)))
    return first


def _keep_first_partition(lake: Lake, scans: list[_Scan]) -> None:
    """Drops each post that stands in an earlier partition of the range, or whose twin is excluded already.

    Equal hashes are suspects only; strings decide. The strings of at most about _BUCKET_POSTS suspects are in
    memory at a time, however many URIs repeat; each further bucket reads the URIs of the files once more.
    """
    if len(scans) < 2:
        return
    repeated = repeated_in_place(np.concatenate([scan.hashes for scan in scans]))
    if not len(repeated):
        return

    suspects = sum(int(is_among(scan.hashes, repeated).sum()) for scan in scans)
    for bucket in np.array_split(repeated, -(-suspects // _BUCKET_POSTS)):
        if len(bucket):
            _keep_first_of(lake, scans, bucket)


def _keep_first_of(lake: Lake, scans: list[_Scan], hashes: Hashes) -> None:
    """`_keep_first_partition` for the posts that have one of these hashes (sorted)."""
    places = [np.flatnonzero(is_among(scan.hashes, hashes)) for scan in scans]
    uris = pa.chunked_array(
        [
            chunk
            for scan, here in zip(scans, places, strict=True)
            for chunk in _uris_at(lake, scan, here)
        ],
        pa.string(),
    )
    codes = pc.dictionary_encode(uris.combine_chunks()).indices.to_numpy()

    # Posts in the order of their partitions, each with the number of its URI.
    first = first_of_each_code(codes)
    ends = np.cumsum([len(here) for here in places])[:-1]

    for name in scans[0].wanted:
        wanted = np.concatenate(
            [scan.wanted[name][here] for scan, here in zip(scans, places, strict=True)]
        )
        excluded = np.bincount(codes, weights=~wanted) > 0
        kept = first & ~excluded[codes]

        for scan, here, bits in zip(scans, places, np.split(kept, ends), strict=True):
            scan.wanted[name][here] = bits


def _uris_at(lake: Lake, scan: _Scan, places: npt.NDArray[np.int64]) -> list[pa.Array]:
    """The URIs of some of a scan's posts, by their place among the bits set in `whole`; sorted places."""
    if not len(places):
        return []
    rows = np.flatnonzero(scan.whole)[places]
    found: list[pa.Array] = []
    start = 0
    for file in scan.files:
        for batch in lake.read(file.path, _URI):
            here = rows[(rows >= start) & (rows < start + len(batch))] - start
            found.append(batch["uri"].take(pa.array(here)))
            start += len(batch)
        _check_unchanged(lake, file.path, file.identity)
    return found


def _selection(scans: list[_Scan], name: str, limit: int | None) -> Selection:
    parts: list[Part] = []
    left = limit
    for scan in scans:
        rows = np.flatnonzero(scan.whole)[scan.wanted[name]]
        if left is not None:
            rows = rows[:left]
            left -= len(rows)
        chosen = np.zeros(len(scan.whole), bool)
        chosen[rows] = True
        parts.extend(_parts(scan, chosen))
    return Selection(tuple(parts))


def _parts(scan: _Scan, chosen: Bits) -> Iterator[Part]:
    start = 0
    for file in scan.files:
        groups: list[int] = []
        stop = start
        for index, rows in enumerate(file.group_rows):
            if groups and chosen[start : stop + rows].sum() > PART_ROWS:
                yield from _part(scan.date, file, groups, chosen[start:stop])
                groups, start = [], stop
            groups.append(index)
            stop += rows
        yield from _part(scan.date, file, groups, chosen[start:stop])
        start = stop


def _part(day: str, file: _File, groups: Sequence[int], chosen: Bits) -> Iterator[Part]:
    count = int(chosen.sum())
    if count:
        mask = np.packbits(chosen).tobytes()
        yield Part(file.path, file.identity, day, tuple(groups), len(chosen), count, mask)


def split_part(part: Part, rows: int) -> tuple[Part, Part]:
    """A part's first `rows` chosen rows, at least one and not all of them, and the others."""
    chosen = _bits(part)
    first = chosen & (np.cumsum(chosen) <= rows)
    head, tail = (
        replace(part, chosen=int(bits.sum()), mask=np.packbits(bits).tobytes())
        for bits in (first, chosen & ~first)
    )
    return head, tail


def _bits(part: Part) -> Bits:
    return np.unpackbits(np.frombuffer(part.mask, np.uint8), count=part.num_rows).astype(bool)


def read_part(lake: Lake, part: Part) -> Iterator[pa.Table]:
    """The chosen posts of a part, in tables of POST_SCHEMA. Raises ConfigError if the file is not the same any more."""
    mask = _bits(part)
    start = 0
    _check_unchanged(lake, part.path, part.identity)
    try:
        for batch in lake.read(part.path, _READ, row_groups=part.row_groups):
            # A file may be replaced or written over at any moment: what was read counts if it is the same afterwards.
            _check_unchanged(lake, part.path, part.identity)
            keep = mask[start : start + len(batch)]
            start += len(batch)

            if keep.any():
                posts = pa.table(batch.filter(pa.array(keep)).columns, names=_READ.names)
                yield posts.append_column(
                    "partition_date", pa.array([part.date] * len(posts), pa.string())
                )
    except BadFile:
        _check_unchanged(lake, part.path, part.identity)
        raise
