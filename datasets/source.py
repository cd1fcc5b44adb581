"""Selected posts as a lazy Ray Dataset. Apart from datasets/posts.py because it needs Ray to be imported."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray.data
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from datasets.lake import Lake
from datasets.posts import PART_ROWS, Part, Selection, read_part, split_part

# Logical CPUs of a read task. Any more would wait for ever for a node whose CPUs the classifier pools hold.
_READ_CPUS = 0
# A post of mean length with its URI, timestamp and date takes this many bytes of a block.
POST_BYTES = 220
# The first block is this much smaller: the first labels show early that all works, and how fast.
_FIRST = 8
# Rows handed to Ray at a time, which cuts blocks at the first of these that exceeds the block size.
_CHUNK_ROWS = 1024


def eligible_posts(lake: Lake, selection: Selection, block_rows: int, readers: int) -> Dataset:
    """Blocks of POST_SCHEMA with about `block_rows` posts (fewer where texts are long), in the selection's order.

    At most `readers` read tasks run at a time.
    """
    source = SelectedPosts(lake, selection, max(1, block_rows // _FIRST))
    dataset = ray.data.read_datasource(
        source,
        num_cpus=_READ_CPUS,
        concurrency=readers,
        override_num_blocks=max(1, len(source.tasks)),
    )
    dataset.context.target_max_block_size = block_rows * POST_BYTES
    return dataset


class SelectedPosts(Datasource):  # type: ignore[misc]  # Ray has no types
    def __init__(self, lake: Lake, selection: Selection, first_rows: int) -> None:
        self._lake = lake
        self._rows = selection.total
        self.tasks = _tasks(selection, first_rows)

    def estimate_inmemory_data_size(self) -> int:
        return self._rows * POST_BYTES

    @property
    def supports_distributed_reads(self) -> bool:
        """A folder is read on the driver's node, where it is sure to be; Ray sees to that."""
        return not self._lake.is_local

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None
    ) -> list[ReadTask]:
        return [_read_task(self._lake, parts) for parts in self.tasks]


def _tasks(selection: Selection, first_rows: int) -> list[list[Part]]:
    """What each read task reads: the first `first_rows` posts apart from the others."""
    first, rest = _split(selection.parts, first_rows)
    return [task for parts in (first, rest) for task in _gathered(parts)]


def _split(parts: Sequence[Part], rows: int) -> tuple[list[Part], list[Part]]:
    """The parts of the first `rows` chosen rows, and those of the others."""
    first: list[Part] = []
    rest = deque(parts)
    while rows and rest:
        part = rest.popleft()
        if part.chosen > rows:
            part, left = split_part(part, rows)
            rest.appendleft(left)
        first.append(part)
        rows -= part.chosen
    return first, list(rest)


def _gathered(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts in runs of about PART_ROWS posts, so that many small files cost one task."""
    tasks: list[list[Part]] = []
    rows = PART_ROWS
    for part in parts:
        if rows + part.chosen > PART_ROWS:
            tasks.append([])
            rows = 0
        tasks[-1].append(part)
        rows += part.chosen
    return tasks


def _read_task(lake: Lake, parts: list[Part]) -> ReadTask:
    def read() -> Iterator[pa.Table]:
        for part in parts:
            for posts in read_part(lake, part):
                for start in range(0, len(posts), _CHUNK_ROWS):
                    yield posts.slice(start, _CHUNK_ROWS)

    rows = sum(part.chosen for part in parts)
    files = sorted({lake.show(part.path) for part in parts})
    return ReadTask(
        read,
        BlockMetadata(
            num_rows=rows, size_bytes=rows * POST_BYTES, input_files=files, exec_stats=None
        ),
    )
